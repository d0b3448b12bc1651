"""Benchmarks of prompts: sets of prompts in categories, images in GenEval's layout, scores by category."""
