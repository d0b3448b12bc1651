"""What a stage's network sees beside the image and its text in sampling, and the keys of all noise in it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import samplers
from imagen_jax.stages.stage import Stage


def split_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns keys [B] for the first z, for the steps, and for the augmentation of the low-resolution images."""
    start_keys, step_keys, aug_keys = jnp.unstack(jax.vmap(functools.partial(jax.random.split, num=3))(keys), axis=1)
    return start_keys, step_keys, aug_keys


def low_res_condition(
    stage: Stage, low_res: jax.Array, level: jax.Array | float, keys: jax.Array
) -> dict[str, jax.Array]:
    """Returns the low-resolution condition of images [B, h, w, C] at one augmentation level."""
    noise = samplers.gaussian_noise(keys, 0, stage.aug_noise_shape(low_res)[1:])
    return stage.augment_low_res(low_res, jnp.full(low_res.shape[:1], level, jnp.float32), noise)


def start_condition(
    stage: Stage,
    shape: tuple[int, ...],
    low_res: jax.Array | None,
    level: jax.Array | float,
    keys: jax.Array,
    known: dict[str, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """Returns what a stage's network sees, besides z, during a walk.

    Args:
        stage: the stage.
        shape: (B, H, W, C) of the images to sample, or of their latents.
        low_res: images [B, h, w, C] that a super-resolution stage enlarges; None for a base stage.
        level: their augmentation level.
        keys: keys [B] for their noise.
        known: see `Conditions`; None to sample full images. A stage that is not trained to inpaint does not see it.
    """
    condition = {} if low_res is None else low_res_condition(stage, low_res, level, keys)
    if stage.masks is None:
        return condition
    return condition | (stage.unknown(shape) if known is None else stage.mask_known(**known))
