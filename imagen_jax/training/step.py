"""The training step: one pure function of state and batch, compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.diffusion.process import sample_timesteps
from imagen_jax.images.array import scale_size, to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import runtime
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.batching import constrain_batch, micro_batches
from imagen_jax.parallel.sharding import replicate_conv_kernels, replicated
from imagen_jax.stages.loss import DIFFUSION_BATCH_AXES, DiffusionBatch, Losses, diffusion_loss
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.text import null_text
from imagen_jax.stages.trainable import merge
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.text.tokenizer import FEATURE_AXES
from imagen_jax.training.state import Frozen, TrainState, update_ema

Batch = dict[str, jax.Array]
TRAINING_AXES = {"image": IMAGE, **FEATURE_AXES}
Metrics = dict[str, jax.Array]
MeanLossFn = Callable[[Any, Any, DiffusionBatch], tuple[jax.Array, Losses]]
# equal bins of the noise level in [0, 1] by which losses are reported; the last is almost pure noise
NOISE_BINS = 5


def make_diffusion_batch(
    stage: Stage, encoder: TextEncoder, encoder_params: Any, batch: Batch, key: jax.Array
) -> DiffusionBatch:
    """Returns the examples of a batch at random times, with all randomness of the step drawn.

    Args:
        stage: the stage to train.
        encoder: the frozen text encoder.
        encoder_params: its parameters.
        batch: `image` uint8 or uint16 [B, H, W, C], full images or crops; `tokens` int32 [B, L], or embeddings
            [B, L, D] from a cache; `mask` bool [B, L].
        key: the key of the step.
    """
    time_key, noise_key, drop_key, aug_key, dropout_key = jax.random.split(key, 5)
    x = to_float(batch["image"])
    text = TextCondition(encoder.encode(encoder_params, batch["tokens"], batch["mask"]), batch["mask"])
    dropped = null_text(stage.config.diffusion.null_text, encoder, encoder_params)
    text = drop_text(drop_key, text, dropped, stage.config.diffusion.cond_drop_prob)
    condition = _low_res_condition(stage, aug_key, x) if stage.is_super_resolution else {}

    t = sample_timesteps(time_key, x.shape[0])
    dropout_keys = jax.random.split(dropout_key, x.shape[0]) if stage.config.model.dropout else None
    return DiffusionBatch(x, text, condition, t, jax.random.normal(noise_key, x.shape), dropout_keys)


def drop_text(key: jax.Array, text: TextCondition, dropped: TextCondition, rate: float) -> TextCondition:
    """Replaces random captions by the null text, for classifier-free guidance (arXiv:2205.11487, Section 2.2).

    Args:
        key: decides which captions are dropped.
        text: embeddings [B, L, D] and mask [B, L].
        dropped: the null text, embeddings [L, D] and mask [L].
        rate: probability of each caption to be dropped.

    Returns:
        Embeddings [B, L, D] and mask [B, L].
    """
    embeddings, mask = text
    null_embeddings, null_mask = dropped
    drop = jax.random.bernoulli(key, rate, (mask.shape[0],))
    embeddings = jnp.where(drop[:, None, None], null_embeddings.astype(embeddings.dtype), embeddings)
    return TextCondition(embeddings, jnp.where(drop[:, None], null_mask, mask))


def loss_by_noise_bin(losses: Losses) -> Metrics:
    """Returns sums `band_losses` and counts `band_counts` of losses [NOISE_BINS]; a bin may have no example."""
    bin_index = jnp.clip((losses.noise_level * NOISE_BINS).astype(jnp.int32), 0, NOISE_BINS - 1)
    members = bin_index[:, None] == jnp.arange(NOISE_BINS)
    # selected, not multiplied by 0, so that a NaN stays in its own bin
    sums = jnp.sum(jnp.where(members, losses.loss[:, None], 0.0), axis=0)
    return {"band_losses": sums, "band_counts": jnp.sum(members, axis=0)}


def _low_res_condition(stage: Stage, key: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
    """Returns the low-resolution condition of targets x [B, H, W, C], at random augmentation levels.

    If x is a crop, the condition is the same crop, downsampled by the factor of full images.
    """
    level_key, noise_key = jax.random.split(key)
    low_res = resize(x, *scale_size(x.shape[1:3], stage.image_shape[:2], stage.low_res_shape[:2]))
    level = stage.aug_levels.sample(level_key, x.shape[0], stage.aug_schedule)
    return stage.augment_low_res(low_res, level, jax.random.normal(noise_key, low_res.shape))


def _accumulate_gradients(
    mean_loss: MeanLossFn, params: Any, frozen: Any, batches: DiffusionBatch, shardings: Any, mesh: Mesh
) -> tuple[Any, Losses]:
    """Computes gradients of the mean loss over micro-batches, one after another.

    All randomness is already drawn, so that the result does not depend on the number of micro-batches.

    Args:
        mean_loss: the mean loss of a micro-batch, and its losses, from (params, frozen, batch).
        params: the trained parameters.
        frozen: the frozen parameters.
        batches: the examples of the step from `micro_batches`.
        shardings: of the parameters and gradients.
        mesh: the devices.

    Returns:
        (gradients, losses [B]).
    """
    steps = len(batches.t)

    def add(total: Any, batch: DiffusionBatch) -> tuple[Any, Losses]:
        # XLA would else gather all sharded parameters once, before the loop, and hold them at the same time
        sharded, total = jax.lax.optimization_barrier(((params, frozen), total))
        gradients, losses = jax.grad(mean_loss, has_aux=True)(*replicate_conv_kernels(sharded, mesh), batch)
        total = jax.tree.map(lambda t, g: t + g / steps, total, gradients)
        return jax.lax.with_sharding_constraint(total, shardings), losses

    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), shardings)
    gradients, losses = jax.lax.scan(add, zeros, batches)
    return gradients, jax.tree.map(lambda values: values.T.ravel(), losses)


def make_train_step(
    stage: Stage,
    encoder: TextEncoder,
    optimizer: optax.GradientTransformationExtraArgs,
    abstract: TrainState,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Returns the jitted step `(state, frozen, batch) -> (state, metrics)`; the state is donated.

    Only the parameters in the state have gradients, moments and an EMA; `frozen` is a `Frozen` with the others.

    The randomness of a step is a function of (seed, step), so that a resumed run continues as an uninterrupted one.
    Metrics are scalars, and two arrays from `loss_by_noise_bin`. `full_captions` is the fraction of captions that use
    every token position: truncated ones, and those that just fit. If the optimizer skips an update, parameters,
    moments and EMA stay; `skipped` counts the skipped updates of the run.

    Args:
        stage: the stage to train.
        encoder: the frozen text encoder.
        optimizer: from `make_optimizer`.
        abstract: the abstract state with its shardings.
        mesh: the devices.
    """
    stage = stage.with_mesh(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    seed, grad_accum_steps = stage.config.seed, stage.config.training.grad_accum_steps

    def mean_loss(params: Any, frozen: Any, batch: DiffusionBatch) -> tuple[jax.Array, Losses]:
        losses = diffusion_loss(stage, merge(params, frozen), batch)
        return jnp.mean(losses.loss), losses

    def gradients_and_losses(params: Any, frozen: Any, batch: DiffusionBatch) -> tuple[Any, Losses]:
        if grad_accum_steps == 1:
            return jax.grad(mean_loss, has_aux=True)(params, frozen, batch)
        batches = micro_batches(batch, DIFFUSION_BATCH_AXES, grad_accum_steps, mesh)
        return _accumulate_gradients(mean_loss, params, frozen, batches, shardings.params, mesh)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        examples = make_diffusion_batch(stage, encoder, frozen.networks, batch, key)
        examples = constrain_batch(examples, DIFFUSION_BATCH_AXES, mesh)
        gradients, losses = gradients_and_losses(state.params, frozen.params, examples)
        loss = jnp.mean(losses.loss)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, loss=loss)
        params = optax.apply_updates(state.params, updates)
        applied = opt_state.skipped_in_a_row == 0
        ema_params = update_ema(state.ema_params, params, state.step, stage.config.optimizer.ema_decay, applied)
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
        in_shardings=(shardings, None, None),  # frozen parameters and batch keep their shardings
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=runtime.compiler_options(mesh),
    )
