"""Fashion-MNIST (arXiv:1708.07747): 70,000 photos of garments, gray, 28×28, with captions made from their labels.

They are read from the files of its authors, which are in Debian's package `dataset-fashion-mnist` too.
"""

from __future__ import annotations

import functools
import gzip
import operator
import zlib
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import Size, format_size, image_dtype, parse_size
from imagen_jax.io.paths import as_path

SIZES = (28, 32)  # without, and with a border of 2 black pixels
GARMENTS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandals", "shirt", "sneakers", "bag", "ankle boots")
_PLURALS = ("trousers", "sandals", "sneakers", "ankle boots")
_PREFIXES = {"train": "train", "test": "t10k"}
_SIDE = 28
_FIX = "set data.path to the folder of Fashion-MNIST's four .gz files, as `apt install dataset-fashion-mnist` has them"


def caption_of(label: int) -> str:
    """Returns the caption of a label in [0, 10), such as "a photo of a dress"."""
    garment = GARMENTS[label]
    if garment in _PLURALS:
        return f"a photo of {garment}"
    return f"a photo of {'an' if garment[0] in 'aeiou' else 'a'} {garment}"


def _read_idx(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the uint8 array of a gzipped IDX file, [N, *shape]. Raises ConfigError if it is not one."""
    try:
        content = gzip.decompress(file.read_bytes())
    except OSError as error:
        reason = error.strerror or "it is not a gzip file"
        raise ConfigError(f"{str(file)!r} cannot be read ({reason}): {_FIX}") from error
    except (EOFError, zlib.error) as error:
        raise ConfigError(f"{str(file)!r} is damaged or incomplete ({error}): {_FIX}") from error
    axes = 1 + len(shape)
    header = 4 + 4 * axes
    sizes = tuple(np.frombuffer(content[4:header], ">u4")) if len(content) >= header else ()
    # magic: two zeros, 8 for uint8, the number of axes
    if (
        content[:4] != bytes([0, 0, 8, axes])
        or sizes[1:] != shape
        or len(content) != header + np.prod(sizes, dtype=int)
    ):
        raise ConfigError(f"{str(file)!r} is not an IDX file of uint8 arrays of shape {shape}: {_FIX}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


@functools.lru_cache(4)
def load_split(folder: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Loads the images and labels of a split.

    Args:
        folder: with the files, on this machine or in a bucket.
        split: "train" or "test".

    Returns:
        (images uint8 [N, 28, 28, 1], labels uint8 [N]).

    Raises:
        ConfigError: the split is not known, or a file is missing or damaged.
    """
    if split not in _PREFIXES:
        raise unknown_name_error("split", split, _PREFIXES)
    prefix, path = _PREFIXES[split], as_path(folder)
    images = _read_idx(path / f"{prefix}-images-idx3-ubyte.gz", (_SIDE, _SIDE))
    labels = _read_idx(path / f"{prefix}-labels-idx1-ubyte.gz", ())
    if len(images) != len(labels) or not len(labels) or labels.max() >= len(GARMENTS):
        raise ConfigError(f"images and labels of split {split!r} in {folder!r} do not belong together: {_FIX}")
    return images[..., None], labels


class FashionMnistSource:
    """Fashion-MNIST as a source; the test images are the split "test".

    Args:
        path: folder of the files.
        split: "train" or "test".
        image_size: 28, or 32 for images with a black border.
        bits: 8 or 16.

    Raises:
        ConfigError: an argument is not as described, or a file is missing or damaged.
    """

    def __init__(self, path: str, split: str, image_size: int | Size, bits: int = 8) -> None:
        size = parse_size(image_size, "image_size")
        if size[0] != size[1] or size[0] not in SIZES:
            raise ConfigError(
                f"image_size {format_size(size)} does not fit Fashion-MNIST: give 28, or 32 with a border"
            )
        self._path, self._split, self._bits = path, split, bits
        self._dtype, self._border = image_dtype(bits, "bits"), (size[0] - _SIDE) // 2
        self._images, self._labels = load_split(path, split)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = operator.index(index)
        border = (self._border, self._border)
        # 257 · 255 = 65535
        image = np.pad(self._images[i], (border, border, (0, 0))) * self._dtype.type(257 if self._bits == 16 else 1)
        columns = {"garment": GARMENTS[self._labels[i]]}
        return Record(image, self.captions(i), f"garment {i} of {self._split}", columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the single caption of an image."""
        return (caption_of(self._labels[operator.index(index)]),)

    def __repr__(self) -> str:
        return f"FashionMnistSource(path={self._path!r}, split={self._split!r}, bits={self._bits})"
