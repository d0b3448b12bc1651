"""The noise of images, from which sampling returns them; and noise between that of two images."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.io.atomic import atomic_write


@dataclasses.dataclass(frozen=True)
class Inversion:
    """The noise of N images, and what it belongs to.

    Attributes:
        arrays: for each stage the noise [N, H, W, C] and, for `bdia`, z at the time before.
        prompts: of the images.
        settings: of the call.
    """

    arrays: list[tuple[np.ndarray, ...]]
    prompts: list[str]
    settings: dict[str, Any]

    def save(self, path: Path) -> None:
        """Writes the inversion to an `.npz` file, which `load` reads."""
        arrays = {f"stage_{i}_{j}": array for i, stage in enumerate(self.arrays) for j, array in enumerate(stage)}
        about = json.dumps({"prompts": self.prompts, "settings": self.settings})
        data = io.BytesIO()
        np.savez_compressed(data, about=np.array(about), **arrays)  # type: ignore[arg-type]  # names of arrays
        atomic_write(path, data.getvalue())

    @classmethod
    def load(cls, path: Path) -> Inversion:
        """Returns the inversion of a file. Raises ConfigError if it is not one that `save` has written."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                names = sorted(name for name in file.files if name != "about")
                stages = [[name for name in names if name.startswith(f"stage_{i}_")] for i in range(len(names))]
                arrays = [tuple(file[name] for name in group) for group in stages if group]
            return cls(arrays, about["prompts"], about["settings"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{str(path)!r} is not an inversion ({first_line(error)}): give a file of `save`"
            ) from error


def slerp(first: np.ndarray, second: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns arrays [N, ...] on the great circle from one [...] to another, at shares [N] from 0 to 1."""
    cosine = np.sum(first * second) / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-20)
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    shares = shares.reshape(-1, *[1] * first.ndim)
    if np.sin(angle) < 1e-4:  # nearly parallel
        return (1 - shares) * first + shares * second
    return ((np.sin((1 - shares) * angle) * first + np.sin(shares * angle) * second) / np.sin(angle)).astype(
        first.dtype
    )
