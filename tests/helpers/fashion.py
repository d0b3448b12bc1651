"""Files as Fashion-MNIST's, with a few random images."""

import gzip

import numpy as np

FOLDER = "fashion-mnist"
COUNTS = {"train": 12, "t10k": 4}


def idx(array):
    """The bytes of a gzipped IDX file of a uint8 array."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_files(folder):
    """Writes the four files into a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for prefix, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return folder
