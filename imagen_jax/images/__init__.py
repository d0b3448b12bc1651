"""Images as arrays: sizes, bit depths, resizing, grids, PNG files and plots.

Decoding files of unknown origin is the job of `data.transforms`.
"""
