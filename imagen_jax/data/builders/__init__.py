"""TFDS builders: data sets that are prepared without TensorFlow, and examples of how to write one."""
