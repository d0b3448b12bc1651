"""CLIP (arXiv:2103.00020): images and texts as unit vectors of one space, whose products tell how well they fit.

B batch, D embedding width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.images.clip_inputs import FILE as INPUTS_FILE
from imagen_jax.images.clip_inputs import CLIPInputs, read_inputs
from imagen_jax.io import torch_layout
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.hub import HubName, access_error, parse_name
from imagen_jax.io.local_copy import local_folder
from imagen_jax.io.paths import as_path
from imagen_jax.io.tensor_files import TensorFiles, tensor_paths, weights_digest
from imagen_jax.io.text import printable
from imagen_jax.models.clip import CLIPTextTower, CLIPVisionTower
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import make_mesh, num_batch_shards
from imagen_jax.parallel.sharding import load_params
from imagen_jax.text.clip_tokenizer import FILES as TOKENIZER_FILES
from imagen_jax.text.clip_tokenizer import CLIPTokenizer, load_clip_tokenizer
from imagen_jax.text.clip_weights import (
    is_unused,
    parameter_shapes,
    read_config,
    tensor_names,
    towers,
    weight_files,
)

_AXES = "batch ..."
# the only files ever downloaded: no pickled weights, no code
_FILES = ("config.json", INPUTS_FILE, *TOKENIZER_FILES)
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")

Tower = CLIPVisionTower | CLIPTextTower


class CLIP:
    """A CLIP on a mesh; images and texts are split over all of its devices.

    Args:
        vision: the image tower.
        text: the text tower; None without one.
        params: of each tower, by "vision" and "text", on the mesh.
        inputs: makes what the image tower sees.
        tokenize: makes what the text tower reads; None without one.
        mesh: the devices.

    Attributes:
        width: D.
    """

    def __init__(
        self,
        vision: CLIPVisionTower,
        text: CLIPTextTower | None,
        params: dict[str, Any],
        inputs: CLIPInputs,
        tokenize: CLIPTokenizer | None,
        mesh: Mesh,
    ) -> None:
        self.width, self.mesh = vision.projection_dim, mesh
        self._vision, self._text, self._params = vision, text, params
        self._inputs, self._tokenize = inputs, tokenize
        self._weights: Sequence[Path] = ()

    @classmethod
    def from_pretrained(cls, name: str | Path, mesh: Mesh | None = None, dtype: Any = jnp.float32) -> CLIP:
        """Loads a CLIP, such as ViT-B/32, B/16 or L/14.

        Args:
            name: a folder with the Hugging Face files of a CLIP or of its image tower with the projection (config.json,
                preprocessor_config.json, tokenizer files, safetensors), also in a bucket; or ORG/NAME or
                ORG/NAME@REVISION on the Hugging Face Hub, such as openai/clip-vit-large-patch14.
            mesh: the devices; by default all, each with full towers.
            dtype: of parameters and computation; norms, softmax and embeddings are always in float32.

        Raises:
            ConfigError: the name leads nowhere, the folder is not a complete CLIP, or the download fails.
        """
        folder, weights = _find(str(name))
        config = read_config(folder)
        vision, text = towers(config, folder)
        inputs = read_inputs(folder, vision.image_size)
        tokenize = None if text is None else load_clip_tokenizer(folder, text.max_position_embeddings)
        if text is not None and tokenize is not None and tokenize.vocab_size > text.vocab_size:
            raise ConfigError(
                f"the tokenizer in {folder} has {tokenize.vocab_size} tokens, the embedding only {text.vocab_size}: "
                "give the tokenizer files that came with the weights"
            )
        mesh = make_mesh({"data": -1, "fsdp": 1}) if mesh is None else mesh
        vision, text = vision.clone(dtype=dtype), text and text.clone(dtype=dtype)
        named: dict[str, Tower] = {"vision": vision} if text is None else {"vision": vision, "text": text}
        clip = cls(vision, text, _load(folder, weights, named, mesh, dtype), inputs, tokenize, mesh)
        clip._weights = weights
        return clip

    @functools.cached_property
    def digest(self) -> str:
        """What identifies the weights of the files that it was loaded from, all of which are read to compute it."""
        files = TensorFiles(self._weights)
        return weights_digest(files, sorted(files.shapes))

    def encode_images(self, images: Any, batch_size: int = 64) -> np.ndarray:
        """Returns unit vectors float32 [B, D] of images.

        Args:
            images: uint8, uint16, or float in [-1, 1], [B, H, W, C], or a sequence of such arrays [H, W, C] or PIL
                images, of any sizes; C is 3 or, for gray, 1. They are resized and cropped as CLIP was trained.
            batch_size: images to encode at once.

        Raises:
            ConfigError: they are something else.
        """
        return self._encode("vision", self._vision, self._inputs, images, batch_size)

    def encode_text(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Returns unit vectors float32 [B, D] of texts; what does not fit into the text length is not read.

        Raises:
            ConfigError: a text is not a str, or this CLIP has no text tower.
        """
        if self._text is None or self._tokenize is None:
            raise ConfigError("this CLIP has an image tower alone: load one with a text tower to encode texts")
        if isinstance(texts, str):
            raise ConfigError(f"texts is the text {texts!r:.80}: give a list of texts")
        return self._encode("text", self._text, self._tokenize, texts, batch_size)

    def _encode(
        self, name: str, tower: Tower, prepare: Callable[[Any], np.ndarray], values: Any, batch_size: int
    ) -> np.ndarray:
        """Returns the unit vectors of a tower for what is made of the values, batch by batch."""
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} is not at least 1")
        size = padded_size(min(batch_size, max(1, len(values))), num_batch_shards(self.mesh))
        encode, parts = make_encode(tower, self.mesh), [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(values), size):
            batch = prepare(values[start : start + size])
            arrays = shard_host_batch({"inputs": pad_batch(batch, size)}, _AXES, self.mesh)
            parts.append(multihost.all_gather(encode(self._params[name], arrays["inputs"]))[: len(batch)])
        return np.concatenate(parts)


