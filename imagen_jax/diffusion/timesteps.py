"""Time grids: the times from noise to clean at which a sampler of so many steps asks for the image.

A grid takes ``(schedule, steps)`` and gives ``steps + 1`` falling times: one for each call of the denoiser, and 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.errors import ConfigError

Grid = Callable[[Schedule, int], jax.Array]

# sigma / alpha at the first and the last but one time of ``karras`` (arXiv:2206.00364, Table 1)
KARRAS_MAX = 80.0
KARRAS_MIN = 0.002


def uniform(schedule: Schedule, steps: int) -> jax.Array:
    """Times [steps + 1], each as far from the next as any."""
    return jnp.linspace(1.0, 0.0, steps + 1)


def quadratic(schedule: Schedule, steps: int) -> jax.Array:
    """Times [steps + 1] that come closer to each other towards the clean end (arXiv:2010.02502, Appendix D.2)."""
    return jnp.linspace(1.0, 0.0, steps + 1) ** 2


def karras(schedule: Schedule, steps: int, rho: float = 7.0) -> jax.Array:
    """Times [steps + 1] at which (sigma / alpha)^(1/rho) falls evenly, and then 0 (arXiv:2206.00364, Eq. 5).

    The first has ``KARRAS_MAX`` times as much noise as signal, the last but one ``KARRAS_MIN`` times, as far as the
    schedule reaches.
    """
    lowest, highest = schedule.logsnr(jnp.array([1.0, 0.0]))
    ends = jnp.clip(-2 * jnp.log(jnp.array([KARRAS_MAX, KARRAS_MIN])), lowest, highest)
    most, least = jnp.exp(-ends / 2)
    levels = jnp.linspace(most ** (1 / rho), least ** (1 / rho), steps) ** rho
    return jnp.append(jnp.clip(schedule.time(-2 * jnp.log(levels)), 0.0, 1.0), 0.0)


GRIDS: dict[str, Grid] = {"uniform": uniform, "quadratic": quadratic, "karras": karras}


def by_name(name: str) -> Grid:
    """The grid of that name. Raises UsageError if there is none."""
    if name not in GRIDS:
        raise ConfigError(f"grid {name!r} is not known: choose one of {', '.join(GRIDS)}")
    return GRIDS[name]


def check_steps(steps: int) -> None:
    """Raises UsageError if steps < 1."""
    if steps < 1:
        raise ConfigError(f"steps {steps} is too few to sample: give at least 1")
