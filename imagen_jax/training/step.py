"""The training step: one pure function of state and batch, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax import diffusion
from imagen_jax.resizing import resize
from imagen_jax.schedules import signal
from imagen_jax.sharding import batch_sharding, replicated
from imagen_jax.stage import Stage, to_float
from imagen_jax.training.state import TrainState, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def example_losses(stage: Stage, params: Any, encoder_params: Any, batch: Batch, key: jax.Array) -> jax.Array:
    """The loss of each example, [B] (Eq. 1 of arXiv:2205.11487, in terms of the stage's kind of prediction).

    Args:
        stage: the stage that is trained.
        params: its parameters.
        encoder_params: those of its frozen text encoder.
        batch: ``image`` uint8 [B, H, W, C], whole, ``tokens`` int32 [B, L], ``mask`` bool [B, L].
        key: all randomness of the step.
    """
    time_key, noise_key, drop_key, aug_key, dropout_key, crop_key = jax.random.split(key, 6)
    crop_size = stage.config.data.crop_size
    # cut before anything else is made: what the network is told and what it must say are of one place
    x = to_float(random_crops(crop_key, batch["image"], crop_size) if crop_size else batch["image"])
    text, mask = drop_captions(
        drop_key,
        stage.encoder.encode(encoder_params, batch["tokens"], batch["mask"]),
        batch["mask"],
        stage.config.diffusion.caption_dropout,
    )
    condition = augmented_low_res(stage, aug_key, x) if stage.is_super_resolution else {}

    logsnr = stage.schedule.logsnr(diffusion.stratified_times(time_key, x.shape[0]))
    alpha, sigma = signal(logsnr), signal(-logsnr)
    eps = jax.random.normal(noise_key, x.shape)
    z = diffusion.add_noise(x, eps, alpha, sigma)
    prediction = stage.predict(params, z, logsnr, text, mask, condition, dropout_key)
    target = diffusion.prediction_target(x, eps, alpha, sigma, stage.prediction)
    settings = stage.config.diffusion
    weight = diffusion.loss_weight(logsnr, stage.prediction, settings.weight, settings.weight_bias)
    return weight * diffusion.squared_error(prediction, target)


def drop_captions(key: jax.Array, text: jax.Array, mask: jax.Array, rate: float) -> tuple[jax.Array, jax.Array]:
    """Text [B, L, D] and mask [B, L], a share of the captions zeroed for classifier-free guidance (Section 2.2)."""
    keep = ~jax.random.bernoulli(key, rate, (text.shape[0],))
    return text * keep[:, None, None], mask & keep[:, None]


def random_crops(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """A ``size`` × ``size`` part of each of the images [B, H, W, C], every place as likely: [B, size, size, C].

    So the paper trains its last stage, on 256 × 256 parts of 1024 × 1024 images (arXiv:2205.11487, Section 2.4).
    """
    batch, height, width, channels = images.shape
    places = jax.random.randint(key, (batch, 2), 0, jnp.array([height - size + 1, width - size + 1]))

    def crop(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (place[0], place[1], 0), (size, size, channels))

    return jax.vmap(crop)(images, places)


def augmented_low_res(stage: Stage, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    """The low-resolution condition made from the target x [B, H, W, C], at augmentation levels U(0, 1).

    If x is a crop, so is the condition: of its place, and smaller by as much as a whole image is.
    """
    level_key, noise_key = jax.random.split(key)
    size = x.shape[1] * stage.low_res_shape[0] // stage.image_shape[0]
    low_res = resize(x, size, size)
    level = jax.random.uniform(level_key, (x.shape[0],))
    return stage.condition_on(low_res, level, jax.random.normal(noise_key, low_res.shape))


def make_train_step(
    stage: Stage, optimizer: optax.GradientTransformation, abstract: TrainState, mesh: Mesh
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """The jitted ``(state, encoder_params, batch) -> (state, metrics)``; the state is donated.

    The randomness of a step is a function of (seed, step), so a resumed run draws what the unbroken one would have.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    root = stage.config.seed

    def step(state: TrainState, encoder_params: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(root), state.step)

        def mean_loss(params: Any) -> jax.Array:
            return jnp.mean(example_losses(stage, params, encoder_params, batch, key))

        loss, gradients = jax.value_and_grad(mean_loss)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, state.step, stage.config.optimizer.ema_decay)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )
