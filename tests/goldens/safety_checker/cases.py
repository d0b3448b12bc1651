"""A tiny safety checker of DeepFloyd IF, as diffusers writes it, and pipelines that have it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from imagen_jax.images.clip_inputs import FILE
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.safety_checker import SafetyChecker

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
CHECKER = HERE / "safety_checker"
INPUTS = HERE / "feature_extractor"
# of scores in float32
TOLERANCE = 1e-5
SIZES = (8, 16, 40)  # of images, which are made larger, and smaller
COUNT = 6


def images(size):
    """Returns images uint8 [COUNT, size, size, 3] of few colors, from dark to bright."""
    rng = np.random.RandomState(size)
    coarse = rng.randint(0, 256, (COUNT, 4, 4, 3)) * np.linspace(0.2, 1, COUNT)[:, None, None, None]
    return np.kron(coarse.astype(np.uint8), np.ones((1, size // 4, size // 4, 1), np.uint8))


def folder(target, nsfw=0.0, watermark=0.0):
    """Writes the checker as a cascade has it, in one folder, with other scores by these numbers."""
    shutil.copytree(CHECKER, target)
    shutil.copy(INPUTS / FILE, target / FILE)
    tensors = load_file(target / "model.safetensors")
    tensors["p_head.bias"] += np.float32(nsfw)
    tensors["w_head.bias"] += np.float32(watermark)
    save_file(tensors, target / "model.safetensors")
    return target


def load(target, mesh=None, checksum="", **shifts):
    """Returns the checker of `folder`, on one device."""
    mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]) if mesh is None else mesh
    return SafetyChecker(folder(target, **shifts), mesh, checksum)


def with_checker(pipeline, target):
    """Writes a pipeline without a checker with one, as diffusers does."""
    shutil.copytree(pipeline, target)
    shutil.rmtree(target / INPUTS.name, ignore_errors=True)
    shutil.copytree(INPUTS, target / INPUTS.name)
    shutil.copytree(CHECKER, target / CHECKER.name)
    path = target / "model_index.json"
    index = json.loads(path.read_text()) | {
        "requires_safety_checker": True,
        "safety_checker": ["deepfloyd_if", "IFSafetyChecker"],
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return target
