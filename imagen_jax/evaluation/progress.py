"""What an evaluation writes as it goes, so that it continues after a kill.

    OUT/evaluation.json     what is evaluated: stages with their steps and settings, the config, the captions
    OUT/evaluation.jsonl    the state after each batch, one a line
    OUT/metrics.npz         the states of metrics after some batch, see `sample_metrics.py`
    OUT/grid_images/N.png   the images that the grids show
    OUT/evaluated_images/N.png  all images, if they are asked for

The state is a function of the manifest and the number of images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.config.load import to_json
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.judges import Judge
from imagen_jax.evaluation.state import EvaluationState
from imagen_jax.images.grid import is_valid_png, read_png, save_png
from imagen_jax.io.atomic import read_json, write_json
from imagen_jax.io.changes import changes, flatten
from imagen_jax.io.json_lines import append_json_line, replace_lines, scan_json_lines, write_json_lines
from imagen_jax.io.paths import remove_tree
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import MAX_DIFFERENCES, stages_manifest

MANIFEST = "evaluation.json"
RECORDS = "evaluation.jsonl"
IMAGES, SAMPLES = "grid_images", "evaluated_images"
_CHECKSUM = "crc32"  # key of a record: a flipped bit in a count would change the scores
# not samples.png, which may be that of `imagen sample` in the same folder
RESULTS = ("scores.json", "diagnostics.json", "diagnostics.png", "correct.png", "incorrect.png", "metrics.npz")
_THREADS = 8  # that write images at the same time

logger = logging.getLogger(__name__)


def captions_digest(captions: Iterable[str]) -> str:
    """Returns the SHA-256 of captions in their order."""
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(json.dumps(caption).encode() + b"\n")
    return digest.hexdigest()


def evaluation_manifest(
    pipeline: ImagenPipeline, config: EvaluationConfig, captions: Iterable[str], more: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns all that decides the results, as JSON; None for stages that were not loaded from a folder.

    Args:
        pipeline: the cascade; its draft, if it has one, is loaded.
        config: what is evaluated.
        captions: of the samples.
        more: of metrics, and whether images are kept; only where there are any, so that folders of versions without
            them are continued.
    """
    try:
        by_index = stages_manifest(pipeline.stages, pipeline.draft)
    except FileNotFoundError:
        return None
    # the captions are in the digest, and metrics are in `more`, by their weights in place of the files' names
    settings = {name: value for name, value in to_json(config).items() if name not in ("captions", "metrics")}
    manifest = {"stages": by_index, "config": settings, "captions": captions_digest(captions), **more}
    return json.loads(json.dumps(manifest))


class EvaluationFolder:
    """The folder of an evaluation.

    Args:
        out: its path.
        manifest: see `evaluation_manifest`; with None, nothing is continued.
        overwrite: whether results of another evaluation are removed.

    Raises:
        ConfigError: the folder has results of another evaluation, and `overwrite` is False.
    """

    def __init__(self, out: Path, manifest: dict[str, Any] | None, overwrite: bool) -> None:
        self._out, self._records = out, out / RECORDS
        problem = self._difference(manifest)
        if problem and not overwrite:
            raise ConfigError(f"--out {str(out)!r} {problem}: give another folder, or --overwrite to remove them")
        if problem or not (out / MANIFEST).exists():
            self._remove(RESULTS if problem else ())
            write_json(out / MANIFEST, manifest)

    def _difference(self, manifest: dict[str, Any] | None) -> str:
        """Returns how the folder is known to be of another evaluation, as the end of a sentence; "" if it is not."""
        if not (self._out / MANIFEST).exists():
            return ""
        try:
            before, now = flatten(read_json(self._out / MANIFEST) or {}), flatten(manifest or {})
        except (ValueError, AttributeError):
            return f"has an evaluation, and its {MANIFEST} is damaged"
        if not now:
            return "has an evaluation, and these stages have no checkpoints to compare it with"
        changed = list(changes(before, now).values())
        more = f" and {len(changed) - MAX_DIFFERENCES} more" if len(changed) > MAX_DIFFERENCES else ""
        return f"has results of another evaluation: {'; '.join(changed[:MAX_DIFFERENCES])}{more}" if changed else ""

    def _remove(self, results: Sequence[str]) -> None:
        """Removes the state, and these results."""
        if self._records.parent.exists():
            write_json_lines(self._records, [])
            for folder in (IMAGES, SAMPLES) if results else (IMAGES,):
                remove_tree(self._out / folder, ignore_errors=True)
        for name in results:
            (self._out / name).unlink(missing_ok=True)

    def load(self, judge: Judge | None, images: int | None = None) -> EvaluationState | None:
        """Returns the last complete state, None if there is none; later writes continue from there.

        Args:
            judge: of the images.
            images: the number of images that it has to have, as the states of metrics do; None for any.
        """
        records = scan_json_lines(self._records)
        state, count, is_current, others = None, len(records.values), False, 0
        while count and not is_current:
            state = _read_state(records.values[count - 1], judge)
            if state is not None and images not in (None, state.images):
                count, others = count - 1, others + 1
                continue
            is_current = state is not None and all(
                is_valid_png(self._image(index)) for index in (*state.correct, *state.incorrect)
            )
            count -= not is_current
        self._records.parent.mkdir(parents=True, exist_ok=True)
        if records.damaged or count + others < len(records.values):
            dropped = len(records.damaged) + len(records.values) - count - others
            logger.warning(
                f"{self._records}: {dropped} damaged state(s) are left out; it continues from the last sound one"
            )
        replace_lines(self._records, records.lines[:count])  # without a torn last line
        return state if is_current else None

    def save(self, state: EvaluationState, first: int, images: np.ndarray) -> None:
        """Writes the state after a batch, and before it those of its images that a grid shows.

        Args:
            state: with the batch.
            first: index of the batch's first image.
            images: [B, H, W, C] of the last stage.
        """
        for index in (*state.correct, *state.incorrect):
            if index >= first:
                save_png(images[index - first], self._image(index))
        value = state.to_json()
        append_json_line(self._records, {**value, _CHECKSUM: _checksum(value)})

    def save_samples(self, first: int, images: np.ndarray) -> None:
        """Writes all images of a batch, each to a file that is named by its index."""
        with ThreadPoolExecutor(_THREADS) as threads:
            paths = [self._out / SAMPLES / f"{first + row:06d}.png" for row in range(len(images))]
            list(threads.map(save_png, images, paths))

    def save_captions(self, captions: Sequence[str]) -> None:
        """Writes the captions of all images to metadata.jsonl beside them, where readers of folders find them."""
        rows = [{"file_name": f"{index:06d}.png", "text": caption} for index, caption in enumerate(captions)]
        write_json_lines(self._out / SAMPLES / "metadata.jsonl", rows)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Returns images that were saved, [N, H, W, C]."""
        return np.stack([read_png(self._image(index)) for index in indices])

    def _image(self, index: int) -> Path:
        return self._out / IMAGES / f"{index}.png"


def _read_state(record: dict[str, Any], judge: Judge | None) -> EvaluationState | None:
    """Returns the state of a record; None if it is damaged."""
    value = {key: part for key, part in record.items() if key != _CHECKSUM}
    try:
        state = EvaluationState.from_json(value, judge)
        # records of earlier versions have no checksum
        is_sound = (
            record.get(_CHECKSUM, _checksum(value)) == _checksum(value) and value.keys() == state.to_json().keys()
        )
    except Exception:  # whatever a value of another shape leads to
        return None
    return state if is_sound else None


def _checksum(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value).encode())
