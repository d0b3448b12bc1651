"""Classifier-free guidance, and the thresholding that high weights need (arXiv:2205.11487, Sections 2.2 and 2.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import per_example
from imagen_jax.errors import ConfigError


def classifier_free(conditional: jax.Array, unconditional: jax.Array, weight: jax.Array | float) -> jax.Array:
    """w · conditional + (1 - w) · unconditional, Eq. 2; weight 1 is no guidance.

    Predictions are [B, ...], the weight is a scalar or [B]. The three kinds of prediction are affine in one another at
    a given z_t, so the sum means the same in each.
    """
    return unconditional + per_example(jnp.asarray(weight), conditional) * (conditional - unconditional)


def rescaled(guided: jax.Array, conditional: jax.Array, share: float) -> jax.Array:
    """Guided predictions [B, ...] brought a share of the way to the deviation of the conditional ones.

    High weights make predictions, and so images, too strong (arXiv:2305.08891, Eq. 14-16): each sample is multiplied by
    share · std(conditional) / std(guided) + (1 - share). Unlike guidance itself this depends on the kind of prediction;
    the paper's is v.
    """
    axes = tuple(range(1, guided.ndim))
    # in float32: a deviation is a small difference of large sums; of a plain picture it may be 0
    deviation, guided_deviation = (jnp.std(x.astype(jnp.float32), axis=axes) for x in (conditional, guided))
    factor = share * deviation / jnp.maximum(guided_deviation, 1e-8) + (1 - share)
    return (guided * per_example(factor, guided)).astype(guided.dtype)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance as it changes from step to step.

    Attributes:
        weight: as of ``classifier_free``, a scalar or one a sample, [B].
        start: the least noise level that is guided.
        end: the greatest; noise levels are angles in [0, 1], as of ``schedules.noise_angle``. Beyond this interval
            guidance does harm or nothing, and what is conditional stands alone (arXiv:2404.07724, Section 3).
        rescale: share in [0, 1] of ``rescaled``; 0 is none.
        oscillates: whether the weight alternates between ``weight`` and ``low`` (oscillating guidance of Imagen Video,
            arXiv:2210.02303): ``low`` in every second step, counted from 0, of those after the first
            ``constant_steps``. A high weight in all of them saturates colours.
        low: see ``oscillates``.
        constant_steps: see ``oscillates``.

    Raises:
        UsageError: values that are no interval, no share, no count or not finite.
    """

    weight: jax.Array | float
    start: float = 0.0
    end: float = 1.0
    rescale: float = 0.0
    oscillates: bool = False
    low: float = 1.0
    constant_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ConfigError(
                f"guidance from noise level {self.start} to {self.end} is no interval in [0, 1]: 0 to 1 is all levels"
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"guidance rescale {self.rescale} is not in [0, 1]: 0 is none")
        if self.constant_steps < 0:
            raise ConfigError(f"guidance constant steps {self.constant_steps} are too few: give at least 0")
        for name in ("weight", "low"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise ConfigError(f"guidance {name} {value} is not a finite number: 1 is no guidance")

    @property
    def is_none(self) -> bool:
        """Whether it is known in advance that the conditional prediction stands alone in every step."""
        if not isinstance(self.weight, (int, float)):
            return False
        return self.weight == 1 and (self.low == 1 or not self.oscillates)

    def __call__(
        self, conditional: jax.Array, unconditional: jax.Array, noise_level: jax.Array, step: jax.Array
    ) -> jax.Array:
        """The guided prediction [B, ...] in a step (scalar, from 0) at a noise level (scalar or [B])."""
        weight = jnp.asarray(self.weight)
        if self.oscillates:
            is_low = (step >= self.constant_steps) & (step % 2 == 1)
            weight = jnp.where(is_low, self.low, weight)
        guided = classifier_free(conditional, unconditional, weight)
        if self.rescale:
            guided = rescaled(guided, conditional, self.rescale)
        inside = (noise_level >= self.start) & (noise_level <= self.end)
        return jnp.where(per_example(inside, guided), guided, conditional)


def static_threshold(x: jax.Array) -> jax.Array:
    """x clipped to the range of images, [-1, 1]."""
    return jnp.clip(x, -1.0, 1.0)


def dynamic_threshold(x: jax.Array, percentile: float = 99.5) -> jax.Array:
    """x clipped to [-s, s] and divided by s, where s ≥ 1 is the percentile (in per cent) of |x| in each sample."""
    s = jnp.percentile(jnp.abs(x), percentile, axis=tuple(range(1, x.ndim)))
    s = per_example(jnp.maximum(s, 1.0), x)
    return jnp.clip(x, -s, s) / s


def threshold(kind: str, percentile: float) -> Callable[[jax.Array], jax.Array]:
    """The function x_hat → x_hat of that name: ``none``, ``static`` or ``dynamic``. Raises UsageError for another."""
    match kind:
        case "none":
            return lambda x: x
        case "static":
            return static_threshold
        case "dynamic":
            # a share, such as 0.995, would be taken for hardly one pixel in a hundred
            if not 1 < percentile <= 100:
                raise ConfigError(f"percentile {percentile} is not in (1, 100]: 99.5 means 99.5 per cent")
            return partial(dynamic_threshold, percentile=percentile)
    raise ConfigError(f"threshold {kind!r} is not known: choose none, static or dynamic")
