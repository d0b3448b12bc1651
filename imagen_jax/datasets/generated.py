"""What sources of generated images share: their arguments, and a random stream for each example."""

from __future__ import annotations

import operator
from typing import ClassVar, SupportsIndex

import numpy as np

from imagen_jax.diffusion.keys import check_seed
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import Size, format_size, image_dtype, parse_size

SPLITS = ("train", "validation", "held_out")

_MAX_RESOLUTION = 4096


class GeneratedSource:
    """Examples that are functions of (seed, split, index).

    Args:
        seed: in [0, 2^64).
        split: one of `SPLITS`, which have separate random streams.
        resolution: side of square images, or (height, width), each in [`MIN_RESOLUTION`, 4096].
        num_examples: number of examples, at least 1.
        bits: 8 or 16.

    Raises:
        ConfigError: an argument is not as described.
    """

    MIN_RESOLUTION: ClassVar[int]

    def __init__(self, seed: int, split: str, resolution: int | Size, num_examples: int, bits: int) -> None:
        if split not in SPLITS:
            raise unknown_name_error("split", split, SPLITS)
        height_width = parse_size(resolution, "resolution")
        if not all(self.MIN_RESOLUTION <= side <= _MAX_RESOLUTION for side in height_width):
            raise ConfigError(
                f"resolution {format_size(height_width)} is not an integer in "
                f"[{self.MIN_RESOLUTION}, {_MAX_RESOLUTION}]"
            )
        if not isinstance(num_examples, SupportsIndex) or num_examples < 1:
            raise ConfigError(f"num_examples {num_examples} is not an integer of at least 1")
        image_dtype(bits, "bits")
        self.seed, self.split = check_seed(seed), split
        self.resolution, self.num_examples, self.bits = height_width, num_examples, bits

    def __len__(self) -> int:
        return self.num_examples

    def rng(self, index: SupportsIndex) -> np.random.Generator:
        """Returns the random generator of example `index`, at its start. Raises IndexError outside [0, len)."""
        i = operator.index(index)
        if not 0 <= i < self.num_examples:
            raise IndexError(f"index {i} is outside [0, {self.num_examples}) of {self!r}")
        # Philox is keyed, not seeded: no hashing, and no two (seed, i, split) share a stream. The split sits in the
        # counter's highest word, which an example's few random numbers never reach.
        key = np.array([self.seed, i], np.uint64)
        counter = np.array([0, 0, 0, SPLITS.index(self.split)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(seed={self.seed}, split={self.split!r}, "
            f"resolution={format_size(self.resolution)}, num_examples={self.num_examples}, bits={self.bits})"
        )
