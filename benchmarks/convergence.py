"""Measure the order of convergence of the deterministic samplers: `python -m benchmarks.convergence`.

The denoiser is the exact one of a mixture of two Gaussians, whose probability flow is known: it preserves quantiles.
Prints p of error ~ steps^-p for each schedule, spacing of times and sampler, from 64, 128 and 256 steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from scipy.special import ndtr

from benchmarks import app
from imagen_jax import diffusion
from imagen_jax.cli.flags import CommandFlags

_CENTERS, _WEIGHTS, _WIDTH = np.array([-1.0, 0.5]), np.array([0.3, 0.7]), 0.3
_SCHEDULES = ("cosine", "linear", "sigmoid")
_SAMPLERS = {"ddim": diffusion.ddim, "dpm_solver": diffusion.dpm_solver, "heun": diffusion.heun}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_list("steps", ["64", "128", "256"], "Numbers of steps to fit the order to.", flag_values=values)
    flags.DEFINE_integer("samples", 256, "Samples whose mean error is measured.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the table of orders."""
    steps = [int(count) for count in args.steps]
    print("| schedule | spacing |", " | ".join(_SAMPLERS), "|")
    print("|---|---|---|---|---|")
    for schedule, spacing in itertools.product(_SCHEDULES, diffusion.TIMESTEP_SPACINGS):
        orders = [_order(name, schedule, spacing, steps, args.samples) for name in _SAMPLERS]
        print(f"| {schedule} | {spacing} |", " | ".join(f"{order:.2f}" for order in orders), "|")


def _order(sampler: str, schedule: str, spacing: str, steps: list[int], count: int) -> float:
    """Returns the exponent p of error ~ steps^-p."""
    noise_schedule = diffusion.get_schedule(schedule)
    made, denoise = _SAMPLERS[sampler](noise_schedule), _denoiser(noise_schedule)
    keys = diffusion.sample_keys(0, jnp.arange(count))
    z = diffusion.gaussian_noise(keys, 0, (1,))
    exact = _flow(np.asarray(z)[:, 0], noise_schedule, made.times(steps[0], spacing)[0])
    errors = []
    for number in steps:
        x = jax.jit(lambda z, times: made(denoise, z, times, keys))(z, made.times(number, spacing))
        errors.append(np.abs(np.asarray(x)[:, 0] - exact).mean())
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def _denoiser(schedule: diffusion.Schedule) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns E[x | z_t] for the mixture, z [B, 1]: component means weighted by their responsibilities."""

    def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * _WIDTH) ** 2 + sigma**2
        distance = z - alpha * _CENTERS
        responsibility = jax.nn.softmax(jnp.log(_WEIGHTS) - distance**2 / (2 * variance), axis=-1)
        means = _CENTERS + alpha * _WIDTH**2 / variance * distance
        return jnp.sum(responsibility * means, axis=-1, keepdims=True)

    return denoise


def _flow(z: np.ndarray, schedule: diffusion.Schedule, t: jax.Array) -> np.ndarray:
    """Returns the endpoint at time 0 of the mixture's probability flow from z_t [N], by its quantiles."""

    def cdf(values: np.ndarray, time: jax.Array) -> np.ndarray:
        alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
        return ndtr((values[:, None] - alpha * _CENTERS) / np.hypot(alpha * _WIDTH, sigma)) @ _WEIGHTS

    grid = np.linspace(-4, 4, 20001)
    return np.interp(cdf(z, t), cdf(grid, jnp.zeros(())), grid)


if __name__ == "__main__":
    app.main(__name__)
