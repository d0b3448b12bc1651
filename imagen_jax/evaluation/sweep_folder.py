"""The folder of a sweep, from which it continues after a kill.

OUT/inputs.json                  what all points share: stages, config, captions, metrics
OUT/low_res/NNNNNNNN.npz         images of the stages before the swept one, as floats, a file for each batch
OUT/points/NAME/state.npz        a point's metrics of the images so far
OUT/points/NAME/images/NN.png    the images that the page shows
OUT/points/NAME/result.json      its figures, once it is finished
OUT/sweep.json, .png, .html      the results of all points
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.state_files import DAMAGES
from imagen_jax.images.grid import is_valid_png, read_png, save_png
from imagen_jax.io.atomic import atomic_write, read_json, write_json
from imagen_jax.io.changes import changes, flatten
from imagen_jax.io.paths import remove_tree
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.output_dir import MAX_DIFFERENCES

INPUTS = "inputs.json"
LOW_RES = "low_res"
POINTS = "points"
RESULTS = ("sweep.json", "sweep.png", "sweep.html")
SHOWN = 12  # images of each point that the page shows, the first ones


class SweepFolder:
    """The folder of a sweep; only the main process uses it.

    Args:
        out: its path.
        inputs: all that decides the results of a point, besides its settings, as JSON.
        overwrite: whether results of another sweep are removed.

    Raises:
        ConfigError: the folder has points of another sweep, and `overwrite` is False.
    """

    def __init__(self, out: Path, inputs: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out = out
        inputs = json.loads(json.dumps(inputs))
        problem = self._difference(inputs)
        if problem and not overwrite:
            raise ConfigError(f"--out {str(out)!r} {problem}: give another folder, or --overwrite to remove them")
        if problem:
            for name in (POINTS, LOW_RES):
                remove_tree(out / name, ignore_errors=True)
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        if problem or not (out / INPUTS).exists():
            write_json(out / INPUTS, inputs)

    def _difference(self, inputs: Mapping[str, Any]) -> str:
        """Returns how the folder is known to be of another sweep, as the end of a sentence; "" if it is not."""
        try:
            before, now = flatten(read_json(self.out / INPUTS)), flatten(inputs)
        except FileNotFoundError:
            return f"has points of a sweep, and no {INPUTS}" if (self.out / POINTS).exists() else ""
        except (ValueError, AttributeError):
            return f"has a sweep, and its {INPUTS} is damaged"
        changed = list(changes(before, now).values())
        more = f" and {len(changed) - MAX_DIFFERENCES} more" if len(changed) > MAX_DIFFERENCES else ""
        return f"has points of another sweep: {'; '.join(changed[:MAX_DIFFERENCES])}{more}" if changed else ""

    def result(self, name: str) -> dict[str, Any] | None:
        """Returns the result of a point, by its name; None if it is not finished, or damaged."""
        folder = self.out / POINTS / name
        try:
            result = read_json(folder / "result.json")
            count = result["images"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return result if self.has_images(name, count) else None

    def save_images(self, name: str, first: int, images: np.ndarray) -> None:
        """Writes those of a batch of images [B, H, W, C] that the page shows; `first` is the index of the first one."""
        for image, path in zip(images, self._image_paths(name, first + len(images))[first:], strict=False):
            save_png(image, path)

    def has_images(self, name: str, count: int) -> bool:
        """Returns whether those of the first images of a point that the page shows are there and sound."""
        return all(map(is_valid_png, self._image_paths(name, count)))

    def images(self, name: str, count: int) -> Iterator[np.ndarray]:
        """Yields those of the first images of a point that the page shows, [H, W, C] each."""
        return map(read_png, self._image_paths(name, count))

    def _image_paths(self, name: str, count: int) -> list[Path]:
        return [self.out / POINTS / name / "images" / f"{index:02d}.png" for index in range(min(count, SHOWN))]

    def state_file(self, name: str) -> Path:
        """Returns the path of a point's state."""
        return self.out / POINTS / name / "state.npz"

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Writes the result of a point, which has the number of its `images`, and removes its state."""
        write_json(self.out / POINTS / name / "result.json", result)
        self.state_file(name).unlink(missing_ok=True)


class LowResFiles:
    """Images of the stages before the swept one, float32 [N, h, w, C], read from a folder batch by batch.

    Every process of a run has one; the main one reads and writes the files.

    Args:
        folder: of the files.
        shape: (N, h, w, C).
        batch_size: images of a file.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], batch_size: int) -> None:
        self.shape, self._folder, self._batch_size = shape, folder, batch_size

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns the images of a batch; all processes ask for the same."""
        data = self._read(rows.start).tobytes() if multihost.is_main_process() else b""
        images = np.frombuffer(multihost.all_gather_bytes(data)[0], np.float32).reshape(-1, *self.shape[1:])
        return images[: rows.stop - rows.start]

    def pending(self) -> np.ndarray:
        """Returns which images are missing or damaged, bool [N], in every process."""
        pending = np.zeros(self.shape[0], bool)
        if multihost.is_main_process():
            for first in range(0, len(pending), self._batch_size):
                pending[first : first + self._batch_size] = not self._is_valid(first)
        return multihost.broadcast_from_main(pending)

    def save(self, first: int, images: np.ndarray) -> None:
        """Writes a batch of images [B, h, w, C]; `first` is the index of the first one."""
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, images=images)  # a zip file: it has checksums
        atomic_write(self._path(first), file.getvalue())

    def _is_valid(self, first: int) -> bool:
        try:
            images = self._read(first)
        except DAMAGES:
            return False
        count = min(self._batch_size, self.shape[0] - first)
        return images.dtype == np.float32 and images.shape == (count, *self.shape[1:])

    def _read(self, first: int) -> np.ndarray:
        with np.load(io.BytesIO(self._path(first).read_bytes()), allow_pickle=False) as file:
            return file["images"]

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:08d}.npz"
