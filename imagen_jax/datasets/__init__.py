"""Concrete data sources (folder, TFDS, WebDataset, mixtures, shapes, digits, emoji) and the registry that names them.

Turning records into batches is the job of `data`.
"""
