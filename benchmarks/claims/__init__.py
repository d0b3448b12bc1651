"""Measurements of the paper's claims at a small scale on `shapes`, one claim per module."""
