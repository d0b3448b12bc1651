"""The codec of a stage: from pixels to what its network sees, the latents of an autoencoder, and back.

Its parameters are among the stage's, below their own name in the tree, and are never trained there. With them are the
mean and the deviation of each channel of the latents, measured on training images, by which latents are normalized:
noise schedules are made for data of deviation 1 (arXiv:2112.10752, Appendix G).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import KLVAEConfig
from imagen_jax.models.kl_vae import KLVAE
from imagen_jax.parallel.batching import constrain_batch
from imagen_jax.stages.trainable import Tree

CODEC, LATENTS = "codec", "latents"  # in the tree of a stage's parameters, and below it the mean and deviation
NETWORK_PARTS = ("encoder", "decoder")  # of the parameters of a codec's own run, which a stage takes
TRAINED = f"^(?!{CODEC}/)"  # a pattern of what a stage of latents may train, see `trainable.split`


def make_autoencoder(config: KLVAEConfig, image_channels: int) -> KLVAE:
    """Returns the network that a codec's config describes."""
    fields = config.to_dict()
    del fields["network"]
    fields["dtype"] = DTYPES[fields["dtype"]]
    return KLVAE(image_channels=image_channels, **fields)


@dataclasses.dataclass(frozen=True)
class Codec:
    """Encodes images to latents of mean 0 and deviation 1, and decodes them.

    Attributes:
        network: the autoencoder; its parameters live outside.
        factor: how many times smaller latents are, along each side.
    """

    network: KLVAE
    factor: int

    @classmethod
    def of(cls, config: KLVAEConfig, image_channels: int) -> Codec:
        """Returns the codec that a config describes."""
        return cls(make_autoencoder(config, image_channels), config.side_multiple)

    def with_mesh(self, mesh: Mesh | AbstractMesh) -> Codec:
        """Returns the codec with a network that shards its activations."""
        return dataclasses.replace(self, network=self.network.clone(constrain=partial(constrain_batch, mesh=mesh)))

    def init(self, key: jax.Array) -> Tree:
        """Returns random parameters, with mean 0 and deviation 1."""
        side = self.factor
        params = self.network.init({"params": key}, jnp.zeros((1, side, side, self.network.image_channels)))["params"]
        channels = self.network.latent_channels
        return {**params, LATENTS: {"mean": jnp.zeros((channels,)), "std": jnp.ones((channels,))}}

    def encode(self, params: Tree, images: jax.Array) -> jax.Array:
        """Returns the latents [B, h, w, c] of images [B, H, W, C] in [-1, 1]: the posterior's mean, normalized."""
        mean, _ = posterior(self.network, params, images)
        return (mean - params[LATENTS]["mean"]) / params[LATENTS]["std"]

    def decode(self, params: Tree, latents: jax.Array) -> jax.Array:
        """Returns the images [B, H, W, C] of latents [B, h, w, c]; they are not clipped."""
        mean = latents * params[LATENTS]["std"] + params[LATENTS]["mean"]
        return reconstruction(self.network, params, mean)

    def encode_known(self, params: Tree, images: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the latents of what is known of images, and where they are not known.

        What is below the mask has the mean color of the rest, and so is not seen in the latents beside it.

        Args:
            params: of the codec.
            images: [B, H, W, C] in [-1, 1].
            mask: [B, H, W, 1] in [0, 1]; where it is above 0, pixels are not known.

        Returns:
            Latents [B, h, w, c], and the mask [B, h, w, 1]: the highest value among the pixels of each latent.
        """
        known = (mask == 0).astype(images.dtype)
        mean = jnp.sum(known * images, axis=(1, 2), keepdims=True) / jnp.maximum(
            jnp.sum(known, axis=(1, 2), keepdims=True), 1.0
        )
        return self.encode(params, jnp.where(mask > 0, mean, images)), self.shrink(mask)

    def shrink(self, mask: jax.Array) -> jax.Array:
        """Returns a mask [B, H, W, 1] as [B, h, w, 1]: the highest value among the pixels of each latent."""
        batch, height, width, channels = mask.shape
        squares = mask.reshape(batch, height // self.factor, self.factor, width // self.factor, self.factor, channels)
        return squares.max(axis=(2, 4))


def network_part(params: Tree) -> Tree:
    """Returns the parameters of an autoencoder alone, of a tree that has others beside them."""
    return {name: params[name] for name in NETWORK_PARTS}


def posterior(network: KLVAE, params: Tree, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `KLVAE.encode` of images, for a tree that has the network's parameters."""
    output: Any = network.apply({"params": network_part(params)}, images, method="encode")
    mean, log_variance = output
    return mean, log_variance


def reconstruction(network: KLVAE, params: Tree, latents: jax.Array) -> jax.Array:
    """Returns `KLVAE.decode` of latents that are not normalized, for a tree that has the network's parameters."""
    image: Any = network.apply({"params": network_part(params)}, latents, method="decode")
    return jnp.asarray(image)
