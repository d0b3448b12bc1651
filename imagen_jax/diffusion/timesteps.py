"""Timestep schedules: the times, from noise to clean, at which a sampler evaluates the denoiser.

A timestep schedule maps `(schedule, steps, start)` to `steps + 1` decreasing times [steps + 1], from `start` to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.schedules import DISCRETE_STEPS, Schedule
from imagen_jax.errors import ConfigError, unknown_name_error

TimestepSchedule = Callable[[Schedule, int, jax.Array | float], jax.Array]

# sigma / alpha at the first and the last but one time of `karras` (arXiv:2206.00364, Table 1)
KARRAS_MAX = 80.0
KARRAS_MIN = 0.002


def uniform(schedule: Schedule, steps: int, start: jax.Array | float = 1.0) -> jax.Array:
    """Returns evenly spaced times [steps + 1]."""
    return start * jnp.linspace(1.0, 0.0, steps + 1)


def quadratic(schedule: Schedule, steps: int, start: jax.Array | float = 1.0) -> jax.Array:
    """Returns times [steps + 1] whose square roots are evenly spaced (arXiv:2010.02502, Appendix D.2)."""
    return start * jnp.linspace(1.0, 0.0, steps + 1) ** 2


def karras(schedule: Schedule, steps: int, start: jax.Array | float = 1.0, rho: float = 7.0) -> jax.Array:
    """Returns times [steps + 1] at which (sigma / alpha)^(1/rho) is evenly spaced, and 0 (arXiv:2206.00364, Eq. 5).

    sigma / alpha is `KARRAS_MAX` at the first time, or what it is at `start` if that is less, and `KARRAS_MIN` at the
    last but one, clipped to the range of the schedule.
    """
    logsnr_min, logsnr_max = schedule.logsnr(jnp.stack([jnp.asarray(start, jnp.float32), jnp.zeros(())]))
    ends = jnp.clip(-2 * jnp.log(jnp.array([KARRAS_MAX, KARRAS_MIN])), logsnr_min, logsnr_max)
    sigma_max, sigma_min = jnp.exp(-ends / 2)
    sigmas = jnp.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho
    return jnp.append(jnp.clip(schedule.inverse_logsnr(-2 * jnp.log(sigmas)), 0.0, start), 0.0)


def leading(schedule: Schedule, steps: int, start: jax.Array | float = 1.0) -> jax.Array:
    """Returns the times [steps + 1] of every so many of 1000 discrete steps, from the first on: diffusers' `leading`.

    They begin below 1: at 0.991 for 100 steps. With a `start` below 1 they are the last of those that begin there.

    Raises:
        ConfigError: more steps than the process has.
    """
    count = round(steps / float(start))
    if count > DISCRETE_STEPS:
        raise ConfigError(f"{count} steps are more than the {DISCRETE_STEPS} of timestep_spacing 'leading': give fewer")
    return _discrete_times(np.arange(count) * (DISCRETE_STEPS // count), steps)


def _discrete_times(indices: np.ndarray, steps: int) -> jax.Array:
    """Returns the times [steps + 1] of the lowest of increasing indices of noise levels, downwards, and 0."""
    return jnp.asarray(np.append((indices[:steps][::-1] + 1) / DISCRETE_STEPS, 0), jnp.float32)


# How many steps each section of the process has, the one of little noise first (arXiv:2102.09672, Section 4): the
# sections are equally long. These are DeepFloyd IF's.
SECTIONS: dict[str, tuple[int, ...]] = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, *range(10, 17), 18, 20),
    "super27": (*[1] * 7, 2, 5, 13),
    "super40": (*[2] * 6, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}


def _in_sections(name: str, schedule: Schedule, steps: int, start: jax.Array | float = 1.0) -> jax.Array:
    """Returns the times [steps + 1] of a list of `SECTIONS`, or, with a `start` below 1, the last of them.

    Within a section, steps are evenly spaced from its first noise level to its last.

    Raises:
        ConfigError: a walk from pure noise with another number of steps than those of the list.
    """
    counts = SECTIONS[name]
    total = sum(counts)
    if steps > total or (float(start) == 1 and steps != total):
        raise ConfigError(f"num_inference_steps {steps} is not that of timestep_spacing {name!r}: set it to {total}")
    sizes = [DISCRETE_STEPS // len(counts) + (section < DISCRETE_STEPS % len(counts)) for section in range(len(counts))]
    indices = []
    for section, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        stride = (size - 1) / (count - 1) if count > 1 else 0
        # a running sum, as theirs: products round otherwise
        indices += [sum(sizes[:section]) + round(place) for place in np.cumsum([0, *[stride] * (count - 1)])]
    return _discrete_times(np.array(indices), steps)


# those whose times are noise levels of the discrete process, whatever a sampler could start from
DISCRETE_SPACINGS = ("leading", *SECTIONS)
TIMESTEP_SPACINGS: dict[str, TimestepSchedule] = {
    **{"uniform": uniform, "quadratic": quadratic, "karras": karras, "leading": leading},
    **{name: partial(_in_sections, name) for name in SECTIONS},
}


def get_timestep_schedule(name: str) -> TimestepSchedule:
    """Returns the timestep schedule with a name, a key of `TIMESTEP_SPACINGS`. Raises ConfigError if there is none."""
    if name not in TIMESTEP_SPACINGS:
        raise unknown_name_error("timestep_spacing", name, TIMESTEP_SPACINGS)
    return TIMESTEP_SPACINGS[name]


def check_steps(steps: int) -> None:
    """Raises ConfigError if there is not at least 1 step."""
    if steps < 1:
        raise ConfigError(f"steps {steps} is too few to sample: give at least 1")
