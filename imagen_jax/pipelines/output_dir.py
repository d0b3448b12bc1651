"""The folder that a cascade's pictures are drawn into: what was asked for, and which of them are there.

    OUT/samples.json      prompts, seed, and of each stage its step, checkpoint and settings
    OUT/images/NNNN.png   a picture for each prompt
    OUT/samples.png       some of them, with their prompts

What a picture shows follows from what was asked for and its number. So what is there of a run that was broken off need
not be drawn again, and the pictures of another run are not taken for it.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.rules import flatten
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import is_whole_png, save_png
from imagen_jax.io.atomic import file_hash, read_json, write_json
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.checkpoints import CHECKPOINTS

MANIFEST = "samples.json"
SHEET = "samples.png"
IMAGES = "images"
NAMED = 3  # differences that a refusal names


def run_manifest(
    stages: Sequence[TrainedStage], prompts: Sequence[str], seed: int, guidance_scale: np.ndarray | None
) -> dict[str, Any]:
    """Returns all that decides the images, as JSON: not how they are batched nor on which devices.

    A text encoder is identified by its name, and by `config.text.fingerprint` where that is given.

    Args:
        stages: of the cascade, base first.
        prompts: in their order.
        seed: of the noise.
        guidance_scale: float [stages, prompts], if each prompt has its own.
    """
    manifest: dict[str, Any] = {
        "seed": seed,
        "stages": {str(index): _stage_manifest(trained) for index, trained in enumerate(stages)},
        "guidance": None if guidance_scale is None else guidance_scale.tolist(),
        "prompts": {image_path(Path(), index).name: prompt for index, prompt in enumerate(prompts)},
    }
    return json.loads(json.dumps(manifest))


def _stage_manifest(trained: TrainedStage) -> dict[str, Any]:
    """Returns which stage it is, and how it is sampled."""
    config = json.loads(trained.stage.config.to_json())
    sampling = config.pop("sampling")
    # the files beside the arrays: Orbax writes into one of them when the checkpoint was saved
    folder = trained.folder / CHECKPOINTS / str(trained.step)
    checkpoint = {path.name: file_hash(path) for path in folder.iterdir() if path.is_file()}
    return {
        "step": trained.step,
        "checkpoint": _digest(checkpoint),
        "config": _digest(config),
        "sampling": sampling,
    }


def _digest(value: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def image_path(folder: Path, index: int) -> Path:
    """Where the picture of a prompt goes."""
    return folder / IMAGES / f"{index:04d}.png"


def prepare(folder: Path, asked: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder that of a run, or finds that it is.

    Args:
        folder: to draw into.
        asked: of ``asked_for``.
        overwrite: whether pictures of another run are removed.

    Raises:
        UsageError: it has such, and they are not to be.
    """
    fault = manifest_diff(folder, asked)
    if fault and not overwrite:
        raise ConfigError(f"--out {str(folder)!r} {fault}: give another folder, or --overwrite to have them removed")
    if fault:
        for path in list_images(folder):
            path.unlink()
    if fault or not (folder / MANIFEST).exists():
        write_json(folder / MANIFEST, asked)


def list_images(folder: Path) -> list[Path]:
    """All pictures that a run has drawn into a folder, the sheet last."""
    drawn = [path for path in (folder / IMAGES).glob("*.png") if path.stem.isdecimal()]
    return [*drawn, *(path for path in [folder / SHEET] if path.exists())]


def manifest_diff(folder: Path, asked: dict[str, Any]) -> str:
    """What tells that pictures in the folder are of another run, for a sentence; "" if there are none such."""
    if not list_images(folder):
        return ""
    try:
        before, now = flatten(read_json(folder / MANIFEST)), flatten(asked)
    except FileNotFoundError:
        return f"has pictures and no {MANIFEST} that says of what"
    except (ValueError, AttributeError):
        return f"has pictures, and its {MANIFEST} is damaged"
    changed = [
        f"{name} was {reprlib.repr(before.get(name, 'absent'))} and is now {reprlib.repr(now.get(name, 'absent'))}"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return f"has pictures of another run: {'; '.join(changed[:NAMED])}{more}" if changed else ""


def missing_images(folder: Path, count: int) -> np.ndarray:
    """Which pictures of so many are not there, or not whole: bool [count]."""
    return np.array([not is_whole_png(image_path(folder, index)) for index in range(count)])


def save(folder: Path, images: np.ndarray, first: int, wanted: np.ndarray) -> None:
    """Writes those pictures of a batch [B, H, W, C], of prompts ``first`` and on, that are ``wanted``, bool [N]."""
    for index, image in enumerate(images, first):
        if wanted[index]:
            save_png(image, image_path(folder, index))
