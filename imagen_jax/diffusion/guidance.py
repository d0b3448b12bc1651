"""Classifier-free guidance, and thresholding for large guidance scales (arXiv:2205.11487, Sections 2.2 and 2.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import append_dims
from imagen_jax.errors import ConfigError, unknown_name_error


def classifier_free(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Returns scale · conditional + (1 - scale) · unconditional (arXiv:2205.11487, Eq. 2).

    The prediction types are affine in one another at a given z_t, so guidance is the same for all of them.

    Args:
        conditional: predictions [B, ...] with text.
        unconditional: predictions [B, ...] without text.
        scale: guidance scale, a scalar or [B]; 1 is no guidance.
    """
    return unconditional + append_dims(jnp.asarray(scale), conditional) * (conditional - unconditional)


def rescale_guidance(guided: jax.Array, conditional: jax.Array, phi: float) -> jax.Array:
    """Returns guided predictions [B, ...], rescaled towards the standard deviation of the conditional ones.

    Large scales raise the contrast of predictions, and so of images. Each sample is multiplied by
    phi · std(conditional) / std(guided) + (1 - phi) (arXiv:2305.08891, Eq. 14-16). Unlike guidance itself, this depends
    on the prediction type; the paper uses v.

    Args:
        guided: guided predictions [B, ...].
        conditional: conditional predictions [B, ...].
        phi: strength in [0, 1]; 0 changes nothing.
    """
    axes = tuple(range(1, guided.ndim))
    # in float32: a deviation is a small difference of large sums; for a constant image it may be 0
    deviation, guided_deviation = (jnp.std(x.astype(jnp.float32), axis=axes) for x in (conditional, guided))
    factor = phi * deviation / jnp.maximum(guided_deviation, 1e-8) + (1 - phi)
    return (guided * append_dims(factor, guided)).astype(guided.dtype)


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance that may vary over the steps of a sampler.

    Attributes:
        scale: guidance scale, a scalar or [B]; 1 is no guidance.
        interval: the lowest and the highest noise level, as `schedules.cosine_time`, at which guidance is applied;
            elsewhere it is harmful or has no effect (arXiv:2404.07724, Section 3).
        rescale: `phi` of `rescale_guidance`, in [0, 1]; 0 is none.
        oscillating: whether the scale alternates between `scale` and `low` after `warmup_steps` steps: `low` applies to
            steps with an odd index, counted from 0 (oscillating guidance, arXiv:2210.02303). A large scale at every
            step saturates colors.
        low: see `oscillating`.
        warmup_steps: see `oscillating`.

    Raises:
        ConfigError: a value is out of range or not finite.
    """

    scale: jax.Array | float
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    oscillating: bool = False
    low: float = 1.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ConfigError(
                f"guidance_interval {low}, {high} is not an interval of noise levels in [0, 1]: 0, 1 is all levels"
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"guidance_rescale {self.rescale} is not in [0, 1]: 0 is none")
        if self.warmup_steps < 0:
            raise ConfigError(f"guidance_warmup_steps {self.warmup_steps} is negative: give at least 0")
        for name, value in (("guidance_scale", self.scale), ("guidance_low", self.low)):
            if isinstance(value, (int, float)) and not math.isfinite(value):
                raise ConfigError(f"{name} {value} is not a finite number: 1 is no guidance")

    @property
    def is_identity(self) -> bool:
        """Whether the result is statically known to be the conditional prediction at every step."""
        if not isinstance(self.scale, (int, float)):
            return False
        return self.scale == 1 and (self.low == 1 or not self.oscillating)

    def __call__(
        self, conditional: jax.Array, unconditional: jax.Array, noise_level: jax.Array, step: jax.Array
    ) -> jax.Array:
        """Returns the guided prediction [B, ...].

        Args:
            conditional: predictions [B, ...] with text.
            unconditional: predictions [B, ...] without text.
            noise_level: as `schedules.cosine_time`, a scalar or [B].
            step: index of the sampler's step, from 0, a scalar.
        """
        scale = jnp.asarray(self.scale)
        if self.oscillating:
            is_low = (step >= self.warmup_steps) & (step % 2 == 1)
            scale = jnp.where(is_low, self.low, scale)
        guided = classifier_free(conditional, unconditional, scale)
        if self.rescale:
            guided = rescale_guidance(guided, conditional, self.rescale)
        inside = (noise_level >= self.interval[0]) & (noise_level <= self.interval[1])
        return jnp.where(append_dims(inside, guided), guided, conditional)


def static_threshold(x: jax.Array) -> jax.Array:
    """Returns x clipped to the range of images, [-1, 1] (arXiv:2205.11487, Section 2.3)."""
    return jnp.clip(x, -1.0, 1.0)


def dynamic_threshold(x: jax.Array, percentile: float = 99.5, maximum: float = 0.0) -> jax.Array:
    """Returns x [B, ...] clipped to [-s, s] and divided by s (arXiv:2205.11487, Section 2.3).

    Args:
        x: predicted images [B, ...].
        percentile: in percent; s is this percentile of |x| in each sample, but at least 1.
        maximum: and at most this, which is 1 or more; 0 for no limit.
    """
    s = jnp.percentile(jnp.abs(x), percentile, axis=tuple(range(1, x.ndim)))
    s = append_dims(jnp.clip(s, 1.0, maximum or None), x)
    return jnp.clip(x, -s, s) / s


def get_threshold_fn(name: str, percentile: float, maximum: float = 0.0) -> Callable[[jax.Array], jax.Array]:
    """Returns a function that thresholds x_hat [B, ...].

    Args:
        name: "none", "static" or "dynamic".
        percentile: for "dynamic", in percent.
        maximum: for "dynamic", see `dynamic_threshold`.

    Raises:
        ConfigError: the name is not known, or the percentile is out of range.
    """
    match name:
        case "none":
            return lambda x: x
        case "static":
            return static_threshold
        case "dynamic":
            # a fraction such as 0.995 would be taken as the percentile of about one pixel in a hundred
            if not 1 < percentile <= 100:
                raise ConfigError(f"dynamic_threshold_percentile {percentile} is not in (1, 100]: 99.5 means 99.5 %")
            return partial(dynamic_threshold, percentile=percentile, maximum=maximum)
    raise unknown_name_error("threshold", name, ("none", "static", "dynamic"))
