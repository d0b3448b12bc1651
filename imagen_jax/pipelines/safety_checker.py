"""The safety checker of DeepFloyd IF: two scores of each image, of unsafe content and of watermarks.

Both are linear in what CLIP's image tower makes of the image. Images with a score above `THRESHOLD` are flagged, and
are made black where they are shown; those that are measured, in evaluation and in previews of training, are not
checked.

    FOLDER/config.json                 of a CLIP, whose image tower it is
    FOLDER/model*.safetensors          of the tower and of two heads; the names are those of diffusers
    FOLDER/preprocessor_config.json    how images are resized and normalized
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from imagen_jax.images.clip_inputs import FILE as INPUTS_FILE
from imagen_jax.images.clip_inputs import read_inputs
from imagen_jax.io import torch_layout
from imagen_jax.io.local_copy import copy_file, local_folder
from imagen_jax.io.paths import as_path
from imagen_jax.io.tensor_files import INDEX_FILE, TensorFiles
from imagen_jax.models.clip import CLIPVisionTower
from imagen_jax.parallel import multihost
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import ReadSliceFn, load_params, param_shardings
from imagen_jax.stages.cascade_folder import weights_checksum
from imagen_jax.stages.published import SAFETY_CHECKER, SafetyCheckerEntry, is_published_stage, safety_checker_of
from imagen_jax.text.clip_weights import (
    is_unused,
    parameter_shapes,
    read_config,
    tensor_names,
    vision_tower,
    weight_files,
)

THRESHOLD = 0.5  # of both scores, as in diffusers
FROM_CASCADE = "cascade"  # in the place of a checker: that of the stages
_HEADS = ("p_head", "w_head")  # of unsafe content ("pornography"), and of watermarks
_AXES = "batch ..."


class SafetyScores(NamedTuple):
    """Scores float32 [N] of images."""

    nsfw: np.ndarray
    watermark: np.ndarray


@dataclasses.dataclass(frozen=True)
class SafetyReport:
    """What the safety checker has found in N images.

    Attributes:
        nsfw_detected: bool [N], where there may be unsafe content.
        watermark_detected: bool [N], where there may be a watermark.
    """

    nsfw_detected: np.ndarray
    watermark_detected: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Which images are black for either reason, bool [N]."""
        return self.nsfw_detected | self.watermark_detected

    def blacken(self, images: np.ndarray) -> np.ndarray:
        """Returns images [N, H, W, C] with those that are flagged in black."""
        return np.where(self.flagged[:, None, None, None], images.dtype.type(0), images)


class SafetyChecker:
    """A safety checker on a mesh; its weights are loaded at first use.

    Args:
        folder: on a disk, see above.
        mesh: the devices; images are split over all of them.
        checksum: identifies the weights; "" if that is not known.

    Attributes:
        folder: as given.
        checksum: as given.

    Raises:
        ConfigError: a file is missing or damaged, or the tensors are not those of a safety checker.
    """

    def __init__(self, folder: Path, mesh: Mesh, checksum: str = "") -> None:
        self.folder, self.mesh, self.checksum = folder, mesh, checksum
        self._tower = vision_tower(read_config(folder), folder)
        self._inputs = read_inputs(folder, self._tower.image_size)
        self._shapes = _shapes(self._tower)
        self._read = _reader(folder, self._shapes)

    @functools.cached_property
    def params(self) -> Any:
        """The weights on the mesh."""
        return load_params(self._shapes, self._read, self.mesh)

    def on(self, mesh: Mesh) -> SafetyChecker:
        """Returns this checker on other devices; weights that are loaded are copied."""
        other = SafetyChecker(self.folder, mesh, self.checksum)
        if "params" in self.__dict__:
            other.__dict__["params"] = jax.device_put(self.params, param_shardings(self.params, mesh))
        return other

    def scores(self, images: np.ndarray, batch_size: int) -> SafetyScores:
        """Returns the scores of images, uint8 or uint16 [N, H, W, C], of which so many are scored at once."""
        size = padded_size(batch_size, num_batch_shards(self.mesh))
        score, parts = _make_score(self._tower, self.mesh), [np.zeros((0, len(_HEADS)), np.float32)]
        for start in range(0, len(images), size):
            batch = self._inputs(images[start : start + size])
            arrays = shard_host_batch({"inputs": pad_batch(batch, size)}, _AXES, self.mesh)
            parts.append(multihost.all_gather(score(self.params, arrays["inputs"]))[: len(batch)])
        return SafetyScores(*np.concatenate(parts).T)

    def __call__(self, images: np.ndarray, batch_size: int) -> SafetyReport:
        """Returns which images, uint8 or uint16 [N, H, W, C], are flagged; see `scores`."""
        return SafetyReport(*(scores > THRESHOLD for scores in self.scores(images, batch_size)))


