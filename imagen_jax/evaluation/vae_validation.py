"""Bounds of a VAE on real images, the divergence of each group of latents, and how many latents are active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.diffusion import samplers
from imagen_jax.evaluation.validation_loss import real_batches
from imagen_jax.images.array import to_float
from imagen_jax.images.resize import resize
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import VECTOR
from imagen_jax.parallel.batching import batch_sharding
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.vae import VAEBatch, draw_noise, encode_batch, importance_weight, vae_loss
from imagen_jax.text.encoder import TextCondition
from imagen_jax.variational.bounds import active_units, bits_per_dim, iwae_bound

BOUND, IWAE = "validation_bound_bits", "validation_iwae_bits"
ACTIVE_GROUPS, ACTIVE_UNITS = "active_groups", "active_units"
GROUP_PREFIX = "validation_kl_bits/group_"
# share of a group's latents from which it counts as active
_ACTIVE_SHARE = 0.01
_AUG_NOISE = 2**16  # index of its noise; groups of latents have smaller ones

VAEValidationFn = Callable[[Any, np.ndarray, TextCondition], dict[str, float]]


def make_vae_validation(stage: Stage, mesh: Mesh, batch_size: int) -> VAEValidationFn:
    """Returns a function `(params, images [N, H, W, C], text) -> metrics`, in bits per dimension.

    `validation_bound_bits` is the negative ELBO, `validation_iwae_bits` the importance-weighted bound with
    `vae.importance_samples` samples, `validation_kl_bits/group_00` and so on are divergences of groups, from the
    coarsest on. `active_units` is the share of latents whose posterior depends on the image, and `active_groups` the
    number of groups in which one of a hundred does.

    The noise of image i depends on i alone, so that bounds of different runs and steps are comparable.

    Args:
        stage: the stage to evaluate.
        mesh: batches are split over all its devices.
        batch_size: images at once, rounded up to a multiple of the mesh's batch parts.
    """

    def make_batch(batch: Any, sample: jax.Array) -> VAEBatch:
        x, keys = to_float(batch["image"]), jax.random.wrap_key_data(batch["keys"])
        condition = {}
        if stage.is_super_resolution:
            low_res = resize(x, *stage.low_res_shape[:2])
            level = jax.vmap(lambda key: stage.aug_levels.sample(key, 1, stage.aug_schedule)[0])(keys)
            noise = samplers.gaussian_noise(keys, _AUG_NOISE, stage.aug_noise_shape(low_res)[1:])
            condition = stage.augment_low_res(low_res, level, noise)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, sample))(keys)
        text = TextCondition(batch["embeddings"], batch["mask"])
        return VAEBatch(x, text, condition, draw_noise(stage, keys, (x.shape[1], x.shape[2])), jnp.ones(len(x)))

    def losses(params: Any, batch: Any) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        examples = make_batch(batch, jnp.uint32(0))
        output = encode_batch(stage, params, examples)
        values = vae_loss(stage, examples, output)
        means = [group.delta_mean.reshape(len(examples.x), -1) for group in output.groups]
        return values.bound, values.kls, means

    def weights(params: Any, batch: Any, sample: jax.Array) -> jax.Array:
        examples = make_batch(batch, sample)
        return importance_weight(stage, examples, encode_batch(stage, params, examples))

    options: dict[str, Any] = {
        "out_shardings": batch_sharding(mesh, VECTOR),
        "compiler_options": runtime.compiler_options(mesh),
    }
    loss_program, weight_program = jax.jit(losses, **options), jax.jit(weights, **options)
    count = stage.config.vae.importance_samples

    def validate(params: Any, images: np.ndarray, text: TextCondition) -> dict[str, float]:
        rows: list[tuple[Any, ...]] = []
        for batch, size in real_batches(images, text, batch_size, mesh):
            samples = [multihost.all_gather(weight_program(params, batch, np.uint32(i))) for i in range(count)]
            values = jax.tree.map(multihost.all_gather, loss_program(params, batch))
            rows.append(jax.tree.map(lambda array, size=size: array[:size], (*values, np.stack(samples, axis=1))))
        bound, kls, means, log_weights = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
        iwae = bits_per_dim(-iwae_bound(jnp.asarray(log_weights.T)), images[0].size)
        active = [np.asarray(active_units(jnp.asarray(group))) for group in means]
        return {
            BOUND: float(bound.mean()),
            IWAE: float(iwae.mean()),
            ACTIVE_GROUPS: float(sum(group.mean() >= _ACTIVE_SHARE for group in active)),
            ACTIVE_UNITS: float(np.concatenate(active).mean()),
            **{f"{GROUP_PREFIX}{index:02d}": float(kl) for index, kl in enumerate(kls.mean(axis=0))},
        }

    return validate
