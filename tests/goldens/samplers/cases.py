"""What our samplers, weights and grids and those of diffusers are both given: cases, noise, a denoiser, discrete times.

diffusers' times are the 1000 of a discrete process; ours are continuous. So that the very same formulas are compared,
ours walk here down a schedule that has diffusers' alphas_cumprod as its values, over diffusers' own times.
"""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import guidance, samplers
from imagen_jax.diffusion.process import PREDICTIONS, loss_weight
from imagen_jax.diffusion.schedules import Schedule, cosine
from imagen_jax.diffusion.timesteps import KARRAS_MAX, karras

BETAS = ("linear", "squaredcos_cap_v2")
STEPS = (5, 20, 50, 250)
TOLERANCE = 1e-4
SHAPE = (2, 1, 2, 2)
# That of a start and of every step. The stream of RandomState never changes.
NOISE = np.random.RandomState(0).standard_normal((1 + max(STEPS), *SHAPE)).astype(np.float32)
PERCENTILE = 95.0
GAMMA = 5.0
# A mixture of two Gaussians for each pixel, partly outside of [-1, 1], for thresholds to matter.
WEIGHTS, CENTRES, WIDTH = (0.3, 0.7), (-1.6, 0.4), 0.3

THRESHOLDS = {
    "ddpm static": guidance.static_threshold,
    "ddpm dynamic": functools.partial(guidance.dynamic_threshold, percentile=PERCENTILE),
}
SAMPLERS = {
    "ddpm small": samplers.ddpm,
    "ddpm large": functools.partial(samplers.ddpm, variance="large"),
    "ddpm learned": functools.partial(samplers.ddpm, variance="learned"),
    "ddpm static": samplers.ddpm,
    "ddpm dynamic": samplers.ddpm,
    "ddim eta 0": samplers.ddim,
    "ddim eta 1": functools.partial(samplers.ddim, eta=1.0),
    "dpm_solver": samplers.dpm_solver,
    "heun": samplers.heun,
}


def image(z, alpha, sigma, xp):
    """E[x | z_t] under the mixture; xp is numpy or jax.numpy."""
    variance = (alpha * WIDTH) ** 2 + sigma**2
    first, second = (z - alpha * centre for centre in CENTRES)
    share = 1 / (1 + xp.exp((second**2 - first**2) / (2 * variance) + math.log(WEIGHTS[0] / WEIGHTS[1])))
    gain = alpha * WIDTH**2 / variance
    return (1 - share) * (CENTRES[0] + gain * first) + share * (CENTRES[1] + gain * second)


def variance_share(z, xp):
    """What a network with a learned variance says of it, in [-1, 1]."""
    return xp.cos(3 * z)


def timesteps(name, steps, alphas_cumprod):
    """The indices into alphas_cumprod of each step, falling: "leading" ones of the one-step samplers, and for the
    others evenly from the noise level at which Karras' grid begins."""
    if name.startswith("dd"):
        return np.arange(steps)[::-1] * (len(alphas_cumprod) // steps)
    last = np.flatnonzero(logsnr_of(alphas_cumprod) >= -2 * math.log(KARRAS_MAX))[-1]
    return np.linspace(0, last, steps).round()[::-1].astype(int)


def logsnr_of(alphas_cumprod):
    alphas_cumprod = np.float64(alphas_cumprod)
    return np.log(alphas_cumprod / (1 - alphas_cumprod))


def discrete(table):
    """The schedule whose logsnr at the times 0, 1/1000, ..., 1 is the table."""
    count = len(table) - 1
    return Schedule(
        "discrete",
        lambda t: table[jnp.round(jnp.asarray(t) * count).astype(int)],
        lambda logsnr: jnp.interp(-logsnr, -table, jnp.arange(count + 1) / count),
    )


@functools.cache
def program(name, steps):
    """The compiled sampler, and the list that every z which the denoiser is asked about is added to."""
    threshold = THRESHOLDS.get(name, lambda x: x)
    seen = []

    def sample(z, table, times):
        schedule = discrete(table)

        def denoise(z, t):
            jax.debug.callback(lambda z: seen.append(np.asarray(z)), z, ordered=True)
            x_hat = threshold(image(z, schedule.alpha(t), schedule.sigma(t), jnp))
            return (x_hat, variance_share(z, jnp)) if name == "ddpm learned" else x_hat

        return SAMPLERS[name](denoise, z, None, schedule, steps, grid=lambda *_: times)

    return jax.jit(sample, compiler_options={"xla_backend_optimization_level": 0}), seen


def ours(name, steps, alphas_cumprod):
    """Every z that our sampler asks the denoiser about, and its result, [calls + 1, *SHAPE]."""
    # time (i + 1) / 1000 has the signal alphas_cumprod[i]; time 0 is clean
    table = np.float32([60.0, *logsnr_of(alphas_cumprod)])
    times = np.float32([*timesteps(name, steps, alphas_cumprod) + 1, 0]) / np.float32(len(alphas_cumprod))
    compiled, seen = program(name, steps)
    seen.clear()
    with mock.patch.object(samplers, "noise", lambda keys, step, shape: jnp.asarray(NOISE)[step]):
        x = np.asarray(compiled(NOISE[0], table, times))
    jax.effects_barrier()
    return np.stack([*seen, x])


def min_snr(alphas_cumprod):
    """Our min-SNR weights at each of diffusers' times, for each kind of prediction, [kinds, 1000]."""
    logsnr = np.float32(logsnr_of(alphas_cumprod))
    settings = {"bias": 0.0, "min_snr_gamma": GAMMA, "sigma_data": 0.5}
    return np.stack([loss_weight(logsnr, kind, "min_snr", **settings) for kind in PREDICTIONS])


def karras_levels(steps):
    """ln(sigma / alpha) at all times of our grid but the last, which is clean."""
    schedule = cosine()
    return np.asarray(schedule.logsnr(karras(schedule, steps)[:-1])) / -2
