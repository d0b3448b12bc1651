"""Checks of a run before anything is compiled, loaded or written: that it fits the devices, and that it can learn."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.config.schema import OptimizerConfig, StageConfig
from imagen_jax.diffusion.schedules import get_schedule
from imagen_jax.errors import ConfigError, collect_errors
from imagen_jax.images.array import format_size
from imagen_jax.parallel.mesh import check_batch_size, make_mesh, num_batch_shards
from imagen_jax.stages.stage import check_rows
from imagen_jax.training.optimizers import decay_end, learning_rate_schedule

# Float32 numbers near 0.01, the size of most weights, are 9e-10 apart: smaller updates are lost when they are added.
_MIN_LEARNING_RATE = 1e-10
# eps in optax.contrib.muon, which has no key
_MUON_EPS = 1e-8
# An image that is scaled by less than this, and noise of deviation 1 added, cannot be seen.
_MIN_SIGNAL = 1e-2
# A smaller text dropout leaves texts in any run that is not a trial of a few steps.
_HIGH_DROP_PROB = 0.99


def check_training(config: StageConfig, devices: list[jax.Device] | None = None) -> None:
    """Checks that the mesh fits the devices, that batches and images fit the mesh, and that nothing is learned in vain.

    Args:
        config: the stage; loading has already checked that its values fit together.
        devices: the devices to run on; None for all.

    Raises:
        ConfigError: with all problems at once.
    """
    mesh = make_mesh(config.mesh.axes, devices)
    collect_errors(
        lambda: check_batch_size(config.training.batch_size, mesh, config.training.grad_accum_steps),
        lambda: check_rows(config, mesh.shape["spatial"]),
        lambda: _check_two_rows(config, mesh),
        partial(check_learning, config),
    )


def _check_two_rows(config: StageConfig, mesh: Mesh) -> None:
    """Refuses features of two rows on two devices, if batches are shared, too.

    For their convolutions XLA (jaxlib 0.10.2) computes gradients of kernels that are too large by as many times as
    batches have parts. With two rows for each device, or with one for each of four, they are right.
    """
    if mesh.shape["spatial"] != 2 or num_batch_shards(mesh) == 1:
        return
    name = "data.crop_size" if any(config.data.crop_hw) else "image_size"
    sizes = [(name, config.training_hw), *(("data.buckets", bucket) for bucket in config.data.bucket_hws)]
    for name, size in sizes:
        if size[0] // config.side_multiple == 2:
            raise ConfigError(
                f"{name} {format_size(size)} has two rows at the coarsest level, one for each of two devices "
                "(mesh.spatial), for which XLA computes wrong gradients where batches are shared, too: set "
                "mesh.spatial=1, or give the network a level less"
            )


# whether a run can learn


def check_learning(config: StageConfig) -> None:
    """Checks that updates can change parameters until the last step, and that the network sees its inputs.

    Raises:
        ConfigError: with all problems at once.
    """
    collect_errors(
        partial(_check_decay, config),
        partial(_check_update_size, config.optimizer),
        partial(_check_weight_decay, config.optimizer),
        partial(_check_text, config),
        partial(_check_low_res, config),
    )


def _check_decay(config: StageConfig) -> None:
    optimizer, steps = config.optimizer, config.training.steps
    if 0 < optimizer.decay_steps < steps and optimizer.end_learning_rate < _MIN_LEARNING_RATE:
        raise ConfigError(
            f"optimizer.decay_steps {optimizer.decay_steps} is below training.steps {steps}: the last "
            f"{steps - optimizer.decay_steps} steps would train with a learning rate of "
            f"{optimizer.end_learning_rate:g} and learn nothing; set optimizer.decay_steps to 0, which follows "
            "training.steps, or optimizer.end_learning_rate above 0"
        )


def _check_update_size(optimizer: OptimizerConfig) -> None:
    # no gradient is larger than clip_norm, and where it is smaller than eps the update is as much smaller
    eps = {"adam": optimizer.eps, "muon": _MUON_EPS}.get(optimizer.name, 0.0)
    factor = min(1.0, optimizer.clip_norm / eps) if eps else 1.0
    if optimizer.learning_rate * factor < _MIN_LEARNING_RATE:
        clipped = f" with optimizer.clip_norm {optimizer.clip_norm:g}, far below eps {eps:g}," if factor < 1 else ""
        raise ConfigError(
            f"optimizer.learning_rate {optimizer.learning_rate:g}{clipped} changes weights by about "
            f"{optimizer.learning_rate * factor:.2g} in an update, which float32 rounds away: the run would learn "
            f"nothing; raise {'optimizer.clip_norm, for example to 1' if factor < 1 else 'it, for example to 1e-4'}"
        )


def _check_weight_decay(optimizer: OptimizerConfig) -> None:
    scale = 1.0 if optimizer.name == "adafactor" else optimizer.learning_rate
    if optimizer.weight_decay * scale >= 1:
        product = "" if optimizer.name == "adafactor" else f" × optimizer.learning_rate {optimizer.learning_rate:g}"
        raise ConfigError(
            f"optimizer.weight_decay {optimizer.weight_decay:g}{product} is at least 1: each update would remove all "
            "that the parameters have learned before; lower it, for example to 0.01"
        )


def _check_text(config: StageConfig) -> None:
    rate, training = config.diffusion.cond_drop_prob, config.training
    expected = (1 - rate) * training.steps * training.batch_size
    if rate >= _HIGH_DROP_PROB and expected < 1 and config.sampling.guidance_scale != 0:
        raise ConfigError(
            f"diffusion.cond_drop_prob {rate:g} drops every caption: the network would never see a text, and samples "
            "would ignore their prompts; lower it, for example to 0.1, or set sampling.guidance_scale to 0 to train "
            "and sample without text"
        )


def _check_low_res(config: StageConfig) -> None:
    """Checks that a super-resolution stage can see its low-resolution image at some augmentation level."""
    diffusion = config.diffusion
    if not config.is_super_resolution:
        return
    if diffusion.aug_level_distribution == "uniform":
        low = diffusion.aug_level_range[0]
        logsnr = float(get_schedule(diffusion.aug_schedule, diffusion.aug_schedule_shift).logsnr(jnp.float32(low)))
        given = f"diffusion.aug_level_range {diffusion.aug_level_range}"
        if diffusion.aug_schedule_shift:
            given += f" with diffusion.aug_schedule_shift {diffusion.aug_schedule_shift:g}"
    else:  # three standard deviations below the mean: one image of 700 has less noise
        logsnr = -2 * (diffusion.aug_level_mean - 3 * diffusion.aug_level_std)
        given = f"diffusion.aug_level_mean {diffusion.aug_level_mean:g}"
    if math.exp(0.5 * logsnr) < _MIN_SIGNAL:
        raise ConfigError(
            f"{given} hides the low-resolution image behind noise in every step: the network would never see it; lower "
            "it, for example diffusion.aug_level_range=(0.0, 1.0) with diffusion.aug_schedule_shift=0"
        )


def learning_warnings(config: StageConfig) -> list[str]:
    """Returns a sentence for each setting that is sound for a trial, or on purpose, and otherwise a mistake."""
    optimizer, steps = config.optimizer, config.training.steps
    rate = learning_rate_schedule(optimizer, steps)
    end, warnings = decay_end(optimizer, steps), []
    if optimizer.warmup_steps >= steps:
        warnings.append(
            f"THE RUN ENDS WITHIN THE WARM-UP: optimizer.warmup_steps {optimizer.warmup_steps} is not below "
            f"training.steps {steps}, so that the learning rate reaches {float(rate(steps - 1)):.3g} of "
            f"{optimizer.learning_rate:g}: lower optimizer.warmup_steps, unless this is a trial"
        )
    if end < steps:
        warnings.append(
            f"THE SCHEDULE ENDS BEFORE THE RUN: from step {end} (optimizer.decay_steps) to {steps} (training.steps) "
            f"the learning rate is {optimizer.end_learning_rate:g} (optimizer.end_learning_rate)"
        )
    if config.is_codec:
        return warnings + _codec_warnings(config)
    if (
        config.diffusion.cond_drop_prob == 0
        and config.sampling.guidance_scale != 1
        and not config.training.init_from  # which may have trained them
    ):
        warnings.append(
            f"NO CAPTION IS DROPPED: sampling.guidance_scale {config.sampling.guidance_scale:g} compares with "
            "predictions without text, which diffusion.cond_drop_prob 0 never trains: raise it, for example to 0.1, or "
            "sample with a guidance_scale of 1"
        )
    return warnings


def _codec_warnings(config: StageConfig) -> list[str]:
    """Returns what the loss of a codec lacks."""
    settings, steps = config.reconstruction, config.training.steps
    plays = settings.disc_weight > 0 and settings.disc_start < steps
    warnings = [
        "the codec's loss is the mean absolute error, the KL divergence and "
        f"{'a discriminator' if plays else 'nothing else'}: there is no perceptual term (LPIPS), whose network's "
        "weights, of VGG, are in no package"
    ]
    if settings.disc_weight and not plays:
        warnings.append(
            f"THE DISCRIMINATOR NEVER PLAYS: reconstruction.disc_start {settings.disc_start} is not below "
            f"training.steps {steps}: lower it, or set reconstruction.disc_weight to 0"
        )
    return warnings
