"""The folder that images are sampled into: the run's manifest, and which images exist.

    OUT/samples.json      prompts, seed, and for each stage its step, checkpoint and settings
    OUT/images/NNNN.png   an image for each prompt, with what made it (`image_record`)
    OUT/samples.png       a grid of some of them, with their prompts

`GenEvalLayout` puts the images elsewhere. An image is a function of the manifest and its index. So the images of an
interrupted run are kept, and those of another run are not mistaken for them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import is_valid_png, save_png
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.changes import changes, flatten
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.safety_checker import SafetyChecker

MANIFEST = "samples.json"
SHEET = "samples.png"
IMAGES = "images"
MAX_DIFFERENCES = 3  # that a message names
MAX_FLAGGED = 20  # images that a message names
_PROMPT_DIGITS = 5  # in the names of GenEval's folders
_THREADS = 8  # that read or write images at the same time


class Layout(Protocol):
    """Where in a folder the images are.

    Attributes:
        pattern: of their names.
    """

    pattern: str

    def name(self, index: int) -> str:
        """Returns the path of an image in the folder."""
        ...

    def is_name(self, path: Path) -> bool:
        """Returns whether a path that fits the pattern is one that `name` returns: others are not of a run."""
        ...


class FlatLayout:
    """All images in one folder."""

    pattern = f"{IMAGES}/*.png"

    def name(self, index: int) -> str:
        """Returns `images/NNNN.png`."""
        return f"{IMAGES}/{index:04d}.png"

    def is_name(self, path: Path) -> bool:
        """Returns whether the name of a file is a number."""
        return path.stem.isdecimal()


@dataclasses.dataclass(frozen=True)
class GenEvalLayout:
    """The layout that GenEval's programs read (arXiv:2310.11513): a folder for each prompt.

    Attributes:
        images: of each prompt, one after the other.
    """

    images: int
    pattern = "*/samples/*.png"

    def name(self, index: int) -> str:
        """Returns `NNNNN/samples/NNNN.png`."""
        return f"{index // self.images:0{_PROMPT_DIGITS}d}/samples/{index % self.images:04d}.png"

    def is_name(self, path: Path) -> bool:
        """Returns whether the names of a file and of the folder of its prompt are numbers."""
        prompt = path.parent.parent.name
        return path.stem.isdecimal() and prompt.isdecimal() and len(prompt) >= _PROMPT_DIGITS


FLAT = FlatLayout()


def run_manifest(
    stages: Sequence[TrainedStage],
    request: SampleRequest,
    safety_checker: SafetyChecker | None = None,
    layout: Layout = FLAT,
    draft: TrainedStage | None = None,
) -> dict[str, Any]:
    """Returns all that decides the images, as JSON: not how they are batched nor on which devices.

    A text encoder is identified by its name, and by `config.text.fingerprint` where that is given.

    Args:
        stages: of the cascade, base first.
        request: what to sample.
        safety_checker: makes images black that it flags; None for none.
        layout: where the images are.
        draft: see `stages_manifest`.
    """
    scales, texts, positions = request.guidance_scale, request.texts, request.positions
    manifest: dict[str, Any] = {
        "seed": [int(seed) for seed in request.seed] if isinstance(request.seed, Sequence) else int(request.seed),
        "stages": stages_manifest(stages, draft),
        "guidance": None if scales is None else scales[:, positions].tolist(),
        "prompts": {layout.name(request.number(i)).removeprefix(f"{IMAGES}/"): texts.prompts[i] for i in positions},
    }
    # only where they are given, so that folders of versions without them are continued
    if texts.negative_prompts is not None:
        manifest["negative_prompts"] = [texts.negative_prompts[i] for i in positions]
    if request.size is not None:
        manifest["size"] = list(request.size)
    manifest |= checker_manifest(safety_checker)
    return json.loads(json.dumps(manifest))


def checker_manifest(safety_checker: SafetyChecker | None) -> dict[str, Any]:
    """Returns which safety checker makes images black, as JSON; nothing without one."""
    return {} if safety_checker is None else {"safety_checker": safety_checker.checksum}


def stages_manifest(stages: Sequence[TrainedStage], draft: TrainedStage | None = None) -> dict[str, Any]:
    """Returns which stages they are and how they are sampled, as JSON, by their index.

    Args:
        stages: base first.
        draft: the VAE whose images the base starts from, which is described with it; None for none.

    Raises:
        FileNotFoundError: one was not loaded from a folder.
    """
    if not all(trained.checksum for trained in [*stages, *([] if draft is None else [draft])]):
        raise FileNotFoundError("a stage has no checkpoint")
    manifests = {str(index): _stage_manifest(trained) for index, trained in enumerate(stages)}
    if draft is not None:
        manifests["0"]["draft"] = _stage_manifest(draft)
    return manifests


def _stage_manifest(trained: TrainedStage) -> dict[str, Any]:
    """Returns which stage it is, and how it is sampled."""
    manifest = {
        "step": trained.step,
        "checkpoint": trained.checksum,
        "config": trained.config_digest,
        "sampling": to_json(trained.stage.config)["sampling"],
    }
    # only where they are not the usual ones, so that folders of versions without the choice are continued
    return manifest if trained.weights == "ema" else {**manifest, "weights": trained.weights}


def image_path(folder: Path, index: int, layout: Layout = FLAT) -> Path:
    """Returns the path of the image of a sample."""
    return folder / layout.name(index)


def flagged_lines(indices: Sequence[int]) -> list[str]:
    """Returns what a command prints of images that the safety checker has made black: a line, or none."""
    if not indices:
        return []
    names = ", ".join(image_path(Path(), index).name for index in indices[:MAX_FLAGGED])
    more = f" and {len(indices) - MAX_FLAGGED} more" if len(indices) > MAX_FLAGGED else ""
    return [f"{len(indices)} images are black, as the safety checker has flagged them: {names}{more}"]


def prepare(folder: Path, manifest: dict[str, Any], overwrite: bool, layout: Layout = FLAT) -> None:
    """Prepares a folder for a run: writes its manifest, or checks that it holds the same one.

    Args:
        folder: the folder to sample into.
        manifest: see `run_manifest`.
        overwrite: whether images of another run are removed.
        layout: where the images are.

    Raises:
        ConfigError: it holds images of another run, and `overwrite` is False.
    """
    problem = _manifest_diff(folder, manifest, layout)
    if problem and not overwrite:
        raise ConfigError(f"--out {str(folder)!r} {problem}: give another folder, or --overwrite to remove them")
    if problem:
        for path in _list_images(folder, layout):
            path.unlink()
    if problem or not (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, manifest)


def _list_images(folder: Path, layout: Layout) -> list[Path]:
    """Returns all images that a run has written to a folder, the grid last."""
    images = [path for path in folder.glob(layout.pattern) if layout.is_name(path)]
    return [*images, *(path for path in [folder / SHEET] if path.exists())]


def _manifest_diff(folder: Path, manifest: dict[str, Any], layout: Layout) -> str:
    """Returns how a folder's images are known to be of another run, as the end of a sentence; "" if they are not."""
    if not _list_images(folder, layout):
        return ""
    try:
        before, now = flatten(read_json(folder / MANIFEST)), flatten(manifest)
    except FileNotFoundError:
        return f"has images, and no {MANIFEST} that describes them"
    except (ValueError, AttributeError):
        return f"has images, and its {MANIFEST} is damaged"
    changed = list(changes(before, now).values())
    more = f" and {len(changed) - MAX_DIFFERENCES} more" if len(changed) > MAX_DIFFERENCES else ""
    return f"has images of another run: {'; '.join(changed[:MAX_DIFFERENCES])}{more}" if changed else ""


def missing_images(folder: Path, indices: Sequence[int], layout: Layout = FLAT) -> np.ndarray:
    """Returns which of N images are missing or incomplete, bool [N]."""
    existing = set(map(str, folder.glob(layout.pattern)))  # so that an absent image costs no request
    paths = [image_path(folder, index, layout) for index in indices]
    with ThreadPoolExecutor(_THREADS) as threads:
        return np.array([*threads.map(lambda path: str(path) not in existing or not is_valid_png(path), paths)], bool)


def save(
    folder: Path,
    images: Mapping[int, np.ndarray],
    texts: Mapping[int, Mapping[str, str]],
    layout: Layout = FLAT,
) -> None:
    """Writes images.

    Args:
        folder: the folder of the run.
        images: [H, W, C] each, by the index of the sample.
        texts: of the files, by index and keyword.
        layout: where the images are.
    """

    def write(index: int) -> None:
        save_png(images[index], image_path(folder, index, layout), texts[index])

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(write, images))
