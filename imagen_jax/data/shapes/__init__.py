"""The `shapes` data set: pictures of coloured shapes and captions of them, made on the spot from (seed, index)."""
