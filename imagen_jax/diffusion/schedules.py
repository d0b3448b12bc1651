"""Noise schedules: alpha, sigma and logsnr as functions of the time t in [0, 1], clean at 0 and noise at 1.

Every schedule is variance preserving, alpha² + sigma² = 1, so that its log signal-to-noise ratio
``logsnr = log(alpha² / sigma²)`` says all about it (Kingma et al., arXiv:2107.00630, Eq. 2–4).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from imagen_jax.errors import ConfigError

# Beyond these, float32 holds alpha or sigma but no longer their difference from 0 and 1.
LOGSNR_MIN = -20.0
LOGSNR_MAX = 20.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Attributes:
        name: as it stands in a config.
        logsnr: time t in [0, 1] → logsnr, strictly falling, within [LOGSNR_MIN, LOGSNR_MAX].
        time: the inverse of ``logsnr``.
    """

    name: str
    logsnr: Callable[[jax.Array], jax.Array]
    time: Callable[[jax.Array], jax.Array]

    def alpha(self, t: jax.Array) -> jax.Array:
        """The share of the signal in z_t."""
        return signal(self.logsnr(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """The share of the noise in z_t."""
        return signal(-self.logsnr(t))


def signal(logsnr: jax.Array) -> jax.Array:
    """alpha at a logsnr, and sigma at its negative: sqrt(sigmoid(logsnr))."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr))


def noise_angle(logsnr: jax.Array) -> jax.Array:
    """The noise level as an angle, arctan(sigma / alpha) · 2/π in (0, 1).

    Networks are conditioned on this: it is the time t of the cosine schedule, and it means the same
    noise under every other, so that a network can be sampled with a schedule it was not trained with.
    """
    return jnp.arctan(jnp.exp(-logsnr / 2)) * (2 / jnp.pi)


def logsnr_of_angle(noise_angle: jax.Array) -> jax.Array:
    """The inverse of ``noise_angle``."""
    return -2 * jnp.log(jnp.tan(noise_angle * (jnp.pi / 2)))


def cosine() -> Schedule:
    """alpha = cos(πt/2), its ends drawn in to the range of logsnr (arXiv:2202.00512, Section 4)."""
    low, high = jnp.arctan(jnp.exp(-LOGSNR_MAX / 2)), jnp.arctan(jnp.exp(-LOGSNR_MIN / 2))

    def logsnr(t: jax.Array) -> jax.Array:
        return -2 * jnp.log(jnp.tan(low + t * (high - low)))

    def time(logsnr: jax.Array) -> jax.Array:
        return (jnp.arctan(jnp.exp(-logsnr / 2)) - low) / (high - low)

    return Schedule("cosine", logsnr, time)


def linear(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> Schedule:
    """Betas that grow linearly over 1000 steps, in continuous form.

    The limit of many steps of Ho et al. (arXiv:2006.11239, Section 4) as given by Song et al.
    (arXiv:2011.13456, Eq. 33): alpha² = exp(-∫β), with β from ``steps·beta_start`` to ``steps·beta_end``.
    """
    slope, start = steps * (beta_end - beta_start), steps * beta_start

    def logsnr(t: jax.Array) -> jax.Array:
        integral = start * t + slope * t**2 / 2
        return jnp.clip(-jnp.log(jnp.expm1(jnp.maximum(integral, 1e-12))), LOGSNR_MIN, LOGSNR_MAX)

    def time(logsnr: jax.Array) -> jax.Array:
        integral = jax.nn.softplus(-logsnr)
        # The root of slope/2 · t² + start · t = integral in the form that does not cancel near 0.
        return 2 * integral / (start + jnp.sqrt(start**2 + 2 * slope * integral))

    return Schedule("linear", logsnr, time)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """alpha² falls as a logistic curve from ``start`` to ``end``, scaled to reach 1 and 0 (arXiv:2212.11972, App. B).

    With w = (end - start) / tau its ratio to 1 - alpha² is sinh(w(1-t)/2) / sinh(wt/2) times a constant, which unlike
    the differences of the curve is exact at both ends. The result is clipped to the range of logsnr.

    Args:
        start: where the curve begins, in units of its own argument.
        end: where it ends, above ``start``.
        tau: its temperature, above 0: a smaller one is steeper in the middle.
    """
    width = (end - start) / tau
    offset = math.log(math.cosh(start / tau / 2) / math.cosh(end / tau / 2))

    def logsnr(t: jax.Array) -> jax.Array:
        ratio = jnp.sinh(width / 2 * (1 - t)) / jnp.sinh(width / 2 * t)
        return jnp.clip(jnp.log(ratio) + offset, LOGSNR_MIN, LOGSNR_MAX)

    def time(logsnr: jax.Array) -> jax.Array:
        ratio = jnp.exp(logsnr - offset)
        return jnp.log1p(2 * math.sinh(width / 2) / (ratio + math.exp(-width / 2))) / width

    return Schedule("sigmoid", logsnr, time)


def lognormal(p_mean: float = -1.2, p_std: float = 1.2) -> Schedule:
    """EDM's distribution of noise levels: ln σ ~ N(p_mean, p_std²) at uniform times (arXiv:2206.00364, Table 1).

    σ is the noise of an image that is not scaled down, so that logsnr = -2 ln σ, whatever the process; at time t it is
    the normal distribution's quantile, clipped to the range of logsnr. Meant for training: uniform steps of time are
    few at either end, where samplers want steps too.
    """

    def logsnr(t: jax.Array) -> jax.Array:
        return jnp.clip(-2 * (p_mean + p_std * ndtri(jnp.asarray(t, jnp.float32))), LOGSNR_MIN, LOGSNR_MAX)

    def time(logsnr: jax.Array) -> jax.Array:
        return ndtr((jnp.asarray(logsnr, jnp.float32) / -2 - p_mean) / p_std)

    return Schedule("lognormal", logsnr, time)


def shifted(schedule: Schedule, shift: float) -> Schedule:
    """A schedule with ``shift`` added to its logsnr, its ends drawn in to the range of logsnr.

    Larger images show through more noise: 2·log(64/size) makes a schedule of 64×64 images fit those of another size
    (arXiv:2301.11093, Section 3.1).
    """
    # what still has a logsnr in range after the shift
    ends = jnp.array([LOGSNR_MAX - max(shift, 0.0), LOGSNR_MIN - min(shift, 0.0)])
    first, last = jnp.clip(schedule.time(ends), 0.0, 1.0)

    def logsnr(t: jax.Array) -> jax.Array:
        return jnp.clip(schedule.logsnr(first + t * (last - first)) + shift, LOGSNR_MIN, LOGSNR_MAX)

    def time(logsnr: jax.Array) -> jax.Array:
        return (schedule.time(logsnr - shift) - first) / (last - first)

    return Schedule(f"{schedule.name} {shift:+g}", logsnr, time)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "sigmoid": sigmoid,
    "lognormal": lognormal,
}


def by_name(name: str, shift: float = 0.0) -> Schedule:
    """The schedule of that name, its logsnr shifted. Raises UsageError if there is none."""
    if name not in SCHEDULES:
        raise ConfigError(f"schedule {name!r} is not known: choose one of {', '.join(SCHEDULES)}")
    schedule = SCHEDULES[name]()
    return shifted(schedule, shift) if shift else schedule
