"""Inpainting by a model that was not trained for it: known pixels are kept in every step of a walk.

Both parts wrap what a walk is made of, a denoiser and a sampler, so that every sampler can inpaint.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import transition_coefs
from imagen_jax.diffusion.samplers import Sampler, SamplerState, StepInputs, gaussian_noise, map_x_hat
from imagen_jax.diffusion.schedules import alpha_from_logsnr


def keep_known(denoise_fn: Any, image: jax.Array, mask: jax.Array) -> Any:
    """Returns a denoiser that predicts the known pixels, outside of a mask, as they are.

    Samplers draw z_s from what the denoiser predicts, so that known pixels of z_s have the distribution of a noisy
    image for every sampler: for `ddpm` that of arXiv:2201.09865, Eq. 8a, and for samplers without noise that of one
    noise during the walk.

    Args:
        denoise_fn: see `samplers.Sampler.__call__`.
        image: [B, H, W, C] in [-1, 1].
        mask: [B, H, W, 1] in [0, 1]: 1 where pixels are to be drawn, 0 where they are known.
    """

    def keep(x_hat: jax.Array) -> jax.Array:
        # not by a weighted sum alone, which would round where nothing is drawn
        return jnp.where(mask == 0, image, mask * x_hat + (1 - mask) * image)

    return map_x_hat(denoise_fn, keep)


def resample(sampler: Sampler, repeats: int) -> Sampler:
    """Returns a sampler that takes each step several times, with the step's noise added again between (RePaint).

    What is drawn and what is known agree better with each time (arXiv:2201.09865, Section 4.2, jumps of length 1).

    Args:
        sampler: any sampler.
        repeats: how often each step is taken, at least 1.
    """

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        logsnr_t, logsnr_s = sampler.schedule.logsnr(numbers["t"]), sampler.schedule.logsnr(numbers["s"])
        _, renewed = transition_coefs(logsnr_t, logsnr_s)
        ratio = alpha_from_logsnr(logsnr_t) / alpha_from_logsnr(logsnr_s)
        sigma_t = sampler.schedule.sigma(numbers["t"])

        def again(index: jax.Array, z: jax.Array) -> jax.Array:
            own = jax.vmap(lambda key: jax.random.fold_in(key, index + 1))(keys)
            after = sampler.step(denoise_fn, state._replace(z=z), numbers, own)
            # q(z_t | z_s)
            noise = gaussian_noise(own, -numbers["index"], z.shape[1:])
            return ratio * after.z + sigma_t * jnp.sqrt(renewed) * noise

        z = jax.lax.fori_loop(0, repeats - 1, again, state.z)
        return sampler.step(denoise_fn, state._replace(z=z), numbers, keys)

    return dataclasses.replace(sampler, step=step, deterministic=sampler.deterministic and repeats == 1)
