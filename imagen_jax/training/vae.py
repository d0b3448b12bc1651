"""The objective of a stage that is a VAE: the ELBO in bits per dimension."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from imagen_jax.images.array import to_float
from imagen_jax.stages.vae import VAE_BATCH_AXES, VAEBatch, VAELosses, encode_batch, latent_shapes, vae_loss
from imagen_jax.training.objective import Batch, Metrics
from imagen_jax.training.stage_objective import StageObjective, draw_low_res, draw_text
from imagen_jax.variational.bounds import warmup_weight

# prefix of the divergences of groups in metrics, numbered from the coarsest on
KL_PREFIX = "kl_bits/group_"


class VAEObjective(StageObjective):
    """The objective of a stage that is a VAE; see `StageObjective`."""

    example_axes: ClassVar[Any] = VAE_BATCH_AXES

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> VAEBatch:
        """Returns the examples of a batch with the noise of their latents; `networks` are the encoder's parameters."""
        stage, config = self.stage, self.stage.config
        noise_key, drop_key, aug_key = jax.random.split(key, 3)
        x = to_float(batch["image"])
        size = len(x)
        noise = tuple(
            jax.random.normal(jax.random.fold_in(noise_key, index), (size, *shape))
            for index, shape in enumerate(latent_shapes(stage, (x.shape[1], x.shape[2])))
        )
        weight = warmup_weight(step, config.vae.kl_warmup_steps)
        return VAEBatch(
            x,
            draw_text(stage, self.encoder, networks, batch, drop_key),
            draw_low_res(stage, aug_key, x) if stage.is_super_resolution else {},
            noise,
            jnp.broadcast_to(weight, (size,)),
        )

    def loss(self, params: Any, networks: Any, examples: VAEBatch) -> VAELosses:
        """Returns the loss of each example, see `vae_loss`."""
        return vae_loss(self.stage, examples, encode_batch(self.stage, params, examples))

    def metrics(self, batch: Batch, losses: VAELosses) -> Metrics:
        """Returns scalars in bits per dimension, among them the divergence of each group.

        `full_captions` is the fraction of captions that use every token position.
        """
        groups = {f"{KL_PREFIX}{index:02d}": kl for index, kl in enumerate(jnp.mean(losses.kls, axis=0))}
        return {
            "full_captions": jnp.mean(batch["mask"][:, -1]),
            "bound_bits": jnp.mean(losses.bound),
            "reconstruction_bits": jnp.mean(losses.reconstruction),
            "kl_bits": jnp.mean(jnp.sum(losses.kls, axis=-1)),
            "kl_weight": jnp.mean(losses.kl_weight),
            **groups,
        }
