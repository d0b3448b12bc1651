"""Metrics of sampled images: alignment scores, diagnostics of a cascade, validation losses, previews.

Judges of a data set live with that data set; nothing here trains.
"""
