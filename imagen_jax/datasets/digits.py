"""scikit-learn's handwritten digits: 1,797 real images of 8×8 pixels, with captions made from their labels."""

from __future__ import annotations

import functools
import operator
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.errors import require, unknown_name_error
from imagen_jax.images.array import Size, format_size, image_dtype, parse_size

SIZE = 8
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a handwritten {}", "the digit {}", "{} written by hand")
# Every fifth image is a test image: the file is ordered by writer, so both splits have images by each writer.
_TEST_EVERY = 5


@functools.cache
def load_split(split: str, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Loads the images and labels of a split.

    Args:
        split: "train" or "test".
        bits: 8 for uint8, 16 for uint16.

    Returns:
        (images [N, 8, 8, 1] in 17 gray levels from black to white, labels int [N]).

    Raises:
        ConfigError: the split or the number of bits is not known, or scikit-learn is not installed.
    """
    dtype = image_dtype(bits, "bits")
    if split not in ("train", "test"):
        raise unknown_name_error("split", split, ("train", "test"))
    digits = require("sklearn.datasets", "demo").load_digits()
    images = np.round(digits.images * (np.iinfo(dtype).max / 16)).astype(dtype)[..., None]
    is_test = np.arange(len(images)) % _TEST_EVERY == 0
    selected = is_test if split == "test" else ~is_test
    return images[selected], digits.target[selected]


def parse_label(caption: str) -> int:
    """Returns the digit that a caption names. Raises ValueError if it names none or several."""
    labels = [label for label, name in enumerate(DIGIT_NAMES) if name in caption.lower().split()]
    if len(labels) != 1:
        raise ValueError(f"caption {caption!r} must name one digit, zero to nine")
    return labels[0]


class DigitsSource:
    """The digits as a source. The wording of a caption depends on the index.

    Args:
        split: "train" or "test".
        image_size: must be 8.
        bits: 8 or 16.

    Raises:
        ValueError: an argument is not as described, or scikit-learn is not installed.
    """

    def __init__(self, split: str, image_size: int | Size, bits: int = 8) -> None:
        size = parse_size(image_size, "image_size")
        if size != (SIZE, SIZE):
            raise ValueError(f"image_size {format_size(size)} does not fit digits: its images are {SIZE}×{SIZE}")
        self._split, self._bits = split, bits
        self._images, self._labels = load_split(split, bits)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = operator.index(index)
        columns = {"digit": DIGIT_NAMES[self._labels[i]]}
        return Record(self._images[i], self.captions(i), f"digit {i} of {self._split}", columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the single caption of a digit."""
        i = operator.index(index)
        return (TEMPLATES[i % len(TEMPLATES)].format(DIGIT_NAMES[self._labels[i]]),)

    def __repr__(self) -> str:
        return f"DigitsSource(split={self._split!r}, bits={self._bits})"
