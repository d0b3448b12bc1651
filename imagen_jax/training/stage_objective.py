"""What the objectives of all stages that read text have in common: their batches, and how captions are dropped."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.images.array import scale_size
from imagen_jax.images.resize import resize
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.text import null_text
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.text.tokenizer import FEATURE_AXES
from imagen_jax.training.objective import Batch

TRAINING_AXES = {"image": IMAGE, **FEATURE_AXES}


@dataclasses.dataclass(frozen=True)
class StageObjective:
    """The part of a stage's `Objective` that does not depend on the kind of the stage.

    Its frozen network is the text encoder.

    Attributes:
        stage: the stage to train.
        encoder: the frozen text encoder.
    """

    stage: Stage
    encoder: TextEncoder

    @property
    def batch_axes(self) -> Any:
        """The names of the axes of a batch's arrays, see `diffusion.make_diffusion_batch`."""
        config = self.stage.config
        objects = {"objects": IMAGE} if config.inpainting.needs_objects else {}
        return TRAINING_AXES | objects | ({"keep": VECTOR} if config.diffusion.never_dropped else {})

    def with_mesh(self, mesh: Mesh) -> Self:
        """Returns the objective with a network that shards its activations."""
        return dataclasses.replace(self, stage=self.stage.with_mesh(mesh))

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the stage's network."""
        return self.stage.init(key)


def draw_text(stage: Stage, encoder: TextEncoder, encoder_params: Any, batch: Batch, key: jax.Array) -> TextCondition:
    """Returns the text of a batch, see `diffusion.make_diffusion_batch`, with random captions dropped."""
    text = encode_text(encoder, encoder_params, batch)
    dropped = null_text(stage.config.diffusion.null_text, encoder, encoder_params)
    return replace_text(text, dropped, dropped_captions(key, batch, stage.config.diffusion.cond_drop_prob))


def encode_text(encoder: TextEncoder, encoder_params: Any, batch: Batch) -> TextCondition:
    """Returns the text of a batch, see `diffusion.make_diffusion_batch`, with all captions."""
    return TextCondition(encoder.encode(encoder_params, batch["tokens"], batch["mask"]), batch["mask"])


def dropped_captions(key: jax.Array, batch: Batch, rate: float) -> jax.Array:
    """Returns which captions are dropped for classifier-free guidance (arXiv:2205.11487, Section 2.2), bool [B].

    Args:
        key: decides which ones.
        batch: `mask` [B, L]; `keep` bool [B], which ones are never dropped, if there are such.
        rate: probability of each other caption.
    """
    drop = jax.random.bernoulli(key, rate, (len(batch["mask"]),))
    return drop & ~batch["keep"] if "keep" in batch else drop


def replace_text(text: TextCondition, dropped: TextCondition, drop: jax.Array) -> TextCondition:
    """Replaces captions by the null text.

    Args:
        text: embeddings [B, L, D] and mask [B, L].
        dropped: the null text, embeddings [L, D] and mask [L].
        drop: which captions, bool [B].

    Returns:
        Embeddings [B, L, D] and mask [B, L].
    """
    embeddings, mask = text
    null_embeddings, null_mask = dropped
    embeddings = jnp.where(drop[:, None, None], null_embeddings.astype(embeddings.dtype), embeddings)
    return TextCondition(embeddings, jnp.where(drop[:, None], null_mask, mask))


def draw_low_res(stage: Stage, key: jax.Array, x: jax.Array, low_res: jax.Array | None = None) -> dict[str, jax.Array]:
    """Returns the low-resolution condition of targets, at random augmentation levels.

    Args:
        stage: the stage to train.
        key: decides the levels and the noise.
        x: the targets [B, H, W, C]; of a crop the condition is the same crop.
        low_res: the images [B, h, w, C]; None for the targets, downsampled by the factor of full images.
    """
    level_key, noise_key = jax.random.split(key)
    if low_res is None:
        low_res = resize(x, *scale_size(x.shape[1:3], stage.image_shape[:2], stage.low_res_shape[:2]))
    level = stage.aug_schedule.round_up(stage.aug_levels.sample(level_key, x.shape[0], stage.aug_schedule))
    return stage.augment_low_res(low_res, level, jax.random.normal(noise_key, stage.aug_noise_shape(low_res)))
