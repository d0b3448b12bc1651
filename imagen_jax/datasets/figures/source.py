"""The `figures` data set as a source."""

from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.datasets.figures.captions import Description, sample_caption, sample_description
from imagen_jax.datasets.figures.figure_sampling import sample_figure
from imagen_jax.datasets.figures.render import object_map, render
from imagen_jax.datasets.figures.scenes import Figure
from imagen_jax.datasets.generated import GeneratedSource
from imagen_jax.images.array import Size


class FiguresSource(GeneratedSource):
    """Generated images of a person in garments with captions, lower-case ASCII of at most 96 bytes.

    Example i is a function of (seed, split, i), and its image of the resolution and bits as well. Figure and caption
    are the same at all resolutions, so that the stages of a cascade can be trained on the same examples.

    'train' and 'validation' have the same distribution but separate random streams; nobody in them wears a garment of
    `scenes.HELD_OUT`. In 'held_out', everyone wears one.

    Args:
        seed: in [0, 2^64).
        split: one of `generated.SPLITS`.
        resolution: side of square images, or (height, width), each in [16, 4096].
        num_examples: number of examples, at least 1.
        bits: 8 or 16.

    Raises:
        ConfigError: an argument is not as described.
    """

    MIN_RESOLUTION = 16  # below it stripes and dots are lost

    def __init__(self, seed: int, split: str, resolution: int | Size, num_examples: int, bits: int = 8) -> None:
        super().__init__(seed, split, resolution, num_examples, bits)

    def __getitem__(self, index: SupportsIndex) -> Record:
        rng = self.rng(index)
        figure = sample_figure(self.split, rng)
        captions = (sample_caption(sample_description(figure, rng), rng),)
        return Record(render(figure, self.resolution, self.bits), captions, name=f"figure {index} of {self.split}")

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the single caption of example `index`."""
        rng = self.rng(index)
        return (sample_caption(sample_description(sample_figure(self.split, rng), rng), rng),)

    def objects(self, index: SupportsIndex) -> np.ndarray:
        """Returns the map of the garments of example `index`, see `object_map`."""
        return object_map(self.figure(index), self.resolution)

    def figure(self, index: SupportsIndex) -> Figure:
        """Returns the figure of example `index`."""
        return sample_figure(self.split, self.rng(index))

    def description(self, index: SupportsIndex) -> Description:
        """Returns the description that caption `index` states in words."""
        rng = self.rng(index)
        return sample_description(sample_figure(self.split, rng), rng)
