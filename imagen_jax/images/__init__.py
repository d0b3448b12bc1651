"""Images as arrays: sizes, bit depths, resizing, grids, PNG files and plots.

Untrusted image files are decoded by `data.transforms`.
"""
