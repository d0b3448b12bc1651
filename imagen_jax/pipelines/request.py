"""What is asked of a pipeline, and what it tells of its progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np

from imagen_jax.diffusion.keys import check_seed
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size, to_uint
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.sampling import Pairs
from imagen_jax.stages.stage_sampler import STEPS_PER_CALL


@dataclasses.dataclass(frozen=True)
class StageStart:
    """What a stage begins with in place of noise alone; arrays are [N, ...], of the images of a request.

    Attributes:
        image: float32 [N, H, W, C] in [-1, 1], of the stage's size; None for none.
        mask: float32 [N, H, W, 1] in [0, 1]: 1 where pixels are drawn anew, 0 where those of `image` are kept; None for
            everywhere.
        strength: in [0, 1]: how much noise the image gets at first, and which share of the steps is taken. At 1 it is
            noise alone; at 0 the image is returned.
        resample: how often each step is taken, see `inpainting.resample`.
        z: the noise [N, H, W, C], or for a VAE the latents [N, D], in place of those of the seed; None for these.
        before: for `bdia`, z [N, H, W, C] at the second time, as an inversion has left it; None if it is not known.
        pairs: how images are edited, each beside its source, arrays of NumPy; None for no editing.
        positions: see `StageRequest`, float32 [N, ...]; None to spread pixels evenly.
    """

    image: np.ndarray | None = None
    mask: np.ndarray | None = None
    strength: float = 1.0
    resample: int = 1
    z: np.ndarray | None = None
    before: np.ndarray | None = None
    pairs: Pairs | None = None
    positions: Mapping[str, np.ndarray] | None = None


class Rows(Protocol):
    """An array [N, ...], or one that is read from files batch by batch."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the full array."""

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """Returns some rows; in a multi-host run, all processes ask for the same."""


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """What to sample.

    Attributes:
        texts: of N images.
        seed: of the noise; or a seed for each image, which then has the index `first_index` among the samples of its
            own seed, wherever it is in the request.
        batch_size: images to sample at once.
        guidance_scale: float [stages, N], in place of the scales of the configs; None for those.
        size: (height, width) of the last stage's images; None for those of its config.
        first_index: the index of the first sample; the noise of a sample is a function of its seed and index.
        only: the position of the one image that is wanted; None for all. The others fill its batch: it is sampled as
            an image was before, in a batch of the same size, and so equal to the bit.
        isolated: whether each image is computed by itself, and so equal to the bit in any batch, see `StageRequest`;
            slower where devices need batches to be busy.
        steps_per_call: steps between two calls of a callback; images do not depend on it.
        starts: what each stage begins with; none for noise alone.
        low_res: float32 [N, h, w, C] in [-1, 1]: images that the stage `first_stage` enlarges, such as those of
            `ImagenPipeline.iter_low_res`; None if that is the base stage.
        first_stage: index of the stage to begin with.
        last_stage: index of the stage to end with; None for that of the cascade.
    """

    texts: Texts
    seed: int | Sequence[int] = 0
    batch_size: int = 64
    guidance_scale: np.ndarray | None = None
    size: Size | None = None
    first_index: int = 0
    only: int | None = None
    isolated: bool = False
    steps_per_call: int = STEPS_PER_CALL
    starts: Sequence[StageStart] = ()
    low_res: Rows | None = None
    first_stage: int = 0
    last_stage: int | None = None

    def start(self, stage: int) -> StageStart:
        """Returns what the stage of an index begins with."""
        return self.starts[stage] if self.starts else StageStart()

    @property
    def positions(self) -> Sequence[int]:
        """The positions of the images that are wanted."""
        return range(len(self.texts.prompts)) if self.only is None else [self.only]

    def noise(self, position: int) -> tuple[int, int]:
        """Returns the seed and the index that decide the noise of the image at a position, or of padding after it."""
        if not isinstance(self.seed, Sequence):
            return self.seed, self.first_index + position
        return self.seed[position] if position < len(self.seed) else 0, self.first_index

    def check_seeds(self) -> None:
        """Raises ConfigError if a seed is out of range, or there is another number of them than images."""
        if not isinstance(self.seed, Sequence) or isinstance(self.seed, str):
            check_seed(self.seed)
            return
        if len(self.seed) != len(self.texts.prompts):
            raise ConfigError(
                f"seed has {len(self.seed)} values for {len(self.texts.prompts)} images: give one for all, or one for "
                "each"
            )
        for seed in self.seed:
            check_seed(seed)

    def number(self, position: int) -> int:
        """Returns the number in the name of an image's file: that of its sample; counted, if images have own seeds."""
        number = self.positions.index(position) if isinstance(self.seed, Sequence) else position
        return self.first_index + number


@dataclasses.dataclass(frozen=True)
class SamplingProgress:
    """Where a pipeline is; given to a `callback`, during which alone `preview` may be called.

    Attributes:
        stage: index of the stage.
        step: steps taken by it for this batch.
        steps: steps in all.
        first: index of the batch's first image in the request.
        count: images of the batch.
        x_hat: the current prediction of the images, on the device, float [B, H, W, C] with B ≥ count.
    """

    stage: int
    step: int
    steps: int
    first: int
    count: int
    x_hat: jax.Array

    def preview(self) -> np.ndarray:
        """Returns the current prediction of the images, uint8 [count, H, W, C]."""
        return multihost.all_gather(to_uint(self.x_hat, np.dtype(np.uint8)))[: self.count]


Callback = Callable[[SamplingProgress], None]
