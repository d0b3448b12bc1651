"""Runs our networks on the weights and images of the goldens. Weights are made anew each time: they are up to 95 MB."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from imagen_jax.evaluation.encoder import FeatureEncoder
from imagen_jax.evaluation.networks import NETWORKS
from imagen_jax.images.measured_inputs import RESIZINGS, inception_inputs
from imagen_jax.io.torch_layout import stored_shape
from imagen_jax.parallel.mesh import make_mesh

INCEPTION, LITE0 = NETWORKS
HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
REAL_LITE0 = HERE.parents[2] / ".cache" / "metrics" / f"{LITE0}.safetensors"  # of `make metrics`
FEATURES_KEPT = slice(None, None, 8)  # of features and logits, in the file
# of features about as large as 1, from float32; the measured maximum is in `make parity`
TOLERANCE = 1e-4
# mean in bfloat16
COSINE = 0.999
# of inputs in [-1, 1]
INPUT_TOLERANCE = 1e-5
SIZES = [(299, 299), (64, 64), (96, 131), (400, 333)]
RESIZED = (11, 15)


def tensors(network=INCEPTION):
    """Returns random weights by tensor name, with statistics that leave features of usual size."""
    spec = NETWORKS[network]
    result = {"fc.bias": np.linspace(-1, 1, spec.classes).astype(np.float32)} if network == INCEPTION else {}
    for path, leaf in traverse_util.flatten_dict(spec.parameter_shapes()).items():
        name = spec.tensor_name(path)
        shape = stored_shape(path, leaf.shape)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) == 4:
            # what comes in is half positive
            values = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            values = rng.standard_normal(shape, np.float32) / np.sqrt(shape[1])
        elif path[-1] in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = 0.3 * rng.standard_normal(shape, np.float32)
        result[name] = values.astype(np.float32)
    return result


def images(sizes=SIZES):
    """Returns images uint8 with edges, gradients and noise."""
    rng, result = np.random.RandomState(0), []
    for height, width in sizes:
        coarse = np.kron(rng.randint(0, 200, (8, 8, 3)), np.ones((-(-height // 8), -(-width // 8), 1)))
        result.append((coarse[:height, :width] + rng.randint(0, 56, (height, width, 3))).astype(np.uint8))
    return result


def write_weights(folder, network=INCEPTION):
    """Writes the weights, and returns the path of their file."""
    path = folder / f"{network}.safetensors"
    save_file(tensors(network), path)
    return path


def load(path, resizing="legacy_tensorflow", dtype=jnp.float32, devices=None):
    """Returns the encoder of a file, whose name is that of its network."""
    devices = jax.devices()[:1] if devices is None else devices
    return FeatureEncoder.from_pretrained(path.stem, path, resizing, make_mesh({"data": -1, "fsdp": 1}, devices), dtype)


def inputs():
    """Returns inputs of small size by resizing."""
    return {name: inception_inputs(images(), name, RESIZED) for name in RESIZINGS}


def mean_cosine(first, second):
    """Returns the mean cosine of features [N, D]."""
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return ((first * second).sum(-1) / norms).mean()
