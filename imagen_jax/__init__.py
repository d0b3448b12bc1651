"""Imagen (arXiv:2205.11487) in JAX: a cascade of diffusion models that draws pictures from text."""
