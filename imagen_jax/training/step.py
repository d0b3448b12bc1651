"""The training step: one pure function of state and batch, compiled once, for any objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax.config.schema import StageConfig
from imagen_jax.diffusion.keys import key_from_seed
from imagen_jax.parallel import runtime
from imagen_jax.parallel.batching import constrain_batch, micro_batches
from imagen_jax.parallel.sharding import replicate_conv_kernels, replicated
from imagen_jax.stages.trainable import merge
from imagen_jax.training.objective import Batch, Metrics, Objective
from imagen_jax.training.optimizers import learning_rate_schedule
from imagen_jax.training.state import Frozen, TrainState, update_ema

_MeanLossFn = Callable[[Any, Frozen, Any], tuple[jax.Array, Any]]


def _accumulate_gradients(
    mean_loss: _MeanLossFn, params: Any, frozen: Frozen, batches: Any, shardings: Any, mesh: Mesh
) -> tuple[Any, Any]:
    """Computes gradients of the mean loss over micro-batches, one after another.

    All randomness is already drawn, so that the result does not depend on the number of micro-batches.

    Args:
        mean_loss: the mean loss of a micro-batch, and its losses, from (params, frozen, examples).
        params: the trained parameters.
        frozen: everything else that the loss reads.
        batches: the examples of the step from `micro_batches`.
        shardings: of the parameters and gradients.
        mesh: the devices.

    Returns:
        (gradients, losses [B, ...]).
    """
    steps = len(jax.tree.leaves(batches)[0])

    def add(total: Any, examples: Any) -> tuple[Any, Any]:
        # XLA would else gather all sharded parameters once, before the loop, and hold them at the same time
        sharded, total = jax.lax.optimization_barrier(((params, frozen.params), total))
        trained, fixed = replicate_conv_kernels(sharded, mesh)
        gradients, losses = jax.grad(mean_loss, has_aux=True)(trained, frozen._replace(params=fixed), examples)
        total = jax.tree.map(lambda t, g: t + g / steps, total, gradients)
        return jax.lax.with_sharding_constraint(total, shardings), losses

    zeros = jax.lax.with_sharding_constraint(jax.tree.map(jnp.zeros_like, params), shardings)
    gradients, losses = jax.lax.scan(add, zeros, batches)
    return gradients, jax.tree.map(lambda values: values.swapaxes(0, 1).reshape(-1, *values.shape[2:]), losses)


def make_train_step(
    objective: Objective,
    config: StageConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    abstract: TrainState,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Returns the jitted step `(state, frozen, batch) -> (state, metrics)`; the state is donated.

    Only the parameters in the state have gradients, moments and an EMA; `frozen` is a `Frozen` with the others.

    The randomness of a step is a function of (seed, step), so that a resumed run continues as an uninterrupted one.
    If the optimizer skips an update, parameters, moments and EMA stay; `skipped` counts the skipped updates of the run.
    `learning_rate` is that of the step's update.

    Args:
        objective: what to minimize.
        config: of the run.
        optimizer: from `make_optimizer`.
        abstract: the abstract state with its shardings.
        mesh: the devices.
    """
    objective = objective.with_mesh(mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    grad_accum_steps = config.training.grad_accum_steps
    learning_rate = learning_rate_schedule(config.optimizer, config.training.steps)
    continued = config.training.init_weights == "both"

    def mean_loss(params: Any, frozen: Frozen, examples: Any) -> tuple[jax.Array, Any]:
        losses = objective.loss(merge(params, frozen.params), frozen.networks, examples)
        return jnp.mean(losses.loss), losses

    def gradients_and_losses(params: Any, frozen: Frozen, examples: Any) -> tuple[Any, Any]:
        if grad_accum_steps == 1:
            return jax.grad(mean_loss, has_aux=True)(params, frozen, examples)
        batches = micro_batches(examples, objective.example_axes, grad_accum_steps, mesh)
        return _accumulate_gradients(mean_loss, params, frozen, batches, shardings.params, mesh)

    def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key_from_seed(config.seed), state.step)
        examples = objective.draw(frozen.networks, batch, key, state.step)
        examples = constrain_batch(examples, objective.example_axes, mesh)
        gradients, losses = gradients_and_losses(state.params, frozen, examples)
        loss = jnp.mean(losses.loss)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, loss=loss)
        params = optax.apply_updates(state.params, updates)
        applied = opt_state.skipped_in_a_row == 0
        ema_params = update_ema(
            state.ema_params, params, state.step, config.optimizer.ema_decay, applied, continued=continued
        )
        metrics = {
            **objective.metrics(batch, losses),
            "loss": loss,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            # the schedule counts applied updates: a skipped one leaves the optimizer's state as it is
            "learning_rate": learning_rate(state.step - state.opt_state.skipped),
            "skipped": opt_state.skipped,
            "skipped_in_a_row": opt_state.skipped_in_a_row,
        }
        return TrainState(state.step + 1, params, opt_state, ema_params), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, None, None),  # frozen parameters and batch keep their shardings
        out_shardings=(shardings, replicated(mesh)),
        compiler_options=runtime.compiler_options(mesh),
    )
