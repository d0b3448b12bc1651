"""Measures that hold pictures and predictions against the true picture of a caption, which `shapes` can draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.experiment import Examples, Figures
from configs import shapes_eval
from imagen_jax.diffusion.guidance import static_threshold
from imagen_jax.diffusion.process import add_noise, mse_per_example, predict_x0_and_eps
from imagen_jax.diffusion.schedules import alpha_from_logsnr, cosine, sigma_from_logsnr
from imagen_jax.evaluation.judges import get_judge
from imagen_jax.images.array import to_float, to_whole
from imagen_jax.images.resize import resize
from imagen_jax.pipelines.loading import TrainedStage

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # angles, as of ``schedules.noise_angle``
# of the rows of scores, those that are kept
ROWS = ("colour", "shape", "size", "position", "relation", "background", "all")
BURNT = 1  # how far from 0 or 255 a channel may be that counts as burnt out
MARGIN = 8  # how far from them it is where the true picture is not


def judged(images: np.ndarray, asked: Examples) -> Figures:
    """Pictures uint8 [N, H, W, C] held against their captions, and against the true pictures of these."""
    scores, _ = get_judge(shapes_eval.get_config().judge)(images, asked.captions)
    return {"scores": {row: scores[row] for row in ROWS if row in scores}, "psnr": psnr(images, asked.images)}


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio, in dB, of all pictures uint8 together: of their mean squared error."""
    error = np.mean((images.astype(np.float32) - truth.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def burnt_share(images: np.ndarray, truth: np.ndarray) -> float:
    """The share of channel values at 0 or 255, of those that are not there in the true picture.

    Flat colours have such values of their own, of a white background all: a share of all values would say more of how
    many white backgrounds there are than of the sampler, and one below the truth's would look like a gain.

    Args:
        images: uint8 [N, H, W, C].
        truth: the pictures of the captions' own scenes, likewise. Where a caption leaves a size open they differ from
            what may be drawn: a share that does not depend on how pictures are drawn.
    """
    inside = (truth >= MARGIN) & (truth <= 255 - MARGIN)
    burnt = (images <= BURNT) | (images >= 255 - BURNT)
    return float(burnt[inside].mean())


def shrunk(images: np.ndarray, size: int) -> np.ndarray:
    """Pictures uint8 [N, H, W, C] made small as for the training of a super-resolution stage, [N, size, size, C]."""
    return np.asarray(to_whole(resize(to_float(jnp.asarray(images)), size, size), images.dtype))


def denoising_errors(trained: TrainedStage, seen: Examples) -> list[float]:
    """For each of NOISE_LEVELS the mean squared error of x_hat, which means the same whatever a network predicts.

    x_hat is clipped to the range of images, as in sampling: near pure noise an error of eps would count a
    thousandfold. A super-resolution stage sees the true picture made small, with the noise that it samples with.
    """
    stage = trained.stage
    tokens, mask = map(jnp.asarray, stage.encoder.tokenize(seen.captions))
    images = jnp.asarray(seen.images)
    noise_key, aug_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def error(params: dict, encoder_params: dict, images: jax.Array, logsnr: jax.Array) -> jax.Array:
        x = to_float(images)
        condition = {}
        if stage.is_super_resolution:
            low_res = resize(x, *stage.low_res_shape[:2])
            levels = jnp.full(x.shape[:1], stage.config.sampling.aug_level)
            condition = stage.condition_on(low_res, levels, jax.random.normal(aug_key, low_res.shape))
        text = stage.encoder.encode(encoder_params, tokens, mask)
        alpha, sigma = alpha_from_logsnr(logsnr), sigma_from_logsnr(logsnr)
        z = add_noise(x, jax.random.normal(noise_key, x.shape), alpha, sigma)
        prediction, _ = stage.predict(params, z, jnp.broadcast_to(logsnr, x.shape[:1]), text, mask, condition)
        x_hat, _ = predict_x0_and_eps(prediction, z, alpha, sigma, stage.prediction)
        return jnp.mean(mse_per_example(static_threshold(x_hat), x))

    logsnrs = cosine().logsnr(jnp.array(NOISE_LEVELS))
    return [float(error(trained.params, trained.encoder_params, images, logsnr)) for logsnr in logsnrs]


def mean_error(errors: Sequence[float]) -> float:
    """The geometric mean: each noise level counts by the ratio of its errors, not by their size."""
    return math.exp(sum(map(math.log, errors)) / len(errors))
