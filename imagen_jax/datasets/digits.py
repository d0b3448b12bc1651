"""scikit-learn's bundled handwritten digits: 1,797 real pictures of 8×8 pixels, with captions from their labels."""

from __future__ import annotations

import functools
import operator
from typing import SupportsIndex

import numpy as np
from sklearn.datasets import load_digits

from imagen_jax.data.record import Record
from imagen_jax.images.array import Size, dtype_of, said, size_of

SIZE = 8
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDINGS = ("a handwritten {}", "the digit {}", "{} written by hand")
# Every fifth picture is for testing: the file runs writer by writer, and so both parts have pictures of each.
TEST_EVERY = 5


@functools.cache
def load_split(split: str, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, 8, 8, 1], labels int [N]) of ``train`` or ``test``: 17 shades of gray, from black to white.

    Images are uint8, or uint16 with ``bits`` 16. Raises ValueError for another split or other bits.
    """
    dtype = dtype_of(bits, "bits")
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} of digits is not known: choose train or test")
    digits = load_digits()
    images = np.round(digits.images * (np.iinfo(dtype).max / 16)).astype(dtype)[..., None]
    is_test = np.arange(len(images)) % TEST_EVERY == 0
    chosen = is_test if split == "test" else ~is_test
    return images[chosen], digits.target[chosen]


def label_of(caption: str) -> int:
    """The digit that a caption names. Raises ValueError if it names none or several."""
    named = [label for label, name in enumerate(NAMES) if name in caption.lower().split()]
    if len(named) != 1:
        raise ValueError(f"caption {caption!r} must name one digit, zero to nine")
    return named[0]


class DigitsSource:
    """The digits as a source; the wording of a caption goes by the index."""

    def __init__(self, split: str, image_size: int | Size, bits: int = 8) -> None:
        size = size_of(image_size, "image_size")
        if size != (SIZE, SIZE):
            raise ValueError(f"image_size {said(size)} does not fit digits: its pictures are {SIZE}×{SIZE}")
        self._split, self._bits = split, bits
        self._images, self._labels = load_split(split, bits)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = operator.index(index)
        return Record(
            self._images[i], self.captions(i), f"digit {i} of {self._split}", {"digit": NAMES[self._labels[i]]}
        )

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The one caption of a digit."""
        i = operator.index(index)
        return (WORDINGS[i % len(WORDINGS)].format(NAMES[self._labels[i]]),)

    def __repr__(self) -> str:
        return f"DigitsSource(split={self._split!r}, bits={self._bits})"
