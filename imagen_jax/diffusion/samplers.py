"""Samplers: from noise z_1 to an image, by a function that says which image it sees in z_t.

A sampler takes ``denoise_fn(z [B, ...], t scalar) -> x_hat [B, ...]``, with guidance and thresholding inside, and one
key per sample: the noise of a sample depends on its own key alone, not on the batch, the mesh or the host.
Each is a ``lax.scan`` over its steps: traced once, compiled as one program, whatever the number of steps.

``ddim``, ``dpm_solver`` and ``heun`` without noise approximate the same flow, to first, second and second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import timesteps
from imagen_jax.diffusion.process import eps_from_x, interpolate, log_variance_bounds, noise_shares, posterior_mean
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.timesteps import Grid, check_steps, karras, uniform
from imagen_jax.errors import ConfigError

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
# One that also says v in [-1, 1], of the shape of x_hat or one that broadcasts to it: where between its least and its
# most the variance of a step of ``ddpm`` lies.
VarianceFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Sampler = Callable[[DenoiseFn, jax.Array, jax.Array, Schedule, int], jax.Array]
Variance = Literal["small", "large", "learned"]
VARIANCES: tuple[str, ...] = get_args(Variance)
SAMPLERS = ("ddpm", "ddim", "dpm_solver", "heun")

# The solvers of higher order start at this log(alpha / sigma), or later. Cosine schedules go down to -10, where steps
# in log(alpha / sigma) or sigma / alpha are so long that they spoil what follows, and z tells of the image nothing.
# At the other end they take the bound of the schedule.
LAMBDA_MIN = -5.1


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One key per sample, [B]: a function of (seed, index of the sample) alone."""
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def noise(keys: jax.Array, step: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gaussian noise [B, *shape] of a step, a sample's from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def time_steps(schedule: Schedule, steps: int, grid: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(number, t, s) of each step, all [steps]: numbered from 1, from t to s < t. Raises UsageError if steps < 1."""
    check_steps(steps)
    times = grid(schedule, steps)
    return jnp.arange(1, steps + 1), times[:-1], times[1:]


def bounded(grid: Grid) -> Grid:
    """The grid, drawn in so that it does not start below LAMBDA_MIN."""

    def drawn_in(schedule: Schedule, steps: int) -> jax.Array:
        times = grid(schedule, steps)
        return times * jnp.minimum(1.0, schedule.time(jnp.asarray(2 * LAMBDA_MIN)) / times[0])

    return drawn_in


def ddpm(
    denoise_fn: DenoiseFn | VarianceFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    grid: Grid = uniform,
    variance: Variance = "small",
) -> jax.Array:
    """Ancestral sampling (arXiv:2006.11239, Alg. 2; Eq. 3 of arXiv:2205.11487).

    Args:
        denoise_fn: see the module; with a learned variance, a ``VarianceFn``.
        z: [B, ...] standard Gaussian noise.
        keys: [B] one key per sample.
        schedule: the noise schedule to walk down.
        steps: how many calls of ``denoise_fn``.
        grid: at which times.
        variance: of the noise of a step: "small", the posterior's; "large", the forward process's; "learned",
            interpolated between them as ``denoise_fn`` says (arXiv:2102.09672, Eq. 15).

    Returns:
        [B, ...] samples.
    """

    def step(z: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, t, s = now
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        x_hat, v = x_and_v(denoise_fn(z, t), variance)
        mean = posterior_mean(x_hat, z, logsnr_t, logsnr_s)
        # The last step adds no noise but what z_0 has.
        v = jnp.where(number == steps, -1.0, v)
        log_variance = interpolate(v, *log_variance_bounds(logsnr_t, logsnr_s))
        return mean + jnp.exp(log_variance / 2) * noise(keys, number, z.shape[1:]), None

    return jax.lax.scan(step, z, time_steps(schedule, steps, grid))[0]


def x_and_v(prediction: Any, variance: Variance) -> tuple[jax.Array, jax.Array | float]:
    """(x_hat, v) of what a denoiser said; v as of ``interpolate``."""
    match variance:
        case "small":
            return prediction, -1.0
        case "large":
            return prediction, 1.0
        case "learned":
            return prediction
    raise ValueError(f"variance {variance!r} is not one of {VARIANCES}")


def ddim(
    denoise_fn: DenoiseFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    grid: Grid = uniform,
) -> jax.Array:
    """DDIM: deterministic at eta = 0, with DDPM's noise at eta = 1 (arXiv:2010.02502, Eq. 12 and 16).

    Other arguments and result as for ``ddpm``.
    """

    def step(z: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, t, s = now
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
        x_hat = denoise_fn(z, t)
        eps_hat = eps_from_x(x_hat, z, alpha_t, sigma_t)
        if eta == 0:
            return alpha_s * x_hat + sigma_s * eps_hat, None
        kept, renewed = noise_shares(schedule.logsnr(t), schedule.logsnr(s))
        # Eq. 16: how much of z_s's noise is drawn anew, and how much still points to z_t
        fresh = eta * sigma_s * jnp.sqrt(renewed)
        direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * kept)
        # Eq. 12: the predicted image, the direction that points to z_t, and fresh noise
        return alpha_s * x_hat + direction * eps_hat + fresh * noise(keys, number, z.shape[1:]), None

    return jax.lax.scan(step, z, time_steps(schedule, steps, grid))[0]


def dpm_solver(
    denoise_fn: DenoiseFn, z: jax.Array, keys: jax.Array, schedule: Schedule, steps: int, grid: Grid = uniform
) -> jax.Array:
    """DPM-Solver++ (2M), deterministic and of second order (arXiv:2211.01095, Alg. 2).

    It starts no noisier than LAMBDA_MIN. Its first step is of first order for want of a step before, its last because
    lambda leaps there. Arguments and result as for ``ddpm``.
    """
    numbers, t, s = time_steps(schedule, steps, bounded(grid))
    # lambda = log(alpha / sigma) rises by h
    h = (schedule.logsnr(s) - schedule.logsnr(t)) / 2
    # 1 / 2r with r = h_{i-1} / h_i: how far to look ahead along the line of the last two predictions
    ahead = jnp.where((numbers == 1) | (numbers == steps), 0.0, h / (2 * jnp.roll(h, 1)))

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        z, x_before = carry
        t, s, h, ahead = now
        x_hat = denoise_fn(z, t)
        # D_i = (1 + 1/2r) x_i - 1/2r x_{i-1}
        d = (1 + ahead) * x_hat - ahead * x_before
        # sigma_i / sigma_{i-1} z - alpha_i (exp(-h) - 1) D_i
        z = (schedule.sigma(s) / schedule.sigma(t)) * z - schedule.alpha(s) * jnp.expm1(-h) * d
        return (z, x_hat), None

    return jax.lax.scan(step, (z, jnp.zeros_like(z)), (t, s, h, ahead))[0][0]


def heun(
    denoise_fn: DenoiseFn,
    z: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    steps: int,
    grid: Grid = karras,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
) -> jax.Array:
    """Heun's method as of EDM, of second order; deterministic without churn (arXiv:2206.00364, Alg. 2).

    It goes along y = z / alpha, whose noise has the level sigma / alpha, and asks ``denoise_fn`` twice a step, but
    once in the last: ``2 * steps - 1`` times. It starts no noisier than LAMBDA_MIN.

    Args:
        denoise_fn: see the module.
        z: [B, ...] standard Gaussian noise.
        keys: [B] one key per sample; without churn they do not matter.
        schedule: the noise schedule to walk down.
        steps: of the method.
        grid: at which times they begin.
        churn: S_churn, how much noise to add over all steps; a step at most raises its level by sqrt(2).
        churn_range: S_tmin and S_tmax, the noise levels sigma / alpha at which noise is added.
        churn_noise: S_noise, the deviation of the added noise, relative to what the level calls for.

    Returns:
        [B, ...] samples.
    """
    numbers, t, s = time_steps(schedule, steps, bounded(grid))
    noisiest = level(schedule, jnp.ones(()))
    most = min(churn / steps, math.sqrt(2) - 1)

    def denoised(y: jax.Array, t: jax.Array) -> jax.Array:
        return denoise_fn(schedule.alpha(t) * y, t)

    def step(y: jax.Array, now: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        number, t, s = now
        sigma, sigma_next = level(schedule, t), level(schedule, s)
        if churn > 0:
            # raise the noise to sigma_hat = (1 + gamma) sigma, but not above all that the schedule has
            gamma = jnp.where((churn_range[0] <= sigma) & (sigma <= churn_range[1]), most, 0.0)
            sigma_hat = jnp.maximum(sigma, jnp.minimum((1 + gamma) * sigma, noisiest))
            added = churn_noise * noise(keys, number, y.shape[1:])
            # sigma_hat² - sigma² as a product, which does not round below 0
            y = y + jnp.sqrt((sigma_hat - sigma) * (sigma_hat + sigma)) * added
            t = jnp.where(sigma_hat > sigma, schedule.time(-2 * jnp.log(sigma_hat)), t)
            sigma = sigma_hat
        # Euler step: y + (sigma_next - sigma) d with d = (y - x_hat) / sigma. Here as below, the paper's sum is in a
        # form that does not cancel where levels fall fast.
        x_hat = denoised(y, t)
        y_next = x_hat + (sigma_next / sigma) * (y - x_hat)

        # second-order correction, unless the next level is the clean one: y + (sigma_next - sigma) (d + d_next) / 2
        def corrected() -> jax.Array:
            x_next = denoised(y_next, s)
            return y_next + (sigma / sigma_next - 1) / 2 * (x_next - x_hat)

        return jax.lax.cond(number < steps, corrected, lambda: y_next), None

    y = jax.lax.scan(step, z / schedule.alpha(t[0]), (numbers, t, s))[0]
    return schedule.alpha(s[-1]) * y


def level(schedule: Schedule, t: jax.Array) -> jax.Array:
    """sigma / alpha, the noise level of y = z / alpha."""
    return jnp.exp(-schedule.logsnr(t) / 2)


def by_name(
    name: str,
    *,
    grid: str,
    eta: float,
    variance: Variance,
    churn: float,
    churn_range: tuple[float, float],
    churn_noise: float,
) -> Sampler:
    """The sampler of that name with what concerns it of the other settings, which are those of its own arguments.

    Raises:
        UsageError: a name that is not known, or a number out of range.
    """
    times = timesteps.by_name(grid)
    match name:
        case "ddpm":
            if variance not in VARIANCES:
                raise ConfigError(f"variance {variance!r} is not known: choose one of {', '.join(VARIANCES)}")
            return partial(ddpm, grid=times, variance=variance)
        case "ddim":
            if not 0 <= eta <= 1:
                raise ConfigError(f"eta {eta} is not in [0, 1]: 0 is deterministic, 1 has DDPM's noise")
            return partial(ddim, grid=times, eta=eta)
        case "dpm_solver":
            return partial(dpm_solver, grid=times)
        case "heun":
            low, high = churn_range
            if churn < 0 or churn_noise < 0:
                raise ConfigError(f"churn {churn} and churn_noise {churn_noise} must not be below 0: 0 adds no noise")
            if not 0 <= low <= high:
                raise ConfigError(f"churn_range {low}, {high} is no range of noise levels: give the lower one first")
            return partial(heun, grid=times, churn=churn, churn_range=(low, high), churn_noise=churn_noise)
    raise ConfigError(f"sampler {name!r} is not known: choose one of {', '.join(SAMPLERS)}")