@functools.cache
def make_encode(tower: Tower, mesh: Mesh) -> Callable[[dict, jax.Array], jax.Array]:
    """Returns the unit vectors [B, D] of a tower: one function for all equal ones, so that it is compiled once."""

    def encode(params: dict, inputs: jax.Array) -> jax.Array:
        # accelerators would round float32 in products to fewer bits; bfloat16 is not affected
        with jax.default_matmul_precision("float32"):
            embeddings: Any = tower.apply({"params": params}, inputs)
        return embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)

    return jax.jit(encode, out_shardings=batch_sharding(mesh, _AXES))


def _load(folder: Path, weights: Sequence[Path], named: dict[str, Tower], mesh: Mesh, dtype: Any) -> dict[str, Any]:
    """Loads the parameters of towers; each process reads only what its devices need. Raises ConfigError."""
    shapes = {name: parameter_shapes(tower, dtype) for name, tower in named.items()}
    names = {(name, *path): text for name in named for path, text in tensor_names(shapes[name], name).items()}
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    read = torch_layout.parameter_reader(folder, TensorFiles(weights), names, flat, is_unused)
    return load_params(shapes, read, mesh)


def _find(name: str) -> tuple[Path, list[Path]]:
    """Returns the folder of a CLIP on a disk, and the files of its weights. Raises ConfigError."""
    path = as_path(name)
    if path.is_dir():
        folder = local_folder(path)
        return folder, weight_files(folder)
    repository = None if is_bucket(name) else parse_name(name)
    if repository is None or path.is_file():
        raise ConfigError(
            f"CLIP {printable(name)!r} is neither a folder nor ORG/NAME, a name on the Hugging Face Hub: give the "
            "folder of a CLIP, or for example openai/clip-vit-large-patch14"
        )
    return _fetch(repository)


def _fetch(name: HubName) -> tuple[Path, list[Path]]:
    """Returns the folder in the Hub's cache, and the files of the weights; what it lacks is downloaded."""
    import huggingface_hub

    patterns = [*_FILES, *_WEIGHTS]
    try:
        folder = Path(huggingface_hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=patterns))
    except Exception as error:  # errors of the network, the Hub and the disk
        raise access_error(name, error) from error
    if tensor_paths(folder):
        return folder, weight_files(folder)
    try:
        others = huggingface_hub.list_repo_files(name.repo, revision=name.revision)
    except Exception:  # it is only for the message
        others = []
    return folder, weight_files(folder, name.repo, others)
