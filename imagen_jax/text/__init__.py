"""Captions to embeddings: tokens, Hugging Face T5 weights, the frozen text encoder."""
