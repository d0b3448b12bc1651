"""The mathematics of diffusion on JAX alone: schedules, predictions, losses, guidance, samplers and tiling.

Nothing here depends on networks, configs, meshes or files. Samplers take any function that predicts x from z_t. For
x ~ N(2, 0.5²), the exact one recovers the distribution:

>>> import jax.numpy as jnp
>>> from imagen_jax import diffusion
>>> schedule = diffusion.get_schedule("cosine")
>>> def denoise(z, t):
...     alpha, sigma = schedule.alpha(t), schedule.sigma(t)
...     return 2 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (z - 2 * alpha)  # E[x | z_t]
>>> keys = diffusion.sample_keys(seed=0, indices=jnp.arange(4096))
>>> sampler = diffusion.ddim(schedule)
>>> x = sampler(denoise, diffusion.gaussian_noise(keys, 0, (1,)), sampler.times(50), keys)
>>> print(f"{x.mean():.1f} ± {x.std():.1f}")
2.0 ± 0.5
"""

from imagen_jax.diffusion.guidance import (
    Guidance,
    classifier_free,
    dynamic_threshold,
    get_threshold_fn,
    rescale_guidance,
    static_threshold,
)
from imagen_jax.diffusion.inpainting import keep_known, resample
from imagen_jax.diffusion.keys import key_from_seed
from imagen_jax.diffusion.noise_augmentation import AugLevelDistribution
from imagen_jax.diffusion.process import (
    LOSS_WEIGHTINGS,
    PREDICTION_TYPES,
    add_noise,
    append_dims,
    eps_from_x,
    learned_log_variance,
    log_variance_bounds,
    loss_weight,
    mse_per_example,
    posterior_mean,
    predict_x0_and_eps,
    prediction_target,
    sample_timesteps,
)
from imagen_jax.diffusion.random_masks import MASK_KINDS, MaskDistribution
from imagen_jax.diffusion.samplers import (
    SAMPLERS,
    VARIANCE_TYPES,
    Churn,
    Sampler,
    SamplerConfig,
    bdia,
    check_times,
    continue_pair,
    ddim,
    ddpm,
    dpm_solver,
    gaussian_noise,
    get_sampler,
    heun,
    sample_keys,
    walk,
)
from imagen_jax.diffusion.schedules import (
    SCHEDULES,
    Schedule,
    alpha_from_logsnr,
    cosine_time,
    get_schedule,
    logsnr_from_cosine_time,
    sigma_from_logsnr,
)
from imagen_jax.diffusion.tiling import check_tiles, tiled_predict
from imagen_jax.diffusion.timesteps import TIMESTEP_SPACINGS, TimestepSchedule, get_timestep_schedule
from imagen_jax.diffusion.vlb import vlb_loss

__all__ = [
    "LOSS_WEIGHTINGS",
    "MASK_KINDS",
    "PREDICTION_TYPES",
    "SAMPLERS",
    "SCHEDULES",
    "TIMESTEP_SPACINGS",
    "VARIANCE_TYPES",
    "AugLevelDistribution",
    "Churn",
    "Guidance",
    "MaskDistribution",
    "Sampler",
    "SamplerConfig",
    "Schedule",
    "TimestepSchedule",
    "add_noise",
    "alpha_from_logsnr",
    "append_dims",
    "bdia",
    "check_tiles",
    "check_times",
    "classifier_free",
    "continue_pair",
    "cosine_time",
    "ddim",
    "ddpm",
    "dpm_solver",
    "dynamic_threshold",
    "eps_from_x",
    "gaussian_noise",
    "get_sampler",
    "get_schedule",
    "get_threshold_fn",
    "get_timestep_schedule",
    "heun",
    "keep_known",
    "key_from_seed",
    "learned_log_variance",
    "log_variance_bounds",
    "logsnr_from_cosine_time",
    "loss_weight",
    "mse_per_example",
    "posterior_mean",
    "predict_x0_and_eps",
    "prediction_target",
    "resample",
    "rescale_guidance",
    "sample_keys",
    "sample_timesteps",
    "sigma_from_logsnr",
    "static_threshold",
    "tiled_predict",
    "vlb_loss",
    "walk",
]
