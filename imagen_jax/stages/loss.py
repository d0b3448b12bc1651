"""What a stage is trained to make small, at given noise levels; and the same on pictures that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.diffusion import process, samplers, vlb
from imagen_jax.diffusion.schedules import logsnr_of_angle, noise_angle, signal
from imagen_jax.images.array import dtype_of, to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import multihost
from imagen_jax.parallel.sharding import batch_parts, batch_sharding, put_examples
from imagen_jax.stages.stage import Stage

# Angles of ``schedules.noise_angle``, from little to much: those of a curve of held-out losses.
HELD_OUT = "held_out_loss_at_noise/"
NOISE_LEVELS = tuple((i + 0.5) / 10 for i in range(10))
SEED = 0


class Losses(NamedTuple):
    """What training looks at, [B] each.

    Attributes:
        loss: whose mean is minimised.
        noise_level: the angle in [0, 1] that the network was told.
        bound: of the variance, in bits per dimension, as of ``variational.bound``; None where it is not learned.
    """

    loss: jax.Array
    noise_level: jax.Array
    bound: jax.Array | None


def losses_at(
    stage: Stage,
    params: Any,
    x: jax.Array,
    text: tuple[jax.Array, jax.Array],
    condition: dict[str, jax.Array],
    t: jax.Array,
    eps: jax.Array,
    dropout_keys: jax.Array | None = None,
) -> Losses:
    """The losses of each example (Eq. 1 of arXiv:2205.11487, in terms of the stage's kind of prediction).

    Where variances are learned, ``diffusion.vlb_weight`` times the variational bound in bits is added, which teaches
    nothing but them (arXiv:2102.09672, Eq. 16).

    Args:
        stage: the stage that is trained.
        params: its parameters.
        x: images [B, H, W, C] in [-1, 1].
        text: embeddings [B, L, D] and mask [B, L].
        condition: from ``Stage.condition_on``, or empty.
        t: times [B] in [0, 1].
        eps: Gaussian noise of the shape of x.
        dropout_keys: [B] of the network's dropout; None for none.
    """
    settings = stage.config.diffusion
    logsnr = stage.schedule.logsnr(t)
    alpha, sigma = signal(logsnr), signal(-logsnr)
    z = process.add_noise(x, eps, alpha, sigma)
    prediction, v = stage.predict(params, z, logsnr, *text, condition, dropout_keys)
    target = process.prediction_target(x, eps, alpha, sigma, stage.prediction)
    weight = process.loss_weight(
        logsnr,
        stage.prediction,
        settings.weight,
        bias=settings.weight_bias,
        min_snr_gamma=settings.min_snr_gamma,
        sigma_data=settings.sigma_data,
    )
    loss = weight * process.squared_error(prediction, target)
    if v is None:
        return Losses(loss, noise_angle(logsnr), None)
    x_hat, _ = process.to_x_and_eps(prediction, z, alpha, sigma, stage.prediction)
    half_bin = 1 / np.iinfo(dtype_of(stage.config.data.bits, "config.data.bits")).max
    bound = vlb.bound(x, x_hat, v, z, stage.schedule, t, half_bin=half_bin)
    return Losses(loss + settings.vlb_weight * bound, noise_angle(logsnr), bound)


def make_held_out_loss(
    stage: Stage, mesh: Mesh, batch_size: int
) -> Callable[[Any, Any, np.ndarray, Sequence[str]], np.ndarray]:
    """A function ``(params, encoder_params, images [N, H, W, C], captions) -> losses [N, NOISE_LEVELS]``.

    The losses are those of training on whole pictures, but that no caption is dropped. The noise and the augmentation
    level of picture i depend on i alone, not on the batch or the mesh, so that runs and steps of a run compare.
    """

    def losses(params: Any, encoder_params: Any, batch: Any, level: jax.Array) -> jax.Array:
        x, keys = to_float(batch["image"]), jax.random.wrap_key_data(batch["keys"])
        text = stage.encoder.encode(encoder_params, batch["tokens"], batch["mask"]), batch["mask"]
        condition = {}
        if stage.is_super_resolution:
            low_res = resize(x, *stage.low_res_shape[:2])
            aug_level = jax.vmap(lambda key: stage.aug_levels.draw(key, 1, stage.aug_schedule)[0])(keys)
            condition = stage.condition_on(low_res, aug_level, samplers.noise(keys, 1, low_res.shape[1:]))
        t = jnp.clip(stage.schedule.time(logsnr_of_angle(level)), 0.0, 1.0)
        eps = samplers.noise(keys, 0, x.shape[1:])
        return losses_at(stage, params, x, text, condition, jnp.broadcast_to(t, x.shape[:1]), eps).loss

    program = jax.jit(losses, out_shardings=batch_sharding(mesh))

    def held_out(params: Any, encoder_params: Any, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        # Every device needs the same share, and every batch the same size: the last is filled up.
        parts = batch_parts(mesh)
        size = -(-min(batch_size, len(images)) // parts) * parts
        found = []
        for start in range(0, len(images), size):
            chosen, said = images[start : start + size], captions[start : start + size]
            surplus = size - len(chosen)
            tokens, mask = stage.encoder.tokenize([*said, *[""] * surplus])
            filled = np.concatenate([chosen, np.zeros((surplus, *chosen.shape[1:]), chosen.dtype)])
            keys = np.asarray(jax.random.key_data(samplers.sample_keys(SEED, jnp.arange(start, start + size))))
            batch = {"image": filled, "tokens": tokens, "mask": mask, "keys": keys}
            placed = put_examples(batch, mesh)
            by_level = [program(params, encoder_params, placed, jnp.float32(level)) for level in NOISE_LEVELS]
            found.append(np.stack([multihost.gather(losses) for losses in by_level], axis=1)[: len(chosen)])
        return np.concatenate(found)

    return held_out


def loss_curve(losses: np.ndarray) -> dict[str, float]:
    """Mean losses [N, NOISE_LEVELS] as metrics: ``held_out_loss_at_noise/0.05`` and so on."""
    means = losses.mean(axis=0)
    return {f"{HELD_OUT}{level:.2f}": float(mean) for level, mean in zip(NOISE_LEVELS, means, strict=True)}


def mean_of_curve(metrics: dict[str, float]) -> float:
    """The mean over noise levels of those metrics that are of ``loss_curve``."""
    return float(np.mean([value for name, value in metrics.items() if name.startswith(HELD_OUT)]))
