"""A small objective beside those of the stages, a denoising autoencoder's, which trains in seconds."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.grid import image_grid
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.training.objective import Preview


class Autoencoder(nn.Module):
    """Images [B, H, W, C] to images of half their size with more channels, and back."""

    channels: int

    @nn.compact
    def __call__(self, x):
        latent = nn.silu(nn.Conv(8, (3, 3), strides=2, name="encoder")(x))
        return nn.ConvTranspose(self.channels, (4, 4), strides=(2, 2), name="decoder")(latent)


class Examples(NamedTuple):
    x: jax.Array
    noisy: jax.Array


class Errors(NamedTuple):
    loss: jax.Array
    largest: jax.Array


@dataclasses.dataclass(frozen=True)
class Denoising:
    """The squared error of an image that is reconstructed from a noisy one; the noise is scaled by another network."""

    config: object
    batch_axes = {"image": IMAGE}
    example_axes = Examples(IMAGE, IMAGE)

    @property
    def network(self):
        return Autoencoder(self.config.channels)

    def with_mesh(self, mesh):
        return self

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, *self.config.image_hw, self.config.channels)))["params"]

    def draw(self, networks, batch, key, step):
        x = to_float(batch["image"])
        return Examples(x, x + networks["scale"] * jax.random.normal(key, x.shape))

    def loss(self, params, networks, examples):
        error = jnp.square(self.network.apply({"params": params}, examples.noisy) - examples.x)
        return Errors(error.mean((1, 2, 3)), error.max((1, 2, 3)))

    def metrics(self, batch, losses):
        return {"largest_error": losses.largest.max()}


class DenoisingTask:
    def __init__(self, config, mesh):
        self.objective = Denoising(config)

    def text_features(self, caption):
        return {}

    def check_sources(self, sources):
        assert all(len(source) for source in sources)

    def load_networks(self, workdir):
        return {"scale": jnp.float32(0.1)}

    def record_networks(self, workdir):
        pass

    def make_preview(self):
        network, shape = self.objective.network, (3, *self.objective.config.image_hw, self.objective.config.channels)

        def preview(params):
            images = network.apply({"params": params}, jnp.zeros(shape))
            grid = image_grid(np.asarray(to_uint(images, np.uint8)), ["", "", ""], 3)
            return Preview(grid, {"validation_error": 1.0}, 1.0)

        return preview

    def make_evaluation(self, workdir):
        return None
