"""A network of a few numbers in the place of EfficientNet-Lite0, loaded and run by the same code."""

import dataclasses
import functools

import flax.linen as nn
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from imagen_jax.evaluation import networks
from imagen_jax.images.measured_inputs import lite0_inputs
from imagen_jax.io.torch_layout import stored_shape
from imagen_jax.models.classifiers import ClassifierOutput

WIDTH, CLASSES, SIDE = 5, 4, 8


class _SmallNetwork(nn.Module):
    """Features and logits are smooth functions of means of an image's quarters."""

    dtype: object = None

    @nn.compact
    def __call__(self, inputs):
        height, width = inputs.shape[1] // 2, inputs.shape[2] // 2
        quarters = inputs[:, : 2 * height, : 2 * width].reshape(len(inputs), 2, height, 2, width, 3).mean((2, 4))
        features = nn.tanh(nn.Dense(WIDTH, name="features")(quarters.reshape(len(inputs), -1)))
        return ClassifierOutput(features, nn.Dense(CLASSES, name="logits")(features))


def _tensor_name(path):
    return ".".join(path).replace("kernel", "weight")


NETWORK = dataclasses.replace(
    networks.LITE0,
    module=_SmallNetwork,
    width=WIDTH,
    classes=CLASSES,
    make_inputs=functools.partial(lite0_inputs, size=(SIDE, SIDE)),
    tensor_name=_tensor_name,
)


def install(monkeypatch):
    """Puts the network in the place of EfficientNet-Lite0."""
    monkeypatch.setitem(networks.NETWORKS, networks.LITE0.name, NETWORK)


def write_weights(path, seed=0, value=None):
    """Writes random weights, or a value in all places; returns the path."""
    rng, tensors = np.random.default_rng(seed), {}
    for place, leaf in traverse_util.flatten_dict(NETWORK.parameter_shapes()).items():
        shape = stored_shape(place, leaf.shape)
        tensors[_tensor_name(place)] = (rng.standard_normal(shape) if value is None else np.full(shape, value)).astype(
            np.float32
        )
    save_file(tensors, path)
    return path
