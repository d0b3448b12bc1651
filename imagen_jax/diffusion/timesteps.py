"""Timestep schedules: the times, from noise to clean, at which a sampler evaluates the denoiser.

A timestep schedule maps `(schedule, steps, start)` to `steps + 1` decreasing times [steps + 1], from `start` to 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import Schedule
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


TIMESTEP_SPACINGS: dict[str, TimestepSchedule] = {"uniform": uniform, "quadratic": quadratic, "karras": karras}


def get_timestep_schedule(name: str) -> TimestepSchedule:
    """Returns the timestep schedule with a name, a key of `TIMESTEP_SPACINGS`. Raises ConfigError if there is none."""
    if name not in TIMESTEP_SPACINGS:
        raise unknown_name_error("timestep_spacing", name, TIMESTEP_SPACINGS)
    return TIMESTEP_SPACINGS[name]


def check_steps(steps: int) -> None:
    """Raises ConfigError if there is not at least 1 step."""
    if steps < 1:
        raise ConfigError(f"steps {steps} is too few to sample: give at least 1")
