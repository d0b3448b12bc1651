"""The diffusion objective: what a stage is trained to do; all randomness of a step is drawn in one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import sample_timesteps
from imagen_jax.images.array import to_float
from imagen_jax.stages.loss import DIFFUSION_BATCH_AXES, DiffusionBatch, Losses, diffusion_loss
from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.objective import Batch, Metrics
from imagen_jax.training.stage_objective import StageObjective, draw_low_res, draw_text

# equal bins of the noise level in [0, 1] by which losses are reported; the last is almost pure noise
NOISE_BINS = 5
_MASK_KEY = 2**16  # folded into a step's key; the others are split from it, with small numbers


class DiffusionObjective(StageObjective):
    """The objective of a stage that denoises; see `StageObjective`."""

    example_axes: ClassVar[Any] = DIFFUSION_BATCH_AXES

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> DiffusionBatch:
        """Returns the examples of a batch; `networks` are the encoder's parameters. See `make_diffusion_batch`."""
        return make_diffusion_batch(self.stage, self.encoder, networks, batch, key)

    def loss(self, params: Any, networks: Any, examples: DiffusionBatch) -> Losses:
        """Returns the loss of each example, see `diffusion_loss`."""
        return diffusion_loss(self.stage, params, examples)

    def metrics(self, batch: Batch, losses: Losses) -> Metrics:
        """Returns scalars, and two arrays from `loss_by_noise_bin`.

        `full_captions` is the fraction of captions that use every token position: truncated ones, and those that just
        fit. `bound_bits` is the variational bound, if variances are learned.
        """
        metrics = {"full_captions": jnp.mean(batch["mask"][:, -1]), **loss_by_noise_bin(losses)}
        return metrics if losses.vlb is None else {**metrics, "bound_bits": jnp.mean(losses.vlb)}


def make_diffusion_batch(
    stage: Stage, encoder: TextEncoder, encoder_params: Any, batch: Batch, key: jax.Array
) -> DiffusionBatch:
    """Returns the examples of a batch at random times, with all randomness of the step drawn.

    Args:
        stage: the stage to train.
        encoder: the frozen text encoder.
        encoder_params: its parameters.
        batch: `image` uint8 or uint16 [B, H, W, C], full images or crops; `tokens` int32 [B, L], or embeddings
            [B, L, D] from a cache; `mask` bool [B, L]; `objects` [B, H, W, 1] if masks are drawn of them; `keep`
            bool [B] if some captions are never dropped.
        key: the key of the step.
    """
    return noised_examples(stage, batch, key, lambda key: draw_text(stage, encoder, encoder_params, batch, key))


def noised_examples(
    stage: Stage, batch: Batch, key: jax.Array, text_of: Callable[[jax.Array], Any], low_res: jax.Array | None = None
) -> DiffusionBatch:
    """Returns the examples of a batch, see `make_diffusion_batch`, with their text from a function.

    Args:
        stage: the stage to train.
        batch: as there.
        key: the key of the step.
        text_of: returns the text of the examples for the key by which captions are dropped.
        low_res: the low-resolution images [B, h, w, C]; None for the images of the batch, downsampled.
    """
    time_key, noise_key, drop_key, aug_key, dropout_key = jax.random.split(key, 5)
    x = to_float(batch["image"])
    text = text_of(drop_key)
    condition = draw_low_res(stage, aug_key, x, low_res) if stage.is_super_resolution else {}
    if stage.config.inpainting.enabled:
        condition |= _known_condition(stage, jax.random.fold_in(key, _MASK_KEY), x, batch.get("objects"))

    t = stage.schedule.round_up(sample_timesteps(time_key, x.shape[0]))
    dropout_keys = jax.random.split(dropout_key, x.shape[0]) if stage.config.model.dropout else None
    eps = jax.random.normal(noise_key, (len(x), *stage.z_shape(x.shape[1:3])))
    return DiffusionBatch(x, text, condition, t, eps, dropout_keys)


def loss_by_noise_bin(losses: Losses) -> Metrics:
    """Returns sums `band_losses` and counts `band_counts` of losses [NOISE_BINS]; a bin may have no example."""
    bin_index = jnp.clip((losses.noise_level * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
    members = bin_index[:, None] == jnp.arange(NOISE_BINS)
    # selected, not multiplied by 0, so that a NaN stays in its own bin
    sums = jnp.sum(jnp.where(members, losses.loss[:, None], 0.0), axis=0)
    return {"band_losses": sums, "band_counts": jnp.sum(members, axis=0)}


def _known_condition(stage: Stage, key: jax.Array, x: jax.Array, objects: jax.Array | None) -> dict[str, jax.Array]:
    """Returns what a stage that inpaints sees of targets x [B, H, W, C], outside of random masks.

    `objects` are maps of their objects [B, H, W, 1], or None.
    """
    assert stage.masks is not None
    size, maps = (x.shape[1], x.shape[2]), None if objects is None else objects[..., 0]
    return stage.mask_known(x, stage.masks.sample(jax.random.split(key, x.shape[0]), size, maps))
