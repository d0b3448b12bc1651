"""The training loss of a stage at given times."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from imagen_jax.diffusion import process, vlb
from imagen_jax.diffusion.schedules import alpha_from_logsnr, cosine_time, sigma_from_logsnr
from imagen_jax.images.array import image_dtype
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.stages.stage import CONDITION_AXES, Stage
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition


class DiffusionBatch(NamedTuple):
    """The examples of a batch with all randomness drawn, as `diffusion_loss` takes them; arrays are [B, ...].

    Attributes:
        x: images [B, H, W, C] in [-1, 1].
        text: embeddings [B, L, D] and mask [B, L].
        condition: from `Stage.augment_low_res`, and from `Stage.mask_known` of pixels; empty for a base stage.
        t: times [B] in [0, 1].
        eps: Gaussian noise of the shape of x, or of its latents [B, h, w, c].
        dropout_keys: keys [B] for the network's dropout; None for no dropout.
    """

    x: jax.Array
    text: TextCondition
    condition: dict[str, jax.Array]
    t: jax.Array
    eps: jax.Array
    dropout_keys: jax.Array | None = None


DIFFUSION_BATCH_AXES = DiffusionBatch(IMAGE, TEXT_CONDITION_AXES, CONDITION_AXES, VECTOR, IMAGE, VECTOR)  # type: ignore[arg-type]


class Losses(NamedTuple):
    """The losses of a batch, [B] each.

    Attributes:
        loss: training minimizes its mean.
        noise_level: `schedules.cosine_time` of each example, in [0, 1].
        vlb: variational bound in bits per dimension, from `vlb.vlb_loss`; None if the variance is not learned.
    """

    loss: jax.Array
    noise_level: jax.Array
    vlb: jax.Array | None


def diffusion_loss(stage: Stage, params: Any, batch: DiffusionBatch) -> Losses:
    """Returns the loss of each example (Eq. 1 of arXiv:2205.11487, for the stage's prediction type).

    For a stage of latents, images are encoded first, and what follows is said of latents.

    For a stage that inpaints it is the mean over the pixels that are to be drawn: the others are known, and sampling
    puts them in place of what is predicted.

    If the variance is learned, `diffusion.vlb_weight` times the variational bound in bits is added; its gradient
    reaches only the variance (arXiv:2102.09672, Eq. 16).

    Args:
        stage: the stage to train.
        params: parameters of its network.
        batch: the examples at their noise levels.
    """
    x, text, condition, t, eps, dropout_keys = batch
    x, condition = stage.encode(params, x), stage.encode_condition(params, condition)
    settings = stage.config.diffusion
    logsnr = stage.schedule.logsnr(t)
    alpha, sigma = alpha_from_logsnr(logsnr), sigma_from_logsnr(logsnr)
    z = process.add_noise(x, eps, alpha, sigma)
    prediction, v = stage.predict(params, z, logsnr, text, condition, dropout_keys=dropout_keys)
    target = process.prediction_target(x, eps, alpha, sigma, stage.prediction)
    drawn = condition["known"][..., -1:] if "known" in condition else None
    weight = process.loss_weight(
        logsnr,
        stage.prediction,
        settings.loss_weighting,  # type: ignore[arg-type]  # one of its choices
        bias=settings.loss_weighting_bias,
        min_snr_gamma=settings.min_snr_gamma,
        sigma_data=settings.sigma_data,
    )
    loss = weight * process.mse_per_example(prediction, target, drawn)
    if v is None:
        return Losses(loss, cosine_time(logsnr), None)
    x_hat, _ = process.predict_x0_and_eps(prediction, z, alpha, sigma, stage.prediction)
    half_bin = 1 / np.iinfo(image_dtype(stage.config.data.bits, "config.data.bits")).max
    vlb_bits = vlb.vlb_loss(x, x_hat, v, z, stage.schedule, t, half_bin=half_bin)
    return Losses(loss + settings.vlb_weight * vlb_bits, cosine_time(logsnr), vlb_bits)
