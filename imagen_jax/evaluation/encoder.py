"""Features and logits of networks for images, which distances between sets of images are computed of.

Weights are safetensors files with the tensor names of the published ones, which are pickled: who has them writes them
once where torch is installed, see `Network.conversion_command`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.networks import Network, get_network
from imagen_jax.images.measured_inputs import get_resizing
from imagen_jax.io import torch_layout
from imagen_jax.io.local_copy import local_file
from imagen_jax.io.paths import as_path
from imagen_jax.io.tensor_files import TensorFiles, pickle_files, pickled_error, weights_digest
from imagen_jax.models.classifiers import ClassifierOutput
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import make_mesh, num_batch_shards
from imagen_jax.parallel.sharding import load_params

_AXES = "batch ..."


class Features(NamedTuple):
    """What a network makes of N images.

    Attributes:
        features: float32 [N, D].
        logits: float32 [N, K].
    """

    features: np.ndarray
    logits: np.ndarray


class FeatureEncoder:
    """A network on a mesh; images are split over all of its devices.

    Args:
        spec: which network.
        params: its parameters, on the mesh.
        resizing: how images are resized, a name of `images.measured_inputs.RESIZINGS`.
        digest: of the weights, see `network`.
        mesh: the devices.
        dtype: of convolutions.

    Attributes:
        network: names the network and its weights: statistics and states of others are refused.
        resizing: see above; likewise.
        width: D.
        suffix: see `Network`.
    """

    def __init__(
        self, spec: Network, params: Any, resizing: str, digest: str, mesh: Mesh, dtype: Any = jnp.float32
    ) -> None:
        get_resizing(resizing)
        self.network, self.resizing, self.mesh = f"{spec.name}/{digest}", resizing, mesh
        self.width, self.suffix = spec.width, spec.suffix
        self._spec, self._model, self._params = spec, spec.module(dtype), params

    @classmethod
    def from_pretrained(
        cls,
        network: str,
        weights: str | Path,
        resizing: str = "clean",
        mesh: Mesh | None = None,
        dtype: Any = jnp.float32,
    ) -> FeatureEncoder:
        """Loads a network.

        Args:
            network: a name of `networks.NETWORKS`.
            weights: a safetensors file, also in a bucket.
            resizing: a name of `images.measured_inputs.RESIZINGS`.
            mesh: the devices; by default all, each with the full network.
            dtype: of parameters and convolutions; published numbers are of float32.

        Raises:
            ConfigError: the file is missing, is pickled, or has other tensors; a name is not known.
        """
        spec = get_network(network)
        get_resizing(resizing)
        files = TensorFiles([_find(spec, weights)])
        mesh = make_mesh({"data": -1, "fsdp": 1}) if mesh is None else mesh
        shapes = spec.parameter_shapes(dtype)
        flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
        names = {path: spec.tensor_name(path) for path in flat}
        expected = f"{spec.title} ({spec.published})"
        read = torch_layout.parameter_reader(weights, files, names, flat, spec.is_unused, expected)
        digest = weights_digest(files, sorted(names.values()))
        return cls(spec, load_params(shapes, read, mesh), resizing, digest, mesh, dtype)

    def __call__(self, images: Any, batch_size: int = 64) -> Features:
        """Returns features and logits of images, in every process.

        Args:
            images: an array [N, H, W, C], uint8, uint16, or float in [-1, 1], or a sequence of such [H, W, C], or PIL
                images, of any sizes; C is 3 or, for gray, 1.
            batch_size: images at once, rounded up to a multiple of the devices.

        Raises:
            ConfigError: they are something else.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is not at least 1")
        size = padded_size(min(batch_size, max(1, len(images))), num_batch_shards(self.mesh))
        parts = [Features(*(np.zeros((0, count), np.float32) for count in (self._spec.width, self._spec.classes)))]
        for start in range(0, len(images), size):
            inputs = self._spec.make_inputs(images[start : start + size], self.resizing)
            parts.append(self._encode(inputs, size))
        return Features(*map(np.concatenate, zip(*parts, strict=True)))

    def _encode(self, inputs: np.ndarray, size: int) -> Features:
        """Returns the features of inputs [N, H, W, 3], N ≤ size, padded to `size` on the devices."""
        arrays = shard_host_batch({"inputs": pad_batch(inputs, size)}, _AXES, self.mesh)
        output = make_encode(self._model, self.mesh)(self._params, arrays["inputs"])
        return Features(*(multihost.all_gather(array)[: len(inputs)] for array in output))


@functools.cache
def make_encode(model: Any, mesh: Mesh) -> Callable[[dict, jax.Array], ClassifierOutput]:
    """Returns the outputs of a network: one function for all equal ones, so that it is compiled once."""

    def encode(params: dict, inputs: jax.Array) -> ClassifierOutput:
        # accelerators would round float32 in products to fewer bits; bfloat16 is not affected
        with jax.default_matmul_precision("float32"):
            output: Any = model.apply({"params": params}, inputs)
        return output

    return jax.jit(encode, out_shardings=batch_sharding(mesh, _AXES))


def _find(spec: Network, weights: str | Path) -> Path:
    """Returns the file of weights on a disk. Raises ConfigError."""
    path = as_path(weights)
    if pickle_files([path.name]):
        new = path.with_suffix(".safetensors").name
        raise pickled_error(path, [path.name], spec.conversion_command(path, new))
    if not path.is_file():
        raise ConfigError(
            f"the weights of {spec.title}, {str(weights)!r}, are not a file: get {spec.published} ({spec.source}), and "
            f"run once where torch is installed: {spec.conversion_command()}"
        )
    return local_file(path)
