"""Samplers: walk from noise z_1 to an image x along given times, given a denoiser.

A sampler is made for a noise schedule, `ddim(schedule)`, and called as `sampler(denoise_fn, z, times, keys)` with
`denoise_fn(z [B, ...], t scalar) -> x_hat [B, ...]`, guidance and thresholding inside, and one key per sample: the
noise of a sample depends only on its own key, not on the batch, the mesh or the host. `times` may start and stop
anywhere in [0, 1]; deterministic samplers also ascend, from an image to its noise (inversion).

A walk may be cut anywhere: `walk` takes a range of its steps, and the same compiled program takes any range.

`ddim`, `dpm_solver` and `heun` without noise approximate the same probability flow, to first, second and second order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.keys import key_from_seed
from imagen_jax.diffusion.process import (
    eps_from_x,
    learned_log_variance,
    log_variance_bounds,
    posterior_mean,
    transition_coefs,
)
from imagen_jax.diffusion.schedules import Schedule
from imagen_jax.diffusion.timesteps import DISCRETE_SPACINGS, check_steps, get_timestep_schedule
from imagen_jax.errors import ConfigError, unknown_name_error

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
# Also returns v in [-1, 1], broadcastable to x_hat, which interpolates the log-variance of a step of `ddpm` between its
# bounds, see `process.learned_log_variance`.
VarianceFn = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
StepInputs = dict[str, jax.Array]  # the numbers of each step, [steps] each, or of one step, scalars
# (z_s [B, ...], x_hat [B, ...], t, s) -> z_s; pure, and compiled into the steps
StepHook = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
VarianceType = Literal["small", "large", "learned"]
VARIANCE_TYPES: tuple[str, ...] = get_args(VarianceType)
SAMPLERS = ("ddpm", "ddim", "bdia", "dpm_solver", "heun")

# Solvers of second order start at this log(alpha / sigma) or above. Cosine schedules go down to -10, where steps in
# log(alpha / sigma) or sigma / alpha are so long that they spoil the following ones, and z carries no information about
# the image. At the clean end solvers use the bound of the schedule.
LAMBDA_MIN = -5.1

# What is left at the image of a difference, at the noise, between z and what DDIM would find: enough is damped for
# other prompts than that of an inversion, in which rounding and the first difference grow by the inverse of this only.
BDIA_DAMPING = 0.1


class SamplerState(NamedTuple):
    """Where a walk is.

    Attributes:
        z: z_t [B, ...] at the time reached.
        x_hat: the denoiser's last prediction [B, ...]; zeros before the first step.
        before: z at the time before [B, ...], for samplers that remember it; else ().
    """

    z: jax.Array
    x_hat: jax.Array
    before: Any = ()


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler for a noise schedule.

    Attributes:
        schedule: the noise schedule.
        inputs: times [steps + 1] -> the numbers of each step, arrays [steps]; "t" and "s" among them.
        step: (denoise_fn, state, numbers of the step, keys [B]) -> state at time s.
        deterministic: whether it adds no noise; it may then ascend.
        lambda_min: lowest log(alpha / sigma) that `times` starts from.
        remembers: whether its states have z at the time before.
    """

    schedule: Schedule
    inputs: Callable[[jax.Array], StepInputs]
    step: Callable[[Any, SamplerState, StepInputs, jax.Array], SamplerState]
    deterministic: bool
    lambda_min: float = -math.inf
    remembers: bool = False

    def start(self, z: jax.Array, before: jax.Array | None = None) -> SamplerState:
        """Returns the state before the first step, at z; `before`, of samplers that remember, see `continue_pair`."""
        return SamplerState(z, jnp.zeros_like(z), (z if before is None else before) if self.remembers else ())

    def times(self, steps: int, spacing: str = "uniform", start: float = 1.0) -> jax.Array:
        """Returns the times of a walk from `start` to 0, [steps + 1], with a spacing of `TIMESTEP_SPACINGS`.

        Raises:
            ConfigError: less than 1 step, an unknown spacing, or `start` is not in (0, 1].
        """
        check_steps(steps)
        if not 0 < start <= 1:
            raise ConfigError(f"start {start} is not a time in (0, 1]: 1 is pure noise, 0 the image")
        highest: jax.Array | float = start
        if self.lambda_min > -math.inf:
            highest = jnp.minimum(start, self.schedule.inverse_logsnr(jnp.asarray(2 * self.lambda_min)))
        if spacing in DISCRETE_SPACINGS:
            return jnp.minimum(get_timestep_schedule(spacing)(self.schedule, steps, start), highest)
        return get_timestep_schedule(spacing)(self.schedule, steps, highest)

    def __call__(
        self, denoise_fn: Any, z: jax.Array, times: Any, keys: jax.Array, on_step: StepHook | None = None
    ) -> jax.Array:
        """Returns z [B, ...] at the last time, from z at the first one.

        Args:
            denoise_fn: a `DenoiseFn`; a `VarianceFn` for `ddpm` with a learned variance.
            z: [B, ...]; at time 1, standard Gaussian noise.
            times: [steps + 1], descending to an image or, for deterministic samplers, ascending to its noise.
            keys: [B], one key per sample; unused by deterministic samplers.
            on_step: applied to z after each step.

        Raises:
            ConfigError: as `check_times`.
        """
        return walk(self, denoise_fn, self.start(z), self._checked_inputs(times), keys, on_step=on_step).z

    def trajectory(self, denoise_fn: Any, z: jax.Array, times: Any, keys: jax.Array) -> SamplerState:
        """Returns z at all times but the first and x_hat of all steps, [steps, B, ...] each; as `__call__` else."""

        def step(state: SamplerState, numbers: StepInputs) -> tuple[SamplerState, SamplerState]:
            state = self.step(denoise_fn, state, numbers, keys)
            return state, state

        return jax.lax.scan(step, self.start(z), self._checked_inputs(times))[1]

    def _checked_inputs(self, times: Any) -> StepInputs:
        if not isinstance(times, jax.core.Tracer):
            check_times(np.asarray(times), self.deterministic)
        return self.inputs(jnp.asarray(times, jnp.float32))


