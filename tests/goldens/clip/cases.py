"""Runs our CLIP on the weights, images and texts of the goldens."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.text.clip import CLIP

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
# folder -> description
VARIANTS = {
    "quick": "as ViT-L/14: quick_gelu, patches that fit",
    "exact": "gelu, patches that do not fit, eos_token_id 2, several files",
    "vision": "the image tower alone, another size of patches",
}
TEXTS = [
    "a red circle",
    "",
    "A photo of 3 Foxes, isn't it?",
    "the the the " * 30,  # more than fits
    "ümlaut and 😀 in bytes",
    "<|endoftext|> red <|endoftext|>",
]
# of unit vectors in float32; the measured maximum is 2e-7
TOLERANCE = 1e-5
# mean in bfloat16
COSINE = 0.998


def images():
    """Returns images uint8 of three sizes: wide, high, and square."""
    rng = np.random.RandomState(0)
    coarse = [rng.randint(0, 256, (*size, 3)).astype(np.uint8) for size in ((5, 9), (11, 6), (8, 8))]
    return [np.kron(image, np.ones((7, 7, 1), np.uint8)) for image in coarse]


def load(name, dtype=jnp.float32, devices=None):
    devices = jax.devices()[:1] if devices is None else devices
    return CLIP.from_pretrained(HERE / name, make_mesh({"data": -1, "fsdp": 1}, devices), dtype)


def error(ours, theirs):
    """Returns the largest absolute difference."""
    return np.abs(ours - theirs).max()
