"""Concrete data sources (folder, TFDS, WebDataset, Parquet, mixtures, shapes, digits, emoji), and their registry.

Turning records into batches is the job of `data`.
"""