def map_x_hat(denoise_fn: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """Returns a denoiser, or a `VarianceFn`, whose x_hat is changed by a function; v stays as it is."""

    def denoise(z: jax.Array, t: jax.Array) -> Any:
        predicted = denoise_fn(z, t)
        if not isinstance(predicted, tuple):
            return change(predicted)
        x_hat, v = predicted
        return change(x_hat), v

    return denoise


def walk(
    sampler: Sampler,
    denoise_fn: Any,
    state: SamplerState,
    inputs: StepInputs,
    keys: jax.Array,
    *,
    span: tuple[Any, Any] | None = None,
    on_step: StepHook | None = None,
) -> SamplerState:
    """Takes steps of a sampler.

    Args:
        sampler: the sampler.
        denoise_fn: see `Sampler.__call__`.
        state: where the first of the steps begins.
        inputs: from `Sampler.inputs`, for all steps of the walk; entries beyond its end are not looked at.
        keys: [B], one key per sample.
        span: the first step and the one after the last, counted from 0; all by default. If these are arrays, one
            compiled program takes any range, and a walk in parts equals the unbroken one to the bit.
        on_step: applied to z after each step.
    """

    def step(index: jax.Array, state: SamplerState) -> SamplerState:
        numbers = {name: values[index] for name, values in inputs.items()}
        state = sampler.step(denoise_fn, state, numbers, keys)
        if on_step is None:
            return state
        return state._replace(z=on_step(state.z, state.x_hat, numbers["t"], numbers["s"]))

    first, last = (0, len(inputs["t"])) if span is None else span
    return jax.lax.fori_loop(first, last, step, state)


def check_times(times: np.ndarray, may_ascend: bool) -> None:
    """Checks the times of a walk.

    Raises:
        ConfigError: they are not at least two numbers in [0, 1], or neither descend nor, if allowed, ascend strictly.
    """
    text = np.array2string(times, precision=4, threshold=6)
    if times.ndim != 1 or len(times) < 2 or not np.all((times >= 0) & (times <= 1)):
        raise ConfigError(f"times {text} are not at least two numbers in [0, 1]: 1 is pure noise, 0 the image")
    steps = np.diff(times)
    if np.all(steps < 0) or (may_ascend and np.all(steps > 0)):
        return
    if np.all(steps > 0):
        raise ConfigError(
            f"times {text} ascend, which only deterministic samplers can: use ddim with eta 0, dpm_solver"
        )
    raise ConfigError(f"times {text} are not monotone: give times that descend, such as 1, 0.5, 0")


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
        eta: for `ddim`, in [0, 1].
        inversion_iterations: for `ddim`.
        variance_type: for `ddpm`.
        s_churn: for `heun`, see `Churn`, as the following.
        s_tmin: see `Churn`.
        s_tmax: see `Churn`.
        s_noise: see `Churn`.
    """

    eta: float = 0.0
    inversion_iterations: int = 1
    variance_type: VarianceType = "small"
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0


_NO_CHURN = Churn()


def sample_keys(seed: int, indices: jax.Array) -> jax.Array:
    """Returns one key per sample, [B], a function of the seed and of the sample's index alone.

    Args:
        seed: seed of all samples, in [0, 2^64).
        indices: int [B].

    Raises:
        ConfigError: the seed is not an integer in its range.
    """
    root = key_from_seed(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(indices)


def gaussian_noise(keys: jax.Array, step: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
    """Returns standard Gaussian noise [B, *shape] for a step; each sample's is drawn from its own key.

    Args:
        keys: [B], one key per sample.
        step: index of the step, folded into the keys.
        shape: shape of one sample.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def ddpm(schedule: Schedule, variance_type: VarianceType = "small") -> Sampler:
    """Ancestral sampling (arXiv:2006.11239, Alg. 2; arXiv:2205.11487, Eq. 3).

    Args:
        schedule: the noise schedule.
        variance_type: variance of a step's noise: "small", that of the posterior; "large", that of the forward process;
            "learned", interpolated between them by v from a `VarianceFn` (arXiv:2102.09672, Eq. 15).

    Raises:
        ConfigError: an unknown variance type.
    """
    if variance_type not in VARIANCE_TYPES:
        raise unknown_name_error("variance_type", variance_type, VARIANCE_TYPES)

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        z, t, s = state.z, numbers["t"], numbers["s"]
        logsnr_t, logsnr_s = schedule.logsnr(t), schedule.logsnr(s)
        x_hat, v = _split_variance(denoise_fn(z, t), variance_type)
        mean = posterior_mean(x_hat, z, logsnr_t, logsnr_s)
        # the step to the clean end adds only the noise of z_0
        v = jnp.where(s == 0, -1.0, v)
        log_variance = learned_log_variance(v, *log_variance_bounds(logsnr_t, logsnr_s))
        z = mean + jnp.exp(log_variance / 2) * gaussian_noise(keys, numbers["index"], z.shape[1:])
        return SamplerState(z, x_hat)

    return Sampler(schedule, _step_inputs, step, deterministic=False)


def ddim(schedule: Schedule, eta: float = 0.0, inversion_iterations: int = 1) -> Sampler:
    """DDIM (arXiv:2010.02502, Eq. 12 and 16).

    A step down uses the noise predicted in z_t. A step up that undoes one down needs the noise predicted in z_s,
    which is not known yet: it is found by fixed-point iteration from z_t (arXiv:2309.04907).

    Args:
        schedule: the noise schedule.
        eta: 0 is deterministic, 1 adds the noise of DDPM.
        inversion_iterations: evaluations of the denoiser in each step up.

    Raises:
        ConfigError: `eta` is not in [0, 1], or there are no iterations.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta {eta} is not in [0, 1]: 0 is deterministic, 1 has DDPM's noise")
    if inversion_iterations < 1:
        raise ConfigError(f"inversion_iterations {inversion_iterations} must be at least 1")

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        z, t, s = state.z, numbers["t"], numbers["s"]
        alpha_t, sigma_t, alpha_s, sigma_s = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)

        def deterministic(z_s: jax.Array) -> SamplerState:
            # in inversion at the time, and finally at the z, that the step in the other direction would start from
            x_hat = _predict_at(denoise_fn, schedule, z, t, jnp.maximum(t, s), z_s)
            return SamplerState(alpha_s * x_hat + sigma_s * eps_from_x(x_hat, z, alpha_t, sigma_t), x_hat)

        if eta == 0 and inversion_iterations == 1:
            return deterministic(z)
        if eta == 0:
            iterations = jnp.where(s > t, inversion_iterations, 1)
            return jax.lax.fori_loop(0, iterations, lambda _, found: deterministic(found.z), state)
        x_hat = denoise_fn(z, t)
        eps_hat = eps_from_x(x_hat, z, alpha_t, sigma_t)
        snr_ratio, renewed = transition_coefs(schedule.logsnr(t), schedule.logsnr(s))
        # Eq. 16: the standard deviation of the fresh noise, and the coefficient of the direction to z_t
        fresh = eta * sigma_s * jnp.sqrt(renewed)
        direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * snr_ratio)
        # Eq. 12: predicted image + direction pointing to z_t + fresh noise
        noise = gaussian_noise(keys, numbers["index"], z.shape[1:])
        return SamplerState(alpha_s * x_hat + direction * eps_hat + fresh * noise, x_hat)

    return Sampler(schedule, _step_inputs, step, deterministic=eta == 0)


def bdia(schedule: Schedule, damping: float = BDIA_DAMPING) -> Sampler:
    """BDIA-DDIM, which is inverted exactly, up to rounding, with one evaluation a step (arXiv:2307.10829, Eq. 14).

    A step of DDIM from z_t to z_s, to which the difference is added, times gamma, by which the step that led to z_t
    missed z at the time before, r, as DDIM from z_t would find it. With 1 / gamma, it is its own inverse. The first
    step is that of DDIM.

    Args:
        schedule: the noise schedule.
        damping: in (0, 1], gamma to the power of the number of steps: how much of a difference at the noise is left at
            the image.

    Raises:
        ConfigError: `damping` is not in (0, 1].
    """
    if not 0 < damping <= 1:
        raise ConfigError(f"damping {damping} is not in (0, 1]: at 1 nothing is damped")

    def inputs(times: jax.Array) -> StepInputs:
        numbers = _step_inputs(times)
        before = jnp.concatenate([times[:1], times[:-2]])
        gamma = damping ** (1 / (len(times) - 1))
        return numbers | {"r": before, "weight": jnp.where(numbers["s"] < numbers["t"], gamma, 1 / gamma)}

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        z, t, s, r = state.z, numbers["t"], numbers["s"], numbers["r"]
        x_hat = _predict_at(denoise_fn, schedule, z, t, jnp.where(t == 0, s, t))
        eps_hat = eps_from_x(x_hat, z, schedule.alpha(t), schedule.sigma(t))
        missed = state.before - (schedule.alpha(r) * x_hat + schedule.sigma(r) * eps_hat)
        to_s = schedule.alpha(s) * x_hat + schedule.sigma(s) * eps_hat
        # at the first step r is t, and nothing is missed
        return SamplerState(to_s + jnp.where(r == t, 0.0, numbers["weight"] * missed), x_hat, z)

    return Sampler(schedule, inputs, step, deterministic=True, remembers=True)


def continue_pair(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the numbers of the steps of `bdia` for a walk whose first step leads to z that is known.

    That is the `before` of its first state: z at the second time, as a walk in the other direction has left it.
    """
    before, weight = np.array(inputs["r"]), np.array(inputs["weight"])
    before[0], weight[0] = inputs["s"][0], 1.0
    return inputs | {"r": before, "weight": weight}


def dpm_solver(schedule: Schedule) -> Sampler:
    """DPM-Solver++(2M), deterministic and of second order (arXiv:2211.01095, Alg. 2).

    Starts no noisier than LAMBDA_MIN. The first step is of first order because it has no predecessor, one to the clean
    end because lambda jumps there.

    Args:
        schedule: the noise schedule.
    """

    def inputs(times: jax.Array) -> StepInputs:
        numbers = _step_inputs(times)
        # lambda = log(alpha / sigma) rises by h
        h = (schedule.logsnr(numbers["s"]) - schedule.logsnr(numbers["t"])) / 2
        # 1 / 2r with r = h_{i-1} / h_i: weight of the linear extrapolation from the last two predictions
        first_order = (numbers["index"] == 1) | (numbers["s"] == 0)
        return numbers | {"h": h, "extrapolation": jnp.where(first_order, 0.0, h / (2 * jnp.roll(h, 1)))}

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        t, s, extrapolation = numbers["t"], numbers["s"], numbers["extrapolation"]
        x_hat = _predict_at(denoise_fn, schedule, state.z, t, jnp.where(t == 0, s, t))
        # D_i = (1 + 1/2r) x_i - 1/2r x_{i-1}
        d = (1 + extrapolation) * x_hat - extrapolation * state.x_hat
        # sigma_i / sigma_{i-1} z - alpha_i (exp(-h) - 1) D_i
        z = (schedule.sigma(s) / schedule.sigma(t)) * state.z - schedule.alpha(s) * jnp.expm1(-numbers["h"]) * d
        return SamplerState(z, x_hat)

    return Sampler(schedule, inputs, step, deterministic=True, lambda_min=LAMBDA_MIN)


def heun(schedule: Schedule, churn: Churn = _NO_CHURN) -> Sampler:
    """EDM's Heun method, of second order; deterministic without churn (arXiv:2206.00364, Alg. 2).

    Integrates y = z / alpha, whose noise level is sigma / alpha. Starts no noisier than LAMBDA_MIN. The denoiser is
    evaluated twice per step, but once in one to the clean end.

    Args:
        schedule: the noise schedule.
        churn: noise added before steps.
    """
    sigma_max = _sigma_edm(schedule, jnp.ones(()))

    def inputs(times: jax.Array) -> StepInputs:
        numbers = _step_inputs(times)
        gamma_max = min(churn.s_churn / len(numbers["t"]), math.sqrt(2) - 1)
        sigma = _sigma_edm(schedule, numbers["t"])
        return numbers | {"gamma": jnp.where((churn.s_tmin <= sigma) & (sigma <= churn.s_tmax), gamma_max, 0.0)}

    def step(denoise_fn: Any, state: SamplerState, numbers: StepInputs, keys: jax.Array) -> SamplerState:
        def denoise(y: jax.Array, t: jax.Array) -> jax.Array:
            return denoise_fn(schedule.alpha(t) * y, t)

        t, s = numbers["t"], numbers["s"]
        y = state.z / schedule.alpha(t)
        sigma, sigma_next = _sigma_edm(schedule, t), _sigma_edm(schedule, s)
        if churn.s_churn > 0:
            # raise the noise level to sigma_hat = (1 + gamma) sigma, but not above the schedule's highest
            sigma_hat = jnp.maximum(sigma, jnp.minimum((1 + numbers["gamma"]) * sigma, sigma_max))
            eps = churn.s_noise * gaussian_noise(keys, numbers["index"], y.shape[1:])
            # sigma_hat² - sigma² as a product, which does not round below 0
            y = y + jnp.sqrt((sigma_hat - sigma) * (sigma_hat + sigma)) * eps
            t = jnp.where(sigma_hat > sigma, schedule.inverse_logsnr(-2 * jnp.log(sigma_hat)), t)
            sigma = sigma_hat
        # Euler step: y + (sigma_next - sigma) d with d = (y - x_hat) / sigma. Here and below, the paper's sum is
        # written without cancellation where noise levels fall fast.
        x_hat = _predict_at(denoise_fn, schedule, schedule.alpha(t) * y, t, jnp.where(t == 0, s, t))
        y_next = x_hat + (sigma_next / sigma) * (y - x_hat)

        # second-order correction, unless one of the levels is the clean one: y + (sigma_next - sigma) (d + d_next) / 2
        def corrected() -> jax.Array:
            x_next = denoise(y_next, s)
            return y_next + (sigma / sigma_next - 1) / 2 * (x_next - x_hat)

        y = jax.lax.cond((s > 0) & (t > 0), corrected, lambda: y_next)
        return SamplerState(schedule.alpha(s) * y, x_hat)

    return Sampler(schedule, inputs, step, deterministic=churn.s_churn == 0, lambda_min=LAMBDA_MIN)


def get_sampler(name: str, schedule: Schedule, config: SamplerConfig) -> Sampler:
    """Returns the sampler with a name, with those settings that concern it.

    Args:
        name: one of `SAMPLERS`.
        schedule: the noise schedule.
        config: settings of all samplers.

    Raises:
        ConfigError: a name is not known, or a number that concerns the sampler is out of range.
    """
    match name:
        case "ddpm":
            return ddpm(schedule, config.variance_type)
        case "ddim":
            return ddim(schedule, config.eta, config.inversion_iterations)
        case "bdia":
            return bdia(schedule)
        case "dpm_solver":
            return dpm_solver(schedule)
        case "heun":
            return heun(schedule, Churn(config.s_churn, config.s_tmin, config.s_tmax, config.s_noise))
    raise unknown_name_error("sampler", name, SAMPLERS)


def _step_inputs(times: jax.Array) -> StepInputs:
    """Returns the index of each step, counted from 1, and its times t and s, [steps] each."""
    return {"index": jnp.arange(1, len(times)), "t": times[:-1], "s": times[1:]}


def _predict_at(
    denoise_fn: DenoiseFn,
    schedule: Schedule,
    z: jax.Array,
    t: jax.Array,
    time: jax.Array,
    z_time: jax.Array | None = None,
) -> jax.Array:
    """Returns x_hat for z_t, of the noise that the denoiser finds at another time, in `z_time` or, by default, in z.

    A step that leaves the clean end cannot use the denoiser there: an error of x_hat, divided by sigma, would be taken
    for noise. At `time` equal to t this is the denoiser's own x_hat.
    """
    z_time = z if z_time is None else z_time
    x_hat = denoise_fn(z_time, time)
    eps_hat = eps_from_x(x_hat, z_time, schedule.alpha(time), schedule.sigma(time))
    return jnp.where(time == t, x_hat, (z - schedule.sigma(t) * eps_hat) / schedule.alpha(t))


def _split_variance(prediction: Any, variance_type: VarianceType) -> tuple[jax.Array, jax.Array | float]:
    """Returns (x_hat, v) from a denoiser's output."""
    match variance_type:
        case "small":
            return prediction, -1.0
        case "large":
            return prediction, 1.0
    return prediction


def _sigma_edm(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Returns sigma / alpha, the noise level of y = z / alpha and EDM's sigma."""
    return jnp.exp(-schedule.logsnr(t) / 2)
