"""Writes published cascades: weights as safetensors, an index, checksums, a model card; and pushes them to the Hub.

`stages/published.py` describes the folder and reads it; `pipelines/find_stages.py` finds it by name.
"""
