"""The `shapes` data set as a source."""

import dataclasses
import operator
from typing import SupportsIndex

import numpy as np

from imagen_jax.data.record import Record
from imagen_jax.datasets.shapes.captions import sample_caption
from imagen_jax.datasets.shapes.descriptions import Description, sample_description
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scene_sampling import sample_scene
from imagen_jax.datasets.shapes.scenes import SPLITS, DEFAULT_BACKGROUND, Scene
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, dtype_of, said, size_of

MIN_RESOLUTION = 8  # below it the things' edges alone would fill the picture
MAX_RESOLUTION = 4096


class ShapesSource:
    """Pictures of shapes, as of ``render``, and their captions, lower-case ASCII of at most 96 bytes; made on the spot.

    Example i is a pure function of (seed, split, i), and its picture of the resolution and the bits too: the scene and
    the caption are the same at all of them, so the stages of a cascade can be trained on the same examples.

    'train' and 'validation' draw from one distribution, but from separate random streams, so no scene of one comes up
    in the other. Neither ever shows a (colour, shape) of scenes.HELD_OUT_LOOKS nor a (shape, relation, shape) of
    scenes.HELD_OUT_RELATIONS. Every scene of 'held_out' shows at least one of them, and its caption says it.

    Pictures that are transparent have no background, and their captions say none.
    """

    def __init__(
        self,
        seed: int,
        split: str,
        resolution: int | Size,
        size: int,
        bits: int = 8,
        transparent: bool = False,
    ):
        """The first `size` examples of a split, their pictures as `render` draws them.

        Raises:
          UsageError: a ValueError; seed outside [0, 2^64), a split not in SPLITS, a resolution outside [8, 4096], a
            size below 1, or bits other than 8 and 16.
        """
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed {seed} is not in [0, 2^64)")
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} is none of {', '.join(SPLITS)}")
        height_width = size_of(resolution, "resolution")
        if not all(MIN_RESOLUTION <= side <= MAX_RESOLUTION for side in height_width):
            raise ConfigError(
                f"resolution {said(height_width)} is not a whole number in [{MIN_RESOLUTION}, {MAX_RESOLUTION}]"
            )
        if not isinstance(size, SupportsIndex) or size < 1:
            raise ConfigError(f"size {size} is not a whole number of at least 1")
        dtype_of(bits, "bits")
        self.seed, self.split, self.resolution, self.size = seed, split, height_width, size
        self.bits, self.transparent = bits, transparent

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> Record:
        rng = self._rng(index)
        scene = self._scene(rng)
        image = render(scene, self.resolution, self.bits, self.transparent)
        return Record(image, self._captions(scene, rng), name=f"scene {index} of {self.split}")

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The one caption of example `index`."""
        rng = self._rng(index)
        return self._captions(self._scene(rng), rng)

    def scene(self, index: SupportsIndex) -> Scene:
        """What picture `index` shows."""
        return self._scene(self._rng(index))

    def description(self, index: SupportsIndex) -> Description:
        """What caption `index` claims."""
        rng = self._rng(index)
        return self._description(self._scene(rng), rng)

    def _scene(self, rng: np.random.Generator) -> Scene:
        scene = sample_scene(self.split, rng)
        return dataclasses.replace(scene, background=DEFAULT_BACKGROUND) if self.transparent else scene

    def _captions(self, scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
        return (sample_caption(self._description(scene, rng), rng),)

    def _description(self, scene: Scene, rng: np.random.Generator) -> Description:
        description = sample_description(scene, rng)
        return dataclasses.replace(description, background="") if self.transparent else description

    def _rng(self, index: SupportsIndex) -> np.random.Generator:
        i = operator.index(index)
        if not 0 <= i < self.size:
            raise IndexError(f"index {i} is outside [0, {self.size}) of {self!r}")
        # Philox is keyed, not seeded: no hashing, and no two (seed, i, split) share a stream. The split sits in the
        # counter's highest word, which an example's few draws never reach.
        key = np.array([self.seed, i], np.uint64)
        counter = np.array([0, 0, 0, SPLITS.index(self.split)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def __repr__(self) -> str:
        return (
            f"ShapesSource(seed={self.seed}, split={self.split!r}, resolution={said(self.resolution)}, "
            f"size={self.size}, bits={self.bits}, transparent={self.transparent})"
        )
