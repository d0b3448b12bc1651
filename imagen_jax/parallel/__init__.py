"""Devices and processes: meshes, sharding by rules over parameter paths, batches, and multi-host runs.

Nothing here depends on what the arrays mean.
"""
