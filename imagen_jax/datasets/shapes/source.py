"""The `shapes` data set as a source."""

import dataclasses
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.datasets.generated import GeneratedSource
from imagen_jax.datasets.shapes.captions import sample_caption
from imagen_jax.datasets.shapes.descriptions import Description, sample_description
from imagen_jax.datasets.shapes.render import object_map, render
from imagen_jax.datasets.shapes.scene_sampling import sample_scene
from imagen_jax.datasets.shapes.scenes import DEFAULT_BACKGROUND, Scene
from imagen_jax.images.array import Size


class ShapesSource(GeneratedSource):
    """Generated images of shapes with captions, lower-case ASCII of at most 96 bytes.

    Example i is a function of (seed, split, i), and its image of the resolution and bits as well. Scene and caption
    are the same at all resolutions, so that the stages of a cascade can be trained on the same examples.

    'train' and 'validation' have the same distribution but separate random streams, so they share no scene. Neither
    contains a combination of `scenes.HELD_OUT_APPEARANCES` or `scenes.HELD_OUT_RELATIONS`. Every scene of 'held_out'
    contains at least one, and its caption mentions it.

    Transparent images have no background, and their captions mention none.

    Args:
        seed: in [0, 2^64).
        split: one of `generated.SPLITS`.
        resolution: side of square images, or (height, width), each in [8, 4096].
        num_examples: number of examples, at least 1.
        bits: 8 or 16.
        transparent: whether images are RGBA without a background, see `render`.

    Raises:
        ConfigError: an argument is not as described.
    """

    MIN_RESOLUTION = 8  # below it the edges of the objects would fill the image

    def __init__(
        self,
        seed: int,
        split: str,
        resolution: int | Size,
        num_examples: int,
        bits: int = 8,
        transparent: bool = False,
    ) -> None:
        super().__init__(seed, split, resolution, num_examples, bits)
        self.transparent = transparent

    def __getitem__(self, index: SupportsIndex) -> Record:
        rng = self.rng(index)
        scene = self._scene(rng)
        image = render(scene, self.resolution, self.bits, self.transparent)
        return Record(image, self._captions(scene, rng), name=f"scene {index} of {self.split}")

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the single caption of example `index`."""
        rng = self.rng(index)
        return self._captions(self._scene(rng), rng)

    def objects(self, index: SupportsIndex) -> np.ndarray:
        """Returns the map of the objects of example `index`, see `object_map`."""
        return object_map(self.scene(index), self.resolution)

    def scene(self, index: SupportsIndex) -> Scene:
        """Returns the scene of example `index`."""
        return self._scene(self.rng(index))

    def description(self, index: SupportsIndex) -> Description:
        """Returns the description that caption `index` states in words."""
        rng = self.rng(index)
        return self._description(self._scene(rng), rng)

    def _scene(self, rng: np.random.Generator) -> Scene:
        scene = sample_scene(self.split, rng)
        return dataclasses.replace(scene, background=DEFAULT_BACKGROUND) if self.transparent else scene

    def _captions(self, scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
        return (sample_caption(self._description(scene, rng), rng),)

    def _description(self, scene: Scene, rng: np.random.Generator) -> Description:
        description = sample_description(scene, rng)
        return dataclasses.replace(description, background="") if self.transparent else description

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, transparent={self.transparent})"
