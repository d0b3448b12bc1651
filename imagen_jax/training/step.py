"""The training step: one pure function of state and batch, compiled once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.diffusion.process import sample_timesteps
from imagen_jax.images.array import Size, scale_size, to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel.batching import constrain_batch, micro_batches
from imagen_jax.parallel.sharding import replicate_conv_kernels, replicated
from imagen_jax.stages.loss import Losses, diffusion_loss
from imagen_jax.stages.stage import Stage
from imagen_jax.training.state import TrainState, update_ema

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# The parts of [0, 1] that losses are told apart by; the last is almost noise alone.
NOISE_BINS = 5


class DiffusionBatch(NamedTuple):
    """What a network is trained on, [B, ...] each, all that is random in it drawn: as ``diffusion_loss`` takes it."""

    x: jax.Array
    text: tuple[jax.Array, jax.Array]
    condition: dict[str, jax.Array]
    t: jax.Array
    eps: jax.Array
    dropout_keys: jax.Array | None


def make_diffusion_batch(stage: Stage, encoder_params: Any, batch: Batch, key: jax.Array) -> DiffusionBatch:
    """The examples of a batch, at random times.

    Args:
        stage: the stage that is trained.
        encoder_params: those of its frozen text encoder.
        batch: ``image`` uint8 or uint16 [B, H, W, C], whole, ``tokens`` int32 [B, L], or embeddings [B, L, D]
            from a cache, ``mask`` bool [B, L].
        key: all randomness of the step.
    """
    time_key, noise_key, drop_key, aug_key, dropout_key, crop_key = jax.random.split(key, 6)
    crop = stage.config.data.crop_hw
    # cut before anything else is made: what the network is told and what it must say are of one place
    x = to_float(random_crops(crop_key, batch["image"], crop) if any(crop) else batch["image"])
    text = stage.encoder.encode(encoder_params, batch["tokens"], batch["mask"]), batch["mask"]
    text = drop_text(drop_key, text, stage.unconditional(encoder_params), stage.config.diffusion.cond_drop_prob)
    condition = _augmented_low_res(stage, aug_key, x) if stage.is_super_resolution else {}

    t = sample_timesteps(time_key, x.shape[0])
    dropout_keys = jax.random.split(dropout_key, x.shape[0]) if stage.config.model.dropout else None
    return DiffusionBatch(x, text, condition, t, jax.random.normal(noise_key, x.shape), dropout_keys)


def drop_text(
    key: jax.Array, text: tuple[jax.Array, jax.Array], no_text: tuple[jax.Array, jax.Array], rate: float
) -> tuple[jax.Array, jax.Array]:
    """Text [B, L, D] and mask [B, L], those of a share of the captions replaced by ``no_text`` [L, D] and [L].

    For classifier-free guidance (arXiv:2205.11487, Section 2.2).
    """
    embeddings, mask = text
    no_embeddings, no_mask = no_text
    drop = jax.random.bernoulli(key, rate, (mask.shape[0],))
    embeddings = jnp.where(drop[:, None, None], no_embeddings.astype(embeddings.dtype), embeddings)
    return embeddings, jnp.where(drop[:, None], no_mask, mask)


def loss_by_noise_bin(losses: Losses) -> Metrics:
    """Sums and counts [NOISE_BANDS] of the losses in equal bands of noise level: a band may have no example."""
    band = jnp.clip((losses.noise_level * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
    members = band[:, None] == jnp.arange(NOISE_BINS)
    # chosen, not multiplied by 0: a loss that is no number stays in its own band
    sums = jnp.sum(jnp.where(members, losses.loss[:, None], 0.0), axis=0)
    return {"band_losses": sums, "band_counts": jnp.sum(members, axis=0)}


def random_crops(key: jax.Array, images: jax.Array, size: Size) -> jax.Array:
    """A part of a size (h, w) of each of the images [B, H, W, C], every place as likely: [B, h, w, C].

    So the paper trains its last stage, on 256 × 256 parts of 1024 × 1024 images (arXiv:2205.11487, Section 2.4).
    """
    batch, height, width, channels = images.shape
    places = jax.random.randint(key, (batch, 2), 0, jnp.array([height - size[0] + 1, width - size[1] + 1]))

    def crop(image: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (place[0], place[1], 0), (*size, channels))

    return jax.vmap(crop)(images, places)


def _augmented_low_res(stage: Stage, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    """The low-resolution condition made from the target x [B, H, W, C], at augmentation levels of the stage's.

    If x is a crop, so is the condition: of its place, and smaller by as much as a whole image is.
    """
    level_key, noise_key = jax.random.split(key)
    low_res = resize(x, *scale_size(x.shape[1:3], stage.image_shape[:2], stage.low_res_shape[:2]))
    level = stage.aug_levels.sample(level_key, x.shape[0], stage.aug_schedule)
    return stage.augment_low_res(low_res, level, jax.random.normal(noise_key, low_res.shape))


def accumulate_gradients(
    stage: Stage, params: Any, examples: DiffusionBatch, accumulation: int, abstract: Any, mesh: Mesh
) -> tuple[Any, Losses]:
    """(gradients of the mean loss, the losses), from ``accumulation`` micro-batches one after another.

    The gradients lie on the mesh as the abstract parameters do. All randomness is drawn, so that they are those of the
    whole batch, whatever it is cut into.
    """

    def mean_loss(params: Any, examples: DiffusionBatch) -> tuple[jax.Array, Losses]:
        losses = diffusion_loss(stage, params, *examples)
        return jnp.mean(losses.loss), losses

    if accumulation == 1:
        return jax.grad(mean_loss, has_aux=True)(params, examples)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def add(total: Any, examples: DiffusionBatch) -> tuple[Any, Losses]:
        # each time anew: XLA would gather split parameters once, before the loop, and hold all of them at once
        here, total = jax.lax.optimization_barrier((params, total))
        gradients, losses = jax.grad(mean_loss, has_aux=True)(replicate_conv_kernels(here, mesh), examples)
        total = jax.tree.map(lambda t, g: t + g / accumulation, total, gradients)
        return jax.lax.with_sharding_constraint(total, layout), losses

    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), layout)
    gradients, losses = jax.lax.scan(add, zeros, micro_batches(examples, accumulation, mesh))
    return gradients, jax.tree.map(lambda values: values.T.ravel(), losses)


def make_train_step(
    stage: Stage, optimizer: optax.GradientTransformationExtraArgs, abstract: TrainState, mesh: Mesh
) -> jax.stages.Wrapped:
    """The jitted ``(state, encoder_params, batch) -> (state, metrics)``; the state is donated.

    Metrics are scalars, and of ``by_noise_level`` two arrays. ``full_captions`` is the share of captions that fill all
    tokens there are: those that were cut, and the few that just fit. Where the optimizer, which is that of
    ``make_optimizer``, skips an update, parameters, moments and EMA stay; it counts the ``skipped`` ones of the run.
    The randomness of a step is a function of (seed, step), so a resumed run draws what the unbroken one would have.
    """
    stage = stage.with_mesh(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    root = stage.config.seed

    def step(state: TrainState, encoder_params: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(root), state.step)
        examples = constrain_batch(make_diffusion_batch(stage, encoder_params, batch, key), mesh)
        accumulation = stage.config.training.grad_accum_steps
        gradients, losses = accumulate_gradients(stage, state.params, examples, accumulation, abstract.params, mesh)
        loss = jnp.mean(losses.loss)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, loss=loss)
        params = optax.apply_updates(state.params, updates)
        made = opt_state.skipped_in_a_row == 0
        ema_params = update_ema(state.ema_params, params, state.step, stage.config.optimizer.ema_decay, made)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "full_captions": jnp.mean(batch["mask"][:, -1]),
            "skipped": opt_state.skipped,
            "skipped_in_a_row": opt_state.skipped_in_a_row,
            **loss_by_noise_bin(losses),
        }
        if losses.vlb is not None:
            metrics["bound_bits"] = jnp.mean(losses.vlb)
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, None),  # parameters and batch lie where they were put
        out_shardings=(shardings, replicated(mesh)),
    )
