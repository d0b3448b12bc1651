"""The training loss of a codec: mean absolute error, KL divergence, and a discriminator that is trained beside it.

Both players are in one loss, so that one gradient and one optimizer serve both. The discriminator's term sees
reconstructions through a stop_gradient, and the codec's adversarial term the discriminator's parameters through one:
each parameter gets the gradient of its own player's loss alone.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import StageConfig
from imagen_jax.models.kl_vae import KLVAE, PatchDiscriminator
from imagen_jax.parallel.axes import IMAGE, VECTOR
from imagen_jax.parallel.batching import constrain_batch
from imagen_jax.stages.codec import make_autoencoder, posterior, reconstruction
from imagen_jax.stages.trainable import Tree
from imagen_jax.variational.bounds import residual_kl

DISCRIMINATOR = "discriminator"  # in the tree of parameters, beside `NETWORK_PARTS`
# Where the discriminator is nearly indifferent, its gradient is not enlarged further than so many times.
_MAX_GRADIENT_SCALE = 1e4


class CodecBatch(NamedTuple):
    """The examples of a batch with all randomness drawn.

    Attributes:
        x: images [B, H, W, C] in [-1, 1].
        eps: Gaussian noise [B, h, w, c], of the shape of latents.
        plays: [B], 1 once the discriminator plays, and 0 before.
    """

    x: jax.Array
    eps: jax.Array
    plays: jax.Array


CODEC_BATCH_AXES = CodecBatch(IMAGE, IMAGE, VECTOR)  # type: ignore[arg-type]


class CodecLosses(NamedTuple):
    """The losses of a batch, [B] each.

    Attributes:
        loss: training minimizes its mean.
        l1: mean absolute error of reconstructions, of values in [-1, 1].
        kl: KL divergence from the prior, in nats per value of an image.
        real: mean score of an image's patches; 0 without a discriminator, as the others.
        fake: mean score of a reconstruction's patches.
        hinge: loss of the discriminator.
    """

    loss: jax.Array
    l1: jax.Array
    kl: jax.Array
    real: jax.Array
    fake: jax.Array
    hinge: jax.Array


@dataclasses.dataclass(frozen=True)
class CodecModel:
    """A codec in training, as its config describes it.

    Attributes:
        config: of the run.
        network: the autoencoder; its parameters live outside.
        discriminator: its opponent; None without.
    """

    config: StageConfig
    network: KLVAE
    discriminator: PatchDiscriminator | None

    @classmethod
    def of(cls, config: StageConfig) -> CodecModel:
        """Returns the model of a config whose network is `kl_vae`."""
        settings, model = config.reconstruction, config.model
        assert model.network == "kl_vae"
        discriminator = PatchDiscriminator(
            settings.disc_channels, settings.disc_levels, model.num_groups, DTYPES[model.dtype]
        )
        return cls(config, make_autoencoder(model, config.channels), discriminator if settings.disc_weight else None)

    def with_mesh(self, mesh: Mesh | AbstractMesh) -> CodecModel:
        """Returns the model with a network that shards its activations."""
        return dataclasses.replace(self, network=self.network.clone(constrain=partial(constrain_batch, mesh=mesh)))

    def latent_shape(self, x: jax.Array | jax.ShapeDtypeStruct) -> tuple[int, ...]:
        """Returns the shape of the latents of images [B, H, W, C]."""
        factor = self.config.model.side_multiple
        return (x.shape[0], x.shape[1] // factor, x.shape[2] // factor, self.network.latent_channels)

    def init(self, key: jax.Array) -> Tree:
        """Returns random parameters of both players."""
        image = jnp.zeros((1, *self.config.training_hw, self.config.channels))
        params = dict(self.network.init({"params": key}, image)["params"])
        if self.discriminator is not None:
            params[DISCRIMINATOR] = self.discriminator.init({"params": jax.random.fold_in(key, 1)}, image)["params"]
        return params

    def reconstruct(self, params: Tree, x: jax.Array) -> jax.Array:
        """Returns images [B, H, W, C] encoded to the posterior's mean and decoded, clipped to [-1, 1]."""
        mean, _ = posterior(self.network, params, x)
        return jnp.clip(reconstruction(self.network, params, mean), -1.0, 1.0)

    def loss(self, params: Tree, batch: CodecBatch) -> CodecLosses:
        """Returns the losses of each example (arXiv:2112.10752, Appendix G).

        The adversarial terms are the hinge losses of arXiv:1705.02894. What the discriminator's gradient at a
        reconstruction weighs is set in proportion to that of the absolute error, as in arXiv:2012.09841, Eq. 7, and for
        each example by itself: it is the same in any batch.

        Args:
            params: of both players.
            batch: the examples.
        """
        settings = self.config.reconstruction
        mean, log_variance = posterior(self.network, params, batch.x)
        image = reconstruction(self.network, params, mean + jnp.exp(0.5 * log_variance) * batch.eps)
        axes = (1, 2, 3)
        l1 = jnp.mean(jnp.abs(image - batch.x), axis=axes)
        values = batch.x[0].size
        kl = jnp.sum(residual_kl(mean, 0.5 * log_variance), axis=axes) / values  # of the prior N(0, 1)
        loss = l1 + settings.kl_weight * kl
        if self.discriminator is None:
            zero = jnp.zeros_like(l1)
            return CodecLosses(loss, l1, kl, zero, zero, zero)
        score = partial(self._score, params[DISCRIMINATOR])
        # the absolute error's gradient at a reconstruction has the norm 1 / sqrt(values) in every example
        weighed = scale_gradient(image, settings.disc_weight / values**0.5)
        fooled = self._score(jax.lax.stop_gradient(params[DISCRIMINATOR]), weighed)
        real, fake = score(batch.x), score(jax.lax.stop_gradient(image))
        hinge = 0.5 * jnp.mean(jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), axis=(1, 2))
        generator = -jnp.mean(fooled, axis=(1, 2))
        loss += batch.plays * (generator + hinge)
        return CodecLosses(loss, l1, kl, real.mean(axis=(1, 2)), fake.mean(axis=(1, 2)), hinge)

    def _score(self, params: Tree, images: jax.Array) -> jax.Array:
        assert self.discriminator is not None
        scores = self.discriminator.apply({"params": params}, images)
        assert isinstance(scores, jax.Array)
        return scores


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, norm: float) -> jax.Array:
    """Returns x [B, ...], and scales the gradient of each example of a mean over the batch to a norm.

    A gradient of 0 stays 0, and none is enlarged more than 10,000 times.

    Args:
        x: [B, ...].
        norm: of the gradient of an example's own loss.
    """
    return x


def _scale_gradient_fwd(x: jax.Array, norm: float) -> tuple[jax.Array, None]:
    return x, None


def _scale_gradient_bwd(norm: float, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # what comes in is of the batch's mean, a loss of which each example has a part of 1 / B
    axes = tuple(range(1, gradient.ndim))
    size = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=axes, keepdims=True)) * len(gradient)
    factor = jnp.where(size > 0, jnp.minimum(norm / jnp.where(size > 0, size, 1.0), _MAX_GRADIENT_SCALE), 0.0)
    return (gradient * factor,)


scale_gradient.defvjp(_scale_gradient_fwd, _scale_gradient_bwd)
