"""The `figures` data set as a source."""

import operator
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.datasets.figures.captions import Description, sample_caption, sample_description
from imagen_jax.datasets.figures.figure_sampling import sample_figure
from imagen_jax.datasets.figures.render import object_map, render
from imagen_jax.datasets.figures.scenes import SPLITS, Figure
from imagen_jax.diffusion.keys import check_seed
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.array import Size, format_size, image_dtype, parse_size

_MIN_RESOLUTION = 16  # below it stripes and dots are lost
_MAX_RESOLUTION = 4096


class FiguresSource:
    """Generated images of a person in garments with captions, lower-case ASCII of at most 96 bytes.

    Example i is a function of (seed, split, i), and its image of the resolution and bits as well. Figure and caption
    are the same at all resolutions, so that the stages of a cascade can be trained on the same examples.

    'train' and 'validation' have the same distribution but separate random streams; nobody in them wears a garment of
    `scenes.HELD_OUT`. In 'held_out', everyone wears one.

    Args:
        seed: in [0, 2^64).
        split: one of `scenes.SPLITS`.
        resolution: side of square images, or (height, width), each in [16, 4096].
        num_examples: number of examples, at least 1.
        bits: 8 or 16.

    Raises:
        ConfigError: an argument is not as described.
    """

    def __init__(self, seed: int, split: str, resolution: int | Size, num_examples: int, bits: int = 8):
        if split not in SPLITS:
            raise unknown_name_error("split", split, SPLITS)
        height_width = parse_size(resolution, "resolution")
        if not all(_MIN_RESOLUTION <= side <= _MAX_RESOLUTION for side in height_width):
            raise ConfigError(
                f"resolution {format_size(height_width)} is not an integer in [{_MIN_RESOLUTION}, {_MAX_RESOLUTION}]"
            )
        if not isinstance(num_examples, SupportsIndex) or num_examples < 1:
            raise ConfigError(f"num_examples {num_examples} is not an integer of at least 1")
        image_dtype(bits, "bits")
        self.seed, self.split = check_seed(seed), split
        self.resolution, self.num_examples, self.bits = height_width, num_examples, bits

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: SupportsIndex) -> Record:
        rng = self._rng(index)
        figure = sample_figure(self.split, rng)
        captions = (sample_caption(sample_description(figure, rng), rng),)
        return Record(render(figure, self.resolution, self.bits), captions, name=f"figure {index} of {self.split}")

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the single caption of example `index`."""
        rng = self._rng(index)
        return (sample_caption(sample_description(sample_figure(self.split, rng), rng), rng),)

    def objects(self, index: SupportsIndex) -> np.ndarray:
        """Returns the map of the garments of example `index`, see `object_map`."""
        return object_map(self.figure(index), self.resolution)

    def figure(self, index: SupportsIndex) -> Figure:
        """Returns the figure of example `index`."""
        return sample_figure(self.split, self._rng(index))

    def description(self, index: SupportsIndex) -> Description:
        """Returns the description that caption `index` states in words."""
        rng = self._rng(index)
        return sample_description(sample_figure(self.split, rng), rng)

    def _rng(self, index: SupportsIndex) -> np.random.Generator:
        i = operator.index(index)
        if not 0 <= i < self.num_examples:
            raise IndexError(f"index {i} is outside [0, {self.num_examples}) of {self!r}")
        # as of the shapes: keyed, so that no two (seed, i, split) share a stream
        key = np.array([self.seed, i], np.uint64)
        counter = np.array([0, 0, 0, SPLITS.index(self.split)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def __repr__(self) -> str:
        return (
            f"FiguresSource(seed={self.seed}, split={self.split!r}, resolution={format_size(self.resolution)}, "
            f"num_examples={self.num_examples}, bits={self.bits})"
        )
