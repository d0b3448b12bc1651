"""Tokenizers, the frozen T5 encoder and CLIP with their weights, and caches of text embeddings.

The networks themselves live in `models`.
"""
