"""Atomic file writes, checksums, and local or remote storage.

The contents of files are defined by their owners.
"""
