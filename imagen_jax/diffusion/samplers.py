"""Samplers: integrate from noise z_1 to an image x, given a denoiser.

A sampler takes `denoise_fn(z [B, ...], t scalar) -> x_hat [B, ...]`, with guidance and thresholding inside, and one key
per sample: the noise of a sample depends only on its own key, not on the batch, the mesh or the host. Each sampler is
one `lax.scan` over its steps, so that program size does not depend on the number of steps.

`ddim`, `dpm_solver` and `heun` without noise approximate the same probability flow, to first, second and second order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import (
    eps_from_x,
    learned_log_variance,
    log_variance_bounds,
    posterior_mean,
    transition_coefs,
)
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.timesteps import TimestepSchedule, check_steps, get_timestep_schedule, karras, uniform
from imagen_jax.errors import ConfigError, unknown_name_error

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
# Also returns v in [-1, 1], broadcastable to x_hat, which interpolates the log-variance of a step of `ddpm` between its
# bounds, see `process.learned_log_variance`.
VarianceFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Sampler = Callable[[DenoiseFn, jax.Array, jax.Array, Schedule, int], jax.Array]
VarianceType = Literal["small", "large", "learned"]
VARIANCE_TYPES: tuple[str, ...] = get_args(VarianceType)
SAMPLERS = ("ddpm", "ddim", "dpm_solver", "heun")

# Solvers of second order start at this log(alpha / sigma) or above. Cosine schedules go down to -10, where steps in
# log(alpha / sigma) or sigma / alpha are so long that they spoil the following ones, and z carries no information about
# the image. At the clean end solvers use the bound of the schedule.
LAMBDA_MIN = -5.1


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise that `heun` adds before its steps, by the names of the paper (arXiv:2206.00364, Alg. 2).

    Attributes:
        s_churn: amount of noise over all steps; one step raises the noise level by a factor of sqrt(2) at most.
        s_tmin: lowest noise level sigma / alpha at which noise is added.
        s_tmax: highest noise level at which noise is added.
        s_noise: standard deviation of the noise, relative to the nominal one.

    Raises:
        ConfigError: a value is negative, or `s_tmin` is above `s_tmax`.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.s_churn < 0 or self.s_noise < 0:
            raise ConfigError(f"s_churn {self.s_churn} and s_noise {self.s_noise} must be at least 0: 0 adds no noise")
        if not 0 <= self.s_tmin <= self.s_tmax:
            raise ConfigError(f"s_tmin {self.s_tmin} is not in [0, s_tmax {self.s_tmax}]: give the lower level first")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Settings of all samplers; each sampler uses those that concern it.

    Attributes:
        timestep_spacing: a name for `timesteps.get_timestep_schedule`.
        eta: for `ddim`, in [0, 1].
        variance_type: for `ddpm`.
        s_churn: for `heun`, see `Churn`, as the following.
        s_tmin: see `Churn`.
        s_tmax: see `Churn`.
        s_noise: see `Churn`.
    """

    timestep_spacing: str = "uniform"
    eta: float = 0.0
    variance_type: VarianceType = "small"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


