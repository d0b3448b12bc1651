"""Converts pipelines of DeepFloyd IF in the format of diffusers to cascades, and stages back to such pipelines.

Neither diffusers nor torch is needed: files are read and written by what is known of them, tensor by tensor.
"""
