"""Metrics of images and predictions against the true image of a caption, which `shapes` can render."""

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
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.resize import resize
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.text import PromptEncoder, make_encoder

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # values of `schedules.cosine_time`
# the rows of scores that are kept
ROWS = ("colour", "shape", "size", "position", "relation", "background", "all")
CLIP_DISTANCE = 1  # channel values up to this far from 0 or 255 count as clipped
MARGIN = 8  # true channel values at least this far from both do not


def evaluate_images(images: np.ndarray, examples: Examples) -> Figures:
    """Returns the scores of images uint8 [N, H, W, C] for their captions, and their PSNR against the true images."""
    scores, _ = get_judge(shapes_eval.get_config().judge)(images, examples.captions)
    return {"scores": {row: scores[row] for row in ROWS if row in scores}, "psnr": psnr(images, examples.images)}


def psnr(images: np.ndarray, truth: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB, from the mean squared error of all images, uint8."""
    error = np.mean((images.astype(np.float32) - truth.astype(np.float32)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def clipped_fraction(images: np.ndarray, truth: np.ndarray) -> float:
    """Returns the fraction of channel values at 0 or 255, among those that are at neither in the true image.

    Flat colors have such values themselves, a white background has no others: a fraction of all values would depend on
    the number of white backgrounds rather than on the sampler.

    Args:
        images: uint8 [N, H, W, C].
        truth: true images of the captions' scenes. They may differ in what a caption leaves open; this part of the
            fraction is the same for all samplers.
    """
    inside = (truth >= MARGIN) & (truth <= 255 - MARGIN)
    clipped = (images <= CLIP_DISTANCE) | (images >= 255 - CLIP_DISTANCE)
    return float(clipped[inside].mean())


def downsample(images: np.ndarray, size: int) -> np.ndarray:
    """Returns images uint8 [N, H, W, C] downsampled as in the training of a super-resolution stage, to size²."""
    return np.asarray(to_uint(resize(to_float(jnp.asarray(images)), size, size), images.dtype))


def denoising_errors(trained: TrainedStage, examples: Examples) -> list[float]:
    """Returns the mean squared error of x_hat at each of NOISE_LEVELS, which is comparable between prediction types.

    x_hat is clipped to the range of images, as in sampling: near pure noise an error of eps would count a
    thousandfold. A super-resolution stage gets the downsampled true image, at the augmentation level of its sampling.
    """
    stage = trained.stage
    encoder = PromptEncoder(make_encoder(stage.config.text), make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
    text = encoder.on_host(examples.captions, len(examples.captions))
    images = jnp.asarray(examples.images)
    noise_key, aug_key = jax.random.split(jax.random.key(0))

    @jax.jit
    def error(params: dict, images: jax.Array, logsnr: jax.Array) -> jax.Array:
        x = to_float(images)
        condition = {}
        if stage.is_super_resolution:
            low_res = resize(x, *stage.low_res_shape[:2])
            levels = jnp.full(x.shape[:1], stage.config.sampling.aug_level)
            condition = stage.augment_low_res(low_res, levels, jax.random.normal(aug_key, low_res.shape))
        alpha, sigma = alpha_from_logsnr(logsnr), sigma_from_logsnr(logsnr)
        z = add_noise(x, jax.random.normal(noise_key, x.shape), alpha, sigma)
        prediction, _ = stage.predict(params, z, jnp.broadcast_to(logsnr, x.shape[:1]), text, condition)
        x_hat, _ = predict_x0_and_eps(prediction, z, alpha, sigma, stage.prediction)
        return jnp.mean(mse_per_example(static_threshold(x_hat), x))

    logsnrs = cosine().logsnr(jnp.array(NOISE_LEVELS))
    return [float(error(trained.params, images, logsnr)) for logsnr in logsnrs]


def mean_error(errors: Sequence[float]) -> float:
    """Returns the geometric mean, in which each noise level counts by the ratio of its errors, not by their size."""
    return math.exp(sum(map(math.log, errors)) / len(errors))
