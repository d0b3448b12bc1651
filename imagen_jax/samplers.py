"""Samplers: from noise z_1 to an image, by a function that says which image it sees in z_t.

A sampler takes ``denoise_fn(z [B, ...], t scalar) -> x_hat [B, ...]``, with guidance and thresholding inside, and one
key per sample: the noise of a sample depends on its own key alone, not on the batch, the mesh or the host.
Each is a ``lax.scan`` over its steps: traced once, compiled as one program, whatever the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import eps_from_x
from imagen_jax.errors import UsageError
from imagen_jax.schedules import Schedule

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
Sampler = Callable[[DenoiseFn, jax.Array, jax.Array, Schedule, int], jax.Array]


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One key per sample, [B]: a function of (seed, index of the sample) alone."""
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def noise(keys: jax.Array, step: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gaussian noise [B, *shape] of a step, a sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def time_grid(steps: int) -> tuple[jax.Array, jax.Array]:
    """(t, s) of each step, both [steps]: from t to s < t, uniform from 1 to 0. Raises UsageError if steps < 1."""
    if steps < 1:
        raise UsageError(f"steps {steps} is too few to sample: give at least 1")
    times = jnp.linspace(1.0, 0.0, steps + 1)
    return times[:-1], times[1:]


def noise_shares(schedule: Schedule, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(kept, renewed): exp(logsnr_t - logsnr_s) and 1 minus it, each exact in float32 where the other is nearly 1."""
    fall = schedule.logsnr(t) - schedule.logsnr(s)
    return jnp.exp(fall), -jnp.expm1(fall)


def ddpm(denoise_fn: DenoiseFn, z: jax.Array, keys: jax.Array, schedule: Schedule, steps: int) -> jax.Array:
    """Ancestral sampling with the posterior's variance (arXiv:2006.11239, Alg. 2; Eq. 3 of arXiv:2205.11487).

    Args:
        denoise_fn: see the module.
        z: [B, ...] standard Gaussian noise.
        keys: [B] one key per sample.
        schedule: the noise schedule to walk down.
        steps: how many calls of ``denoise_fn``.

    Returns:
        [B, ...] samples.
    """
    t, s = time_grid(steps)

    def step(z: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, t, s = now
        alpha_t, alpha_s, sigma_s = schedule.alpha(t), schedule.alpha(s), schedule.sigma(s)
        x_hat = denoise_fn(z, t)
        kept, renewed = noise_shares(schedule, t, s)
        # mean of q(z_s | z_t, x_hat)
        mean = kept * (alpha_s / alpha_t) * z + renewed * alpha_s * x_hat
        # its standard deviation
        deviation = sigma_s * jnp.sqrt(renewed)
        return mean + deviation * noise(keys, index, z.shape[1:]), None

    return jax.lax.scan(step, z, (jnp.arange(1, steps + 1), t, s))[0]


def ddim(
    denoise_fn: DenoiseFn, z: jax.Array, keys: jax.Array, schedule: Schedule, steps: int, eta: float = 0.0
) -> jax.Array:
    """DDIM: deterministic at eta = 0, with DDPM's noise at eta = 1 (arXiv:2010.02502, Eq. 12 and 16).

    Arguments and result as for ``ddpm``.
    """
    t, s = time_grid(steps)

    def step(z: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, t, s = now
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
        x_hat = denoise_fn(z, t)
        eps_hat = eps_from_x(x_hat, z, alpha_t, sigma_t)
        if eta == 0:
            return alpha_s * x_hat + sigma_s * eps_hat, None
        kept, renewed = noise_shares(schedule, t, s)
        # Eq. 16: how much of z_s's noise is drawn anew, and how much still points to z_t
        fresh = eta * sigma_s * jnp.sqrt(renewed)
        direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * kept)
        # Eq. 12: the predicted image, the direction that points to z_t, and fresh noise
        return alpha_s * x_hat + direction * eps_hat + fresh * noise(keys, index, z.shape[1:]), None

    return jax.lax.scan(step, z, (jnp.arange(1, steps + 1), t, s))[0]


def by_name(name: str, eta: float) -> Sampler:
    """The sampler of that name. Raises UsageError if there is none."""
    match name:
        case "ddpm":
            return ddpm
        case "ddim":
            if not 0 <= eta <= 1:
                raise UsageError(f"eta {eta} is not in [0, 1]: 0 is deterministic, 1 has DDPM's noise")
            return lambda denoise_fn, z, keys, schedule, steps: ddim(denoise_fn, z, keys, schedule, steps, eta)
    raise UsageError(f"sampler {name!r} is not known: choose ddpm or ddim")
