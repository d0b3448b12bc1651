"""Noise schedules: alpha, sigma and logsnr as functions of the time t in [0, 1], clean at 0 and pure noise at 1.

Every schedule is variance preserving, `alpha² + sigma² = 1`, so that its log signal-to-noise ratio
`logsnr = log(alpha² / sigma²)` defines it (arXiv:2107.00630, Eq. 2–4).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from imagen_jax.errors import unknown_name_error

# Beyond these bounds float32 represents alpha or sigma, but not their distance from 0 and 1.
LOGSNR_MIN = -20.0
LOGSNR_MAX = 20.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Attributes:
        name: its name in a config.
        logsnr: time t in [0, 1] → logsnr, strictly decreasing, within [LOGSNR_MIN, LOGSNR_MAX].
        inverse_logsnr: logsnr → time t, the inverse of `logsnr`.
        steps: of a schedule of discrete times, how many noise levels it has: training takes times that are multiples of
            1 / steps. 0 for continuous times.
    """

    name: str
    logsnr: Callable[[jax.Array], jax.Array]
    inverse_logsnr: Callable[[jax.Array], jax.Array]
    steps: int = 0

    def round_up(self, t: jax.Array) -> jax.Array:
        """Returns times in [0, 1] rounded up to those of the schedule's levels; as they are if times are continuous."""
        return jnp.maximum(jnp.ceil(t * self.steps), 1) / self.steps if self.steps else t

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns alpha_t, the coefficient of the image in z_t, of t's shape."""
        return alpha_from_logsnr(self.logsnr(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns sigma_t, the coefficient of the noise in z_t, of t's shape."""
        return sigma_from_logsnr(self.logsnr(t))


def alpha_from_logsnr(logsnr: jax.Array) -> jax.Array:
    """Returns alpha = sqrt(sigmoid(logsnr)), of logsnr's shape (arXiv:2107.00630, Eq. 4)."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr))


def sigma_from_logsnr(logsnr: jax.Array) -> jax.Array:
    """Returns sigma = sqrt(sigmoid(-logsnr)), of logsnr's shape (arXiv:2107.00630, Eq. 4)."""
    return alpha_from_logsnr(-logsnr)


def cosine_time(logsnr: jax.Array) -> jax.Array:
    """Returns the noise level as the time of the unclipped cosine schedule, arctan(sigma / alpha) · 2/π in (0, 1).

    Networks are conditioned on it: it denotes the same amount of noise under every schedule, so that a network can be
    sampled with another schedule than it was trained with.
    """
    return jnp.arctan(jnp.exp(-logsnr / 2)) * (2 / jnp.pi)


def logsnr_from_cosine_time(noise_level: jax.Array) -> jax.Array:
    """Returns the logsnr at a noise level in (0, 1), the inverse of `cosine_time`."""
    return _logsnr_from_angles(noise_level * (jnp.pi / 2), (1 - noise_level) * (jnp.pi / 2))


@dataclasses.dataclass(frozen=True)
class _Curve:
    """A schedule as a function of both distances of a time from the ends, t and 1 - t.

    Near 1, float32 holds 1 - t far more finely than t: a logsnr that is computed from the smaller of both is accurate
    at both ends, and stays so where a shift rescales the time.

    Attributes:
        name: of the schedule.
        logsnr: (t, 1 - t) → logsnr.
        inverse: logsnr → (t, 1 - t).
        steps: see `Schedule`.
    """

    name: str
    logsnr: Callable[[jax.Array, jax.Array], jax.Array]
    inverse: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    steps: int = 0

    def schedule(self) -> Schedule:
        return Schedule(self.name, lambda t: self.logsnr(t, 1 - t), lambda logsnr: self.inverse(logsnr)[0], self.steps)


def _logsnr_from_angles(angle: jax.Array, complement: jax.Array) -> jax.Array:
    """Returns -2 log tan(angle), given also π/2 - angle; by the smaller of both: tan is ill-conditioned near π/2."""
    is_low = angle < complement
    return jnp.where(is_low, -2, 2) * jnp.log(jnp.tan(jnp.where(is_low, angle, complement)))


def cosine() -> Schedule:
    """Returns the schedule alpha = cos(πt/2), rescaled in time to the range of logsnr (arXiv:2202.00512, Section 4)."""
    return _cosine().schedule()


def _cosine() -> _Curve:
    low, width = math.atan(math.exp(-LOGSNR_MAX / 2)), math.atan(math.exp(-LOGSNR_MIN / 2))
    width -= low
    margin = math.pi / 2 - low - width  # between the last angle and a right angle

    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        return _logsnr_from_angles(low + t * width, margin + rest * width)

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = (jnp.arctan(jnp.exp(-logsnr / 2)) - low) / width
        return t, (jnp.arctan(jnp.exp(logsnr / 2)) - margin) / width

    return _Curve("cosine", logsnr, inverse)


def linear(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> Schedule:
    """Returns DDPM's schedule of linearly increasing betas (arXiv:2006.11239, Section 4) in continuous time.

    It is the limit of many steps, alpha² = exp(-∫β) (arXiv:2011.13456, Eq. 33), with β from `steps · beta_start` to
    `steps · beta_end`.

    Args:
        beta_start: first beta of the discrete schedule.
        beta_end: its last beta.
        steps: its number of steps.
    """
    return _linear(beta_start, beta_end, steps).schedule()


def _linear(beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> _Curve:
    slope, start = steps * (beta_end - beta_start), steps * beta_start

    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        del rest  # logsnr is finite at t = 1, with a finite slope
        integral = start * t + slope * t**2 / 2
        return jnp.clip(-jnp.log(jnp.expm1(jnp.maximum(integral, 1e-12))), LOGSNR_MIN, LOGSNR_MAX)

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        integral = jax.nn.softplus(-logsnr)
        # the root of slope/2 · t² + start · t = integral, in the form without cancellation near 0
        t = 2 * integral / (start + jnp.sqrt(start**2 + 2 * slope * integral))
        return t, 1 - t

    return _Curve("linear", logsnr, inverse)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """Returns the sigmoid schedule: alpha² is a logistic curve, rescaled to reach 1 and 0 (arXiv:2212.11972, App. B).

    With w = (end - start) / tau, alpha² / (1 - alpha²) is sinh(w(1-t)/2) / sinh(wt/2) times a constant; unlike
    differences of the curve, this form is accurate at both ends. logsnr is clipped to its range.

    Args:
        start: argument of the logistic function at t = 0.
        end: its argument at t = 1, above `start`.
        tau: temperature, above 0; a lower one makes the curve steeper in the middle.
    """
    return _sigmoid(start, end, tau).schedule()


def _sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> _Curve:
    width = (end - start) / tau
    offset = math.log(math.cosh(start / tau / 2) / math.cosh(end / tau / 2))

    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        ratio = jnp.sinh(width / 2 * rest) / jnp.sinh(width / 2 * t)
        return jnp.clip(jnp.log(ratio) + offset, LOGSNR_MIN, LOGSNR_MAX)

    def time(log_ratio: jax.Array) -> jax.Array:
        return jnp.log1p(2 * math.sinh(width / 2) / (jnp.exp(log_ratio) + math.exp(-width / 2))) / width

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        return time(logsnr - offset), time(offset - logsnr)

    return _Curve("sigmoid", logsnr, inverse)


def lognormal(p_mean: float = -1.2, p_std: float = 1.2) -> Schedule:
    """Returns EDM's distribution of noise levels: ln σ ~ N(p_mean, p_std²) at uniform t (arXiv:2206.00364, Table 1).

    σ is EDM's noise level, sigma / alpha here, so that logsnr = -2 ln σ; at time t it is the quantile of the normal
    distribution, clipped to the range of logsnr. The schedule is for training: uniform times have too few steps at
    both ends for samplers.

    Args:
        p_mean: mean of ln σ.
        p_std: standard deviation of ln σ.
    """
    return _lognormal(p_mean, p_std).schedule()


def _lognormal(p_mean: float = -1.2, p_std: float = 1.2) -> _Curve:
    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        t, rest = jnp.asarray(t, jnp.float32), jnp.asarray(rest, jnp.float32)
        deviations = jnp.where(t < rest, ndtri(t), -ndtri(rest))
        return jnp.clip(-2 * (p_mean + p_std * deviations), LOGSNR_MIN, LOGSNR_MAX)

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        deviations = (jnp.asarray(logsnr, jnp.float32) / -2 - p_mean) / p_std
        return ndtr(deviations), ndtr(-deviations)

    return _Curve("lognormal", logsnr, inverse)


def _shifted(curve: _Curve, shift: float) -> _Curve:
    """Returns a schedule with `shift` added to its logsnr, rescaled in time to the range of logsnr.

    The same noise destroys less of a larger image: a shift of 2·log(64/size) adapts a schedule for 64×64 images to
    another size (arXiv:2301.11093, Section 3.1).
    """
    # times whose logsnr stays within the range after the shift
    first, _ = curve.inverse(jnp.asarray(LOGSNR_MAX - max(shift, 0.0)))
    _, last_rest = curve.inverse(jnp.asarray(LOGSNR_MIN - min(shift, 0.0)))
    first, last_rest = jnp.maximum(first, 0.0), jnp.maximum(last_rest, 0.0)
    width = 1 - last_rest - first

    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        return jnp.clip(curve.logsnr(first + t * width, last_rest + rest * width) + shift, LOGSNR_MIN, LOGSNR_MAX)

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        t, rest = curve.inverse(logsnr - shift)
        return (t - first) / width, (rest - last_rest) / width

    return _Curve(f"{curve.name} {shift:+g}", logsnr, inverse, curve.steps)


# of DDPM's process in discrete time
DISCRETE_STEPS = 1000


@functools.cache
def _discrete_cosine_table() -> np.ndarray:
    """Returns logsnr before the first step and after each, float64 [DISCRETE_STEPS + 1], decreasing."""
    signal = np.cos((np.arange(DISCRETE_STEPS + 1) / DISCRETE_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    log_signal = np.cumsum(np.log1p(-np.minimum(1 - signal[1:] / signal[:-1], 0.999)))
    return np.concatenate([[LOGSNR_MAX], log_signal - np.log(-np.expm1(log_signal))])


def discrete_cosine() -> Schedule:
    """Returns the cosine schedule of DDPM's discrete process, with betas of at most 0.999 (arXiv:2102.09672, Eq. 17).

    Its 1000 noise levels, which DeepFloyd IF is trained at, are at the times 1/1000 to 1, and the image at 0. Between
    them logsnr is interpolated, so that all samplers take any times. diffusers calls it `squaredcos_cap_v2`.
    """
    return _discrete_cosine().schedule()


def _discrete_cosine() -> _Curve:
    table = jnp.asarray(_discrete_cosine_table(), jnp.float32)
    places = jnp.arange(len(table), dtype=jnp.float32)

    def logsnr(t: jax.Array, rest: jax.Array) -> jax.Array:
        del rest
        return jnp.interp(jnp.asarray(t, jnp.float32) * DISCRETE_STEPS, places, table)

    def inverse(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.interp(-jnp.asarray(logsnr, jnp.float32), -table, places) / DISCRETE_STEPS
        return t, 1 - t

    return _Curve("discrete_cosine", logsnr, inverse, DISCRETE_STEPS)


def discrete_index(logsnr: jax.Array) -> jax.Array:
    """Returns the index, from 0 to 999, of a noise level of `discrete_cosine`; between two of them, a fraction.

    Networks of discrete times are conditioned on it. What is left of rounding is removed.
    """
    index = _discrete_cosine().inverse(logsnr)[0] * DISCRETE_STEPS - 1
    nearest = jnp.round(index)
    return jnp.clip(jnp.where(jnp.abs(index - nearest) < 0.01, nearest, index), 0, DISCRETE_STEPS - 1)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "sigmoid": sigmoid,
    "lognormal": lognormal,
    "discrete_cosine": discrete_cosine,
}
_CURVES: dict[str, Callable[[], _Curve]] = {
    "cosine": _cosine,
    "linear": _linear,
    "sigmoid": _sigmoid,
    "lognormal": _lognormal,
    "discrete_cosine": _discrete_cosine,
}


def get_schedule(name: str, shift: float = 0.0) -> Schedule:
    """Returns the schedule with a name.

    Args:
        name: a key of `SCHEDULES`.
        shift: added to its logsnr; 2·log(64/size) adapts a schedule for 64×64 images to another size
            (arXiv:2301.11093, Section 3.1).

    Raises:
        ConfigError: the name is not known.
    """
    if name not in SCHEDULES:
        raise unknown_name_error("schedule", name, SCHEDULES)
    curve = _CURVES[name]()
    return (_shifted(curve, shift) if shift else curve).schedule()
