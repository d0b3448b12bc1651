"""Files that are complete or absent, checksums, and local or remote storage.

What is in a file is decided by its owner.
"""