def _shapes(tower: CLIPVisionTower) -> dict[str, Any]:
    """Returns the parameters of a checker as abstract arrays, nested dicts; all of them in float32."""
    head = {
        "kernel": jax.ShapeDtypeStruct((tower.projection_dim, 1), jnp.float32),
        "bias": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    return {"vision": parameter_shapes(tower), **dict.fromkeys(_HEADS, head)}


def _reader(folder: Path, shapes: dict[str, Any]) -> ReadSliceFn:
    """Returns a function that reads parameters from the folder's files. Raises ConfigError."""
    tower = tensor_names(shapes["vision"], "vision", prefix="vision_model.")
    names = {("vision", *path): name for path, name in tower.items()}
    for head in _HEADS:
        names |= {(head, "kernel"): f"{head}.weight", (head, "bias"): f"{head}.bias"}
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
    return torch_layout.parameter_reader(folder, TensorFiles(weight_files(folder)), names, flat, is_unused)


@functools.cache
def _make_score(tower: CLIPVisionTower, mesh: Mesh) -> Callable[[Any, jax.Array], jax.Array]:
    """Returns the scores [B, 2] of what images become for the tower: one function for all equal ones."""

    def score(params: Any, inputs: jax.Array) -> jax.Array:
        # accelerators would round float32 in products to fewer bits; bfloat16 is not affected
        with jax.default_matmul_precision("float32"):
            embeddings: Any = tower.apply({"params": params["vision"]}, inputs)
            scores = [embeddings @ params[head]["kernel"] + params[head]["bias"] for head in _HEADS]
        return jnp.concatenate(scores, axis=1)

    return jax.jit(score, out_shardings=batch_sharding(mesh, _AXES))


def open_checker(given: SafetyChecker | str | Path | None, stages: Sequence[Path], mesh: Mesh) -> SafetyChecker | None:
    """Returns the safety checker of a pipeline.

    Args:
        given: a checker, or its folder, also in a bucket; None for none; or `FROM_CASCADE` for that of the cascade
            which the last of the stages is of or, without one there, of one before it.
        stages: folders, from `find_stages`.
        mesh: the devices.

    Raises:
        ConfigError: its files are missing or damaged.
    """
    if isinstance(given, (str, Path)) and given != FROM_CASCADE:
        return SafetyChecker(local_folder(as_path(given)), mesh)
    if not isinstance(given, str):
        return given
    for stage in filter(is_published_stage, reversed(stages)):
        entry = safety_checker_of(stage)
        if entry is not None and entry.folder is not None:
            return SafetyChecker(stage.parent / entry.folder, mesh, entry.checksum)
    return None


def checker_files(folder: Path) -> list[Path]:
    """Returns the files of the safety checker in a folder, without any others that are there. Raises ConfigError."""
    others = (folder / name for name in ("config.json", INPUTS_FILE, INDEX_FILE))
    return [*weight_files(folder), *(path for path in others if path.is_file())]


def copy_checker(checker: SafetyChecker, cascade: Path, model: str) -> SafetyCheckerEntry:
    """Copies a safety checker into the folder of a cascade, and returns its entry in the index.

    Args:
        checker: the checker.
        cascade: the folder, on a disk.
        model: where the checker is from.

    Raises:
        OSError: a file cannot be copied.
    """
    folder = cascade / SAFETY_CHECKER
    for path in checker_files(checker.folder):
        copy_file(path, folder / path.name)
    return SafetyCheckerEntry(model=model, checksum=weights_checksum(folder), folder=SAFETY_CHECKER)