_NO_CHURN = Churn()


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """Returns one key per sample, [B], a function of the seed and of the sample's index alone.

    Args:
        seed: seed of all samples.
        indices: int [B].
    """
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def gaussian_noise(keys: jax.Array, step: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard Gaussian noise [B, *shape] for a step; each sample's is drawn from its own key.

    Args:
        keys: [B], one key per sample.
        step: index of the step, folded into the keys.
        shape: shape of one sample.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def ddpm(
    denoise_fn: DenoiseFn | VarianceFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    timestep_schedule: TimestepSchedule = uniform,
    variance_type: VarianceType = "small",
) -> jax.Array:
    """Samples by ancestral sampling (arXiv:2006.11239, Alg. 2; arXiv:2205.11487, Eq. 3).

    Args:
        denoise_fn: see the module; a `VarianceFn` if the variance is learned.
        z: standard Gaussian noise [B, ...].
        keys: [B], one key per sample.
        schedule: the noise schedule.
        steps: number of steps, and of evaluations of `denoise_fn`.
        timestep_schedule: the times of the steps.
        variance_type: variance of a step's noise: "small", that of the posterior; "large", that of the forward process;
            "learned", interpolated between them by v from `denoise_fn` (arXiv:2102.09672, Eq. 15).

    Returns:
        Samples [B, ...].

    Raises:
        ConfigError: less than 1 step.
        ValueError: an unknown variance type.
    """

    def step(z: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        step_index, t, s = inputs
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        x_hat, v = _split_variance(denoise_fn(z, t), variance_type)
        mean = posterior_mean(x_hat, z, logsnr_t, logsnr_s)
        # the last step adds only the noise of z_0
        v = jnp.where(step_index == steps, -1.0, v)
        log_variance = learned_log_variance(v, *log_variance_bounds(logsnr_t, logsnr_s))
        return mean + jnp.exp(log_variance / 2) * gaussian_noise(keys, step_index, z.shape[1:]), None

    return jax.lax.scan(step, z, _step_inputs(schedule, steps, timestep_schedule))[0]


def ddim(
    denoise_fn: DenoiseFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    timestep_schedule: TimestepSchedule = uniform,
) -> jax.Array:
    """Samples by DDIM (arXiv:2010.02502, Eq. 12 and 16).

    Args:
        denoise_fn: see the module.
        z: standard Gaussian noise [B, ...].
        keys: [B], one key per sample; unused if eta is 0.
        schedule: the noise schedule.
        steps: number of steps, and of evaluations of `denoise_fn`.
        eta: 0 is deterministic, 1 adds the noise of DDPM.
        timestep_schedule: the times of the steps.

    Returns:
        Samples [B, ...].

    Raises:
        ConfigError: less than 1 step.
    """

    def step(z: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        step_index, t, s = inputs
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
        x_hat = denoise_fn(z, t)
        eps_hat = eps_from_x(x_hat, z, alpha_t, sigma_t)
        if eta == 0:
            return alpha_s * x_hat + sigma_s * eps_hat, None
        snr_ratio, renewed = transition_coefs(schedule.logsnr(t), schedule.logsnr(s))
        # Eq. 16: the standard deviation of the fresh noise, and the coefficient of the direction to z_t
        fresh = eta * sigma_s * jnp.sqrt(renewed)
        direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * snr_ratio)
        # Eq. 12: predicted image + direction pointing to z_t + fresh noise
        return alpha_s * x_hat + direction * eps_hat + fresh * gaussian_noise(keys, step_index, z.shape[1:]), None

    return jax.lax.scan(step, z, _step_inputs(schedule, steps, timestep_schedule))[0]


def dpm_solver(
    denoise_fn: DenoiseFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    timestep_schedule: TimestepSchedule = uniform,
) -> jax.Array:
    """Samples by DPM-Solver++(2M), deterministic and of second order (arXiv:2211.01095, Alg. 2).

    Starts no noisier than LAMBDA_MIN. The first step is of first order because it has no predecessor, the last one
    because lambda jumps there.

    Args:
        denoise_fn: see the module.
        z: standard Gaussian noise [B, ...].
        keys: unused.
        schedule: the noise schedule.
        steps: number of steps, and of evaluations of `denoise_fn`.
        timestep_schedule: the times of the steps.

    Returns:
        Samples [B, ...].

    Raises:
        ConfigError: less than 1 step.
    """
    step_indices, t, s = _step_inputs(schedule, steps, _clip_to_max_noise(timestep_schedule))
    # lambda = log(alpha / sigma) rises by h
    h = (schedule.logsnr(s) - schedule.logsnr(t)) / 2
    # 1 / 2r with r = h_{i-1} / h_i: weight of the linear extrapolation from the last two predictions
    extrapolation = jnp.where((step_indices == 1) | (step_indices == steps), 0.0, h / (2 * jnp.roll(h, 1)))

    def step(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        z, x_hat_prev = carry
        t, s, h, extrapolation = inputs
        x_hat = denoise_fn(z, t)
        # D_i = (1 + 1/2r) x_i - 1/2r x_{i-1}
        d = (1 + extrapolation) * x_hat - extrapolation * x_hat_prev
        # sigma_i / sigma_{i-1} z - alpha_i (exp(-h) - 1) D_i
        z = (schedule.sigma(s) / schedule.sigma(t)) * z - schedule.alpha(s) * jnp.expm1(-h) * d
        return (z, x_hat), None

    return jax.lax.scan(step, (z, jnp.zeros_like(z)), (t, s, h, extrapolation))[0][0]


def heun(
    denoise_fn: DenoiseFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    timestep_schedule: TimestepSchedule = karras,
    churn: Churn = _NO_CHURN,
) -> jax.Array:
    """Samples by EDM's Heun method, of second order; deterministic without churn (arXiv:2206.00364, Alg. 2).

    Integrates y = z / alpha, whose noise level is sigma / alpha. Starts no noisier than LAMBDA_MIN. `denoise_fn` is
    evaluated twice per step, but once in the last one: `2 * steps - 1` times.

    Args:
        denoise_fn: see the module.
        z: standard Gaussian noise [B, ...].
        keys: [B], one key per sample; unused without churn.
        schedule: the noise schedule.
        steps: number of steps.
        timestep_schedule: the times of the steps.
        churn: noise added before steps.

    Returns:
        Samples [B, ...].

    Raises:
        ConfigError: less than 1 step.
    """
    step_indices, t, s = _step_inputs(schedule, steps, _clip_to_max_noise(timestep_schedule))
    sigma_max = _sigma_edm(schedule, jnp.ones(()))
    gamma_max = min(churn.s_churn / steps, math.sqrt(2) - 1)

    def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
        return denoise_fn(schedule.alpha(t) * y, t)

    def step(y: jax.Array, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        step_index, t, s = inputs
        sigma, sigma_next = _sigma_edm(schedule, t), _sigma_edm(schedule, s)
        if churn.s_churn > 0:
            # raise the noise level to sigma_hat = (1 + gamma) sigma, but not above the schedule's highest
            gamma = jnp.where((churn.s_tmin <= sigma) & (sigma <= churn.s_tmax), gamma_max, 0.0)
            sigma_hat = jnp.maximum(sigma, jnp.minimum((1 + gamma) * sigma, sigma_max))
            eps = churn.s_noise * gaussian_noise(keys, step_index, y.shape[1:])
            # sigma_hat² - sigma² as a product, which does not round below 0
            y = y + jnp.sqrt((sigma_hat - sigma) * (sigma_hat + sigma)) * eps
            t = jnp.where(sigma_hat > sigma, schedule.inverse_logsnr(-2 * jnp.log(sigma_hat)), t)
            sigma = sigma_hat
        # Euler step: y + (sigma_next - sigma) d with d = (y - x_hat) / sigma. Here and below, the paper's sum is
        # written without cancellation where noise levels fall fast.
        x_hat = denoise(y, t)
        y_next = x_hat + (sigma_next / sigma) * (y - x_hat)

        # second-order correction, unless the next level is the clean one: y + (sigma_next - sigma) (d + d_next) / 2
        def corrected() -> jax.Array:
            x_next = denoise(y_next, s)
            return y_next + (sigma / sigma_next - 1) / 2 * (x_next - x_hat)

        return jax.lax.cond(step_index < steps, corrected, lambda: y_next), None

    y = jax.lax.scan(step, z / schedule.alpha(t[0]), (step_indices, t, s))[0]
    return schedule.alpha(s[-1]) * y


def get_sampler(name: str, config: SamplerConfig) -> Sampler:
    """Returns the sampler with a name, with those settings that concern it.

    Args:
        name: one of `SAMPLERS`.
        config: settings of all samplers.

    Returns:
        `(denoise_fn, z, keys, schedule, steps) -> samples`.

    Raises:
        ConfigError: a name is not known, or a number that concerns the sampler is out of range.
    """
    timestep_schedule = get_timestep_schedule(config.timestep_spacing)
    match name:
        case "ddpm":
            if config.variance_type not in VARIANCE_TYPES:
                raise unknown_name_error("variance_type", config.variance_type, VARIANCE_TYPES)
            return partial(ddpm, timestep_schedule=timestep_schedule, variance_type=config.variance_type)
        case "ddim":
            if not 0 <= config.eta <= 1:
                raise ConfigError(f"eta {config.eta} is not in [0, 1]: 0 is deterministic, 1 has DDPM's noise")
            return partial(ddim, timestep_schedule=timestep_schedule, eta=config.eta)
        case "dpm_solver":
            return partial(dpm_solver, timestep_schedule=timestep_schedule)
        case "heun":
            churn = Churn(config.s_churn, config.s_tmin, config.s_tmax, config.s_noise)
            return partial(heun, timestep_schedule=timestep_schedule, churn=churn)
    raise unknown_name_error("sampler", name, SAMPLERS)


def _step_inputs(
    schedule: Schedule, steps: int, timestep_schedule: TimestepSchedule
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (step_index, t, s) of each step, [steps] each: counted from 1, from t to s < t."""
    check_steps(steps)
    times = timestep_schedule(schedule, steps)
    return jnp.arange(1, steps + 1), times[:-1], times[1:]


def _clip_to_max_noise(timestep_schedule: TimestepSchedule) -> TimestepSchedule:
    """Returns the timestep schedule, scaled so that it starts at LAMBDA_MIN or above."""

    def clipped(schedule: Schedule, steps: int) -> jax.Array:
        times = timestep_schedule(schedule, steps)
        return times * jnp.minimum(1.0, schedule.inverse_logsnr(jnp.asarray(2 * LAMBDA_MIN)) / times[0])

    return clipped


def _split_variance(prediction: Any, variance_type: VarianceType) -> tuple[jax.Array, jax.Array | float]:
    """Returns (x_hat, v) from a denoiser's output."""
    match variance_type:
        case "small":
            return prediction, -1.0
        case "large":
            return prediction, 1.0
        case "learned":
            return prediction
    raise ValueError(f"variance_type {variance_type!r} is not one of {VARIANCE_TYPES}")


def _sigma_edm(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Returns sigma / alpha, the noise level of y = z / alpha and EDM's sigma."""
    return jnp.exp(-schedule.logsnr(t) / 2)
