"""Noise conditioning augmentation: noise added to the low-resolution image of a super-resolution stage in training.

An augmentation level is a time of the stage's augmentation schedule: 0 adds no noise, 1 leaves none of the image.
Sampling adds noise of one fixed level to the complete sample of the stage before: "non-truncated" augmentation, as good
as stopping that stage early (arXiv:2106.15282, Sections 4.2 and 4.3).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.errors import ConfigError, unknown_name_error

Distribution = Literal["uniform", "lognormal"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)


@dataclasses.dataclass(frozen=True)
class AugLevelDistribution:
    """A distribution of augmentation levels.

    "uniform" samples levels uniformly from an interval. [0, 1] is that of cascaded diffusion, which trains one network
    for all levels and selects one for sampling (arXiv:2106.15282, Section 4.2); implementations of Imagen use it too
    (arXiv:2205.11487, Section 2.3: "chosen randomly"). Stability's ×4 upscaler is trained on [0, 0.35]. An interval of
    length 0 is a fixed level.

    "lognormal" has ln(sigma / alpha) ~ N(mean, std²) under every schedule: usually little noise, but never none.
    Stable Video Diffusion adds such noise to the image that it animates, with mean -3 and std 0.5 (arXiv:2311.15127).

    Attributes:
        distribution: see above.
        interval: for "uniform", the lowest and the highest level.
        mean: for "lognormal".
        std: for "lognormal", above 0.

    Raises:
        ConfigError: an unknown distribution, or a number out of range.
    """

    distribution: Distribution
    interval: tuple[float, float]
    mean: float
    std: float

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise unknown_name_error("aug_level_distribution", self.distribution, DISTRIBUTIONS)
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            interval = ", ".join(map(str, self.interval))
            raise ConfigError(
                f"aug_level_range {interval} is not an interval in [0, 1]: give two levels, the lower one first"
            )
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ConfigError(
                f"aug_level_mean {self.mean} and aug_level_std {self.std} must be finite, and aug_level_std positive"
            )

    def sample(self, key: jax.Array, count: int, schedule: Schedule) -> jax.Array:
        """Samples levels [count] in [0, 1].

        Args:
            key: a PRNG key.
            count: number of levels.
            schedule: the augmentation schedule, which maps levels to noise.
        """
        if self.distribution == "uniform":
            low, high = self.interval
            return jax.random.uniform(key, (count,), minval=low, maxval=high)
        log_sigma = self.mean + self.std * jax.random.normal(key, (count,))
        return jnp.clip(schedule.inverse_logsnr(-2 * log_sigma), 0.0, 1.0)

    def check_sampling(self, level: float) -> None:
        """Raises ConfigError for a sampling level that training never samples."""
        low, high = self.interval
        if self.distribution == "uniform" and not low <= level <= high:
            raise ConfigError(
                f"aug_level {level} is not in [{low}, {high}], the levels that the stage is trained at "
                "(diffusion.aug_level_range)"
            )
