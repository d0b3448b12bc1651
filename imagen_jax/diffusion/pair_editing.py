"""Editing by pairs: a known image is walked with its own text, and beside it the one that is edited, with another.

Examples come in pairs: at even rows of a batch are the sources, and after each the one that is edited. As in
`inpainting.py`, a denoiser is wrapped, so that every sampler can edit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers import map_x_hat


def edit_pairs(denoise_fn: Any, image: jax.Array, threshold: jax.Array, spread: int, clips: bool = True) -> Any:
    """Returns a denoiser that predicts sources as they are, and edited images by what their text changes.

    The error of the source's prediction, which is known, is taken from that of the edited image (virtual inversion,
    arXiv:2312.04965, Alg. 1): with equal texts, the image comes back. Where the difference of both predictions is
    small, the edited image is the source: a mask from the contrast of two texts (arXiv:2210.11427, Section 3.2), made
    anew in each step (local blend, arXiv:2208.01626, Section 5).

    Args:
        denoise_fn: see `samplers.Sampler.__call__`.
        image: [B, H, W, C] in [-1, 1]: the sources, at even rows.
        threshold: [B]: the share of the largest difference in an image below which nothing is changed; 0 for none.
        spread: pixels by which the mask is wider, so that soft edges are within it.
        clips: whether edited images are clipped to [-1, 1]; latents have no range.
    """
    rows = jnp.arange(len(image))
    is_source = (rows % 2 == 0)[:, None, None, None]
    known = image[rows - rows % 2]

    def edit(x_hat: jax.Array) -> jax.Array:
        change = x_hat - x_hat[rows - rows % 2]
        changed = _change_mask(change, threshold, spread)
        edited = jnp.clip(known + change, -1.0, 1.0) if clips else known + change
        return jnp.where(is_source | ~changed, known, edited)

    return map_x_hat(denoise_fn, edit)


def _change_mask(change: jax.Array, threshold: jax.Array, spread: int) -> jax.Array:
    """Returns where a change [B, H, W, C] is at least a share of its largest value, bool [B, H, W, 1]."""
    size = jnp.abs(change).mean(axis=-1, keepdims=True)
    mask = size >= threshold[:, None, None, None] * size.max(axis=(1, 2), keepdims=True)
    window = (1, 2 * spread + 1, 2 * spread + 1, 1)
    return jax.lax.reduce_window(mask, False, jax.lax.bitwise_or, window, (1, 1, 1, 1), "SAME")
