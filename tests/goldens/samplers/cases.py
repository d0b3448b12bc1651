"""Inputs shared by our samplers and those of diffusers: cases, noise, a denoiser, and discrete times.

diffusers has the 1000 times of a discrete process; ours are continuous. To compare the same formulas, our samplers use
a schedule with the values of diffusers' alphas_cumprod, and diffusers' own times.
"""

import functools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import guidance, samplers
from imagen_jax.diffusion.process import PREDICTION_TYPES, loss_weight
from imagen_jax.diffusion.schedules import Schedule, cosine
from imagen_jax.diffusion.timesteps import KARRAS_MAX, karras

BETAS = ("linear", "squaredcos_cap_v2")
STEPS = (5, 20, 50, 250)
TOLERANCE = 1e-4
SHAPE = (2, 1, 2, 2)
# Noise of the start and of every step. The stream of RandomState never changes.
NOISE = np.random.RandomState(0).standard_normal((1 + max(STEPS), *SHAPE)).astype(np.float32)
PERCENTILE = 95.0
GAMMA = 5.0
# A mixture of two Gaussians for each pixel, partly outside [-1, 1], so that thresholds have an effect.
WEIGHTS, CENTERS, WIDTH = (0.3, 0.7), (-1.6, 0.4), 0.3

THRESHOLDS = {
    "ddpm static": guidance.static_threshold,
    "ddpm dynamic": functools.partial(guidance.dynamic_threshold, percentile=PERCENTILE),
}
SAMPLERS = {
    "ddpm small": samplers.ddpm,
    "ddpm large": functools.partial(samplers.ddpm, variance_type="large"),
    "ddpm learned": functools.partial(samplers.ddpm, variance_type="learned"),
    "ddpm static": samplers.ddpm,
    "ddpm dynamic": samplers.ddpm,
    "ddim eta 0": samplers.ddim,
    "ddim eta 1": functools.partial(samplers.ddim, eta=1.0),
    "dpm_solver": samplers.dpm_solver,
    "heun": samplers.heun,
}


def image(z, alpha, sigma, xp):
    """Returns E[x | z_t] under the mixture; xp is numpy or jax.numpy."""
    variance = (alpha * WIDTH) ** 2 + sigma**2
    first, second = (z - alpha * center for center in CENTERS)
    responsibility = 1 / (1 + xp.exp((second**2 - first**2) / (2 * variance) + math.log(WEIGHTS[0] / WEIGHTS[1])))
    gain = alpha * WIDTH**2 / variance
    return (1 - responsibility) * (CENTERS[0] + gain * first) + responsibility * (CENTERS[1] + gain * second)


def variance_share(z, xp):
    """Returns the v of a network with learned variances, in [-1, 1]."""
    return xp.cos(3 * z)


def timesteps(name, steps, alphas_cumprod):
    """Returns decreasing indices into alphas_cumprod: "leading" for ddpm and ddim, otherwise evenly spaced from the
    noise level at which Karras' schedule begins."""
    if name.startswith("dd"):
        return np.arange(steps)[::-1] * (len(alphas_cumprod) // steps)
    last = np.flatnonzero(logsnr_of(alphas_cumprod) >= -2 * math.log(KARRAS_MAX))[-1]
    return np.linspace(0, last, steps).round()[::-1].astype(int)


def logsnr_of(alphas_cumprod):
    alphas_cumprod = np.float64(alphas_cumprod)
    return np.log(alphas_cumprod / (1 - alphas_cumprod))


def discrete(table):
    """Returns the schedule whose logsnr at the times 0, 1/1000, ..., 1 is the table."""
    count = len(table) - 1
    return Schedule(
        "discrete",
        lambda t: table[jnp.round(jnp.asarray(t) * count).astype(int)],
        lambda logsnr: jnp.interp(-logsnr, -table, jnp.arange(count + 1) / count),
    )


@functools.cache
def program(name, steps):
    """Returns the compiled sampler, and the list to which it appends all inputs z of the denoiser."""
    threshold = THRESHOLDS.get(name, lambda x: x)
    trajectory = []

    def sample(z, table, times):
        schedule = discrete(table)

        def denoise(z, t):
            jax.debug.callback(lambda z: trajectory.append(np.asarray(z)), z, ordered=True)
            x_hat = threshold(image(z, schedule.alpha(t), schedule.sigma(t), jnp))
            return (x_hat, variance_share(z, jnp)) if name == "ddpm learned" else x_hat

        return SAMPLERS[name](schedule)(denoise, z, times, None)

    return jax.jit(sample, compiler_options={"xla_backend_optimization_level": 0}), trajectory


def ours(name, steps, alphas_cumprod):
    """Returns all denoiser inputs of our sampler, and its result, [calls + 1, *SHAPE]."""
    # time (i + 1) / 1000 has the signal alphas_cumprod[i]; time 0 is clean
    table = np.float32([60.0, *logsnr_of(alphas_cumprod)])
    times = np.float32([*timesteps(name, steps, alphas_cumprod) + 1, 0]) / np.float32(len(alphas_cumprod))
    compiled, trajectory = program(name, steps)
    trajectory.clear()
    with mock.patch.object(samplers, "gaussian_noise", lambda keys, step, shape: jnp.asarray(NOISE)[step]):
        x = np.asarray(compiled(NOISE[0], table, times))
    jax.effects_barrier()
    return np.stack([*trajectory, x])


def min_snr(alphas_cumprod):
    """Returns our min-SNR weights at diffusers' times for each prediction type, [types, 1000]."""
    logsnr = np.float32(logsnr_of(alphas_cumprod))
    settings = {"bias": 0.0, "min_snr_gamma": GAMMA, "sigma_data": 0.5}
    return np.stack([loss_weight(logsnr, name, "min_snr", **settings) for name in PREDICTION_TYPES])


def karras_levels(steps):
    """Returns ln(sigma / alpha) at all times of our schedule but the last, which is clean."""
    schedule = cosine()
    return np.asarray(schedule.logsnr(karras(schedule, steps)[:-1])) / -2
