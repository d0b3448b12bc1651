"""Tokenizers, the frozen T5 encoder with its weights, and caches of text embeddings.

The T5 network itself lives in `models`.
"""
