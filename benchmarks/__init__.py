"""Measurements of speed, memory and quality: each module prints one table."""
