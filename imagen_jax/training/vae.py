"""The objective of a stage that is a VAE: the ELBO in bits per dimension."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax.images.array import to_float
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.vae import VAE_BATCH_AXES, VAEBatch, VAELosses, latent_shapes, vae_loss
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.diffusion import draw_low_res, draw_text, training_axes
from imagen_jax.training.objective import Batch, Metrics
from imagen_jax.variational.bounds import warmup_weight

# prefix of the divergences of groups in metrics, numbered from the coarsest on
KL_PREFIX = "kl_bits/group_"


@dataclasses.dataclass(frozen=True)
class VAEObjective:
    """The training objective of a VAE, an `Objective`; its frozen network is the text encoder.

    Attributes:
        stage: the stage to train.
        encoder: the frozen text encoder.
    """

    example_axes: ClassVar[Any] = VAE_BATCH_AXES

    stage: Stage
    encoder: TextEncoder

    @property
    def batch_axes(self) -> Any:
        """The names of the axes of a batch's arrays."""
        return training_axes(self.stage.config)

    def with_mesh(self, mesh: Mesh) -> VAEObjective:
        """Returns the objective with a network that shards its inputs."""
        return dataclasses.replace(self, stage=self.stage.with_mesh(mesh))

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the stage's network."""
        return self.stage.init(key)

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
        return vae_loss(self.stage, params, examples)

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
