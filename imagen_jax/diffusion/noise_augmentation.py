"""Noise conditioning augmentation: how much noise the low-resolution image of a super-resolution stage has in training.

A level is a time of the stage's augmentation schedule: 0 leaves the image as it is, 1 leaves none of it. Sampling adds
the noise of one fixed level to what the stage before drew to its end: "non-truncated" augmentation, found as good as to
stop that stage early (arXiv:2106.15282, Sections 4.2 and 4.3).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.errors import ConfigError

Distribution = Literal["uniform", "lognormal"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


@dataclasses.dataclass(frozen=True)
class AugLevels:
    """A distribution of augmentation levels.

    "uniform" is that on an interval. On [0, 1] it is cascaded diffusion's, which trains one network for all levels and
    then chooses among them in sampling (arXiv:2106.15282, Section 4.2), and what implementations of Imagen make of its
    "chosen randomly" (arXiv:2205.11487, Section 2.3). Stability's ×4 upscaler is trained on [0, 0.35]. An interval of
    one level is a fixed one.

    "lognormal" has ln(sigma / alpha) ~ N(mean, std²), whatever the schedule: nearly always a little noise, never none.
    Stable Video Diffusion so adds to the picture that it sets in motion, with mean -3 and std 0.5 (arXiv:2311.15127).

    Attributes:
        distribution: see above.
        interval: the least and the greatest level of "uniform".
        mean: of "lognormal".
        std: of "lognormal", above 0.

    Raises:
        UsageError: an unknown distribution, or numbers that mean none.
    """

    distribution: Distribution
    interval: tuple[float, float]
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ConfigError(
                f"aug_level_distribution {self.distribution!r} is not known: choose one of {', '.join(DISTRIBUTIONS)}"
            )
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            said = ", ".join(map(str, self.interval))
            raise ConfigError(f"aug_level_range {said} is no interval of [0, 1]: give two levels, the lower one first")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ConfigError(f"aug_level_mean {self.mean} must be finite, aug_level_std {self.std} so and above 0")

    def draw(self, key: jax.Array, count: int, schedule: Schedule) -> jax.Array:
        """Levels [count] in [0, 1] under an augmentation schedule."""
        if self.distribution == "uniform":
            low, high = self.interval
            return jax.random.uniform(key, (count,), minval=low, maxval=high)
        log_noise = self.mean + self.std * jax.random.normal(key, (count,))
        return jnp.clip(schedule.time(-2 * log_noise), 0.0, 1.0)

    def check_sampling(self, level: float) -> None:
        """Raises UsageError for a level to sample at that training never draws."""
        low, high = self.interval
        if self.distribution == "uniform" and not low <= level <= high:
            raise ConfigError(
                f"aug_level {level} is not in [{low}, {high}], the levels that the stage is trained at "
                "(diffusion.aug_level_range)"
            )
