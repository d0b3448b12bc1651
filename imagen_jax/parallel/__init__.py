"""Devices and processes: meshes, sharding of arrays by rules over parameter paths, multi-host runs.

Nothing here knows what the arrays mean.
"""
