"""Features and logits of Inception-v3 for images, as the Frechet inception distance and its relatives need them.

Weights are a safetensors file with the tensor names of pytorch-fid's. Who has the published file, which is pickled,
writes it once where torch is installed; `conversion_command` gives the line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.images.inception_inputs import get_resizing, inception_inputs
from imagen_jax.io import torch_layout
from imagen_jax.io.local_copy import local_file
from imagen_jax.io.paths import as_path
from imagen_jax.io.tensor_files import TensorFiles, pickle_files, pickled_error
from imagen_jax.models.inception import CLASSES, FEATURES, MIN_SIZE, InceptionOutput, InceptionV3
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import make_mesh, num_batch_shards
from imagen_jax.parallel.sharding import ParamPath, load_params

NETWORK = "inception-v3-fid"
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
_AXES = "batch ..."
# parameters of a batch norm that torch has under other names
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_UNUSED = (".num_batches_tracked", "fc.bias")
_DIGEST_LENGTH = 12


class InceptionFeatures(NamedTuple):
    """What Inception-v3 makes of N images.

    Attributes:
        features: float32 [N, 2048].
        logits: float32 [N, 1008], without the bias of the last layer.
    """

    features: np.ndarray
    logits: np.ndarray


class InceptionEncoder:
    """Inception-v3 on a mesh; images are split over all of its devices.

    Args:
        model: the network.
        params: its parameters, on the mesh.
        resizing: how images are resized, a name of `images.inception_inputs.RESIZINGS`.
        digest: of the weights, see `network`.
        mesh: the devices.

    Attributes:
        network: names the network and its weights: statistics and states of others are refused.
        resizing: see above; likewise.
        width: of the features.
    """

    width = FEATURES

    def __init__(self, model: InceptionV3, params: Any, resizing: str, digest: str, mesh: Mesh) -> None:
        get_resizing(resizing)
        self.network, self.resizing, self.mesh = f"{NETWORK}/{digest}", resizing, mesh
        self._model, self._params = model, params

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        resizing: str = "clean",
        mesh: Mesh | None = None,
        dtype: Any = jnp.float32,
    ) -> InceptionEncoder:
        """Loads the network.

        Args:
            weights: a safetensors file, also in a bucket.
            resizing: a name of `images.inception_inputs.RESIZINGS`.
            mesh: the devices; by default all, each with the full network.
            dtype: of parameters and convolutions; published numbers are of float32.

        Raises:
            ConfigError: the file is missing, is pickled, or has other tensors; the resizing is not known.
        """
        get_resizing(resizing)
        files = TensorFiles([_find(weights)])
        mesh = make_mesh({"data": -1, "fsdp": 1}) if mesh is None else mesh
        shapes = parameter_shapes(dtype)
        flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
        names = {path: tensor_name(path) for path in flat}
        read = torch_layout.parameter_reader(
            weights, files, names, flat, is_unused, f"Inception-v3 as pytorch-fid has it ({PUBLISHED})"
        )
        digest = weights_digest(files, sorted(names.values()))
        return cls(InceptionV3(dtype), load_params(shapes, read, mesh), resizing, digest, mesh)

    def __call__(self, images: Any, batch_size: int = 64) -> InceptionFeatures:
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
        parts = [InceptionFeatures(np.zeros((0, FEATURES), np.float32), np.zeros((0, CLASSES), np.float32))]
        for start in range(0, len(images), size):
            inputs = inception_inputs(images[start : start + size], self.resizing)
            parts.append(self._encode(inputs, size))
        return InceptionFeatures(*map(np.concatenate, zip(*parts, strict=True)))

    def _encode(self, inputs: np.ndarray, size: int) -> InceptionFeatures:
        """Returns the features of inputs [N, H, W, 3], N ≤ size, padded to `size` on the devices."""
        arrays = shard_host_batch({"inputs": pad_batch(inputs, size)}, _AXES, self.mesh)
        output = _make_encode(self._model, self.mesh)(self._params, arrays["inputs"])
        return InceptionFeatures(*(multihost.all_gather(array)[: len(inputs)] for array in output))


@functools.cache
def _make_encode(model: InceptionV3, mesh: Mesh) -> Callable[[dict, jax.Array], InceptionOutput]:
    """Returns the outputs of a network: one function for all equal ones, so that it is compiled once."""

    def encode(params: dict, inputs: jax.Array) -> InceptionOutput:
        # accelerators would round float32 in products to fewer bits; bfloat16 is not affected
        with jax.default_matmul_precision("float32"):
            output: Any = model.apply({"params": params}, inputs)
        return output

    return jax.jit(encode, out_shardings=batch_sharding(mesh, _AXES))


def parameter_shapes(dtype: Any = jnp.float32) -> dict:
    """Returns the parameters as abstract arrays, a plain nested dict; batch norms are always in float32."""
    inputs = jnp.zeros((1, MIN_SIZE, MIN_SIZE, 3))
    shapes = jax.eval_shape(InceptionV3().init, jax.random.key(0), inputs)["params"]
    flat = traverse_util.flatten_dict(shapes)
    return traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, dtype if path[-2] == "conv" else jnp.float32)
            for path, leaf in flat.items()
        }
    )


def tensor_name(path: ParamPath) -> str:
    """Returns the name of the tensor that is the parameter at a path."""
    *modules, leaf = path
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def is_unused(name: str) -> bool:
    """Returns whether a tensor of the published file is not needed: counts of training steps, and the last bias."""
    return name.endswith(_UNUSED)


def weights_digest(files: TensorFiles, names: list[str]) -> str:
    """Returns what identifies weights, whatever file they are in: the start of a SHA-256 of some tensors as float32."""
    digest = hashlib.sha256()
    for name in names:
        tensor = files.read(name, tuple(map(slice, files.shapes[name])))
        digest.update(json.dumps([name, tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor, "<f4").tobytes())
    return digest.hexdigest()[:_DIGEST_LENGTH]


def conversion_command(pickled: str | Path = PUBLISHED, new: str | Path = "inception.safetensors") -> str:
    """Returns the command that writes the published weights as a safetensors file, for an environment with torch."""
    # torch's loader of weights alone builds nothing but tensors
    code = (
        "import torch, safetensors.torch as s; "
        f"s.save_file({{n: t.contiguous() for n, t in torch.load({json.dumps(str(pickled))}, "
        f'map_location="cpu", weights_only=True).items()}}, {json.dumps(str(new))})'
    )
    return f"python -c {shlex.quote(code)}"


def _find(weights: str | Path) -> Path:
    """Returns the file of weights on a disk. Raises ConfigError."""
    path = as_path(weights)
    if pickle_files([path.name]):
        raise pickled_error(path, [path.name], conversion_command(path, path.with_suffix(".safetensors").name))
    if not path.is_file():
        raise ConfigError(
            f"the weights of Inception-v3 {str(weights)!r} are not a file: get {PUBLISHED}, which pytorch-fid's "
            f"releases have, and run once where torch is installed: {conversion_command()}"
        )
    return local_file(path)
