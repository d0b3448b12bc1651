"""Where the checkpoints of a stage are: which are complete, and how they become so, on a disk or in a bucket.

On a disk a checkpoint is written under another name, and renamed when it is complete. In a bucket nothing can be
renamed: a checkpoint is complete when its checksums, which are written last, are there, and a damaged one has a marker.

    DISK/checkpoints/STEP/                    a complete checkpoint
    DISK/checkpoints/STEP.unfinished…         what a killed process left of a save or of a deletion
    DISK/checkpoints/STEP.damaged             quarantined: its files fail verification
    gs://BUCKET/checkpoints/STEP/SHA256SUMS   a complete checkpoint; without it, what a killed process left
    gs://BUCKET/checkpoints/STEP.damaged      says what is damaged in STEP, which is not used
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.io import checksums
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import bucket_path, remove_tree

_UNFINISHED = ".unfinished"
_ORBAX_UNFINISHED = ".orbax-checkpoint-tmp"
_DAMAGED = ".damaged"


class CheckpointFolder:
    """The checkpoints in a folder on a disk, by step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, step: int) -> Path:
        """Returns the folder of a complete checkpoint."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints."""
        return self._numbered() if self.path.is_dir() else []

    def _numbered(self) -> list[int]:
        return [int(path.name) for path in self.path.iterdir() if path.name.isdecimal()]

    def clean(self) -> None:
        """Creates the folder, and deletes what killed processes left in it. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if _UNFINISHED in path.name or _ORBAX_UNFINISHED in path.name:
                shutil.rmtree(path)

    def begin(self, step: int) -> None:
        """Prepares for writing a checkpoint: in a bucket, deletes a damaged one of the same step."""

    def unfinished(self, step: int) -> Path:
        """Returns where to write a checkpoint until it is complete."""
        return self.path / f"{step}{_UNFINISHED}"

    def commit(self, step: int) -> None:
        """Completes a checkpoint whose checksums are written."""
        self.unfinished(step).rename(self.step(step))

    def discard(self, step: int) -> None:
        """Deletes what there is of an unfinished checkpoint, if it can."""
        for path in self.path.glob(f"{step}{_UNFINISHED}*"):
            shutil.rmtree(path, ignore_errors=True)

    def delete(self, step: int) -> None:
        """Deletes a checkpoint; a kill meanwhile leaves nothing that looks like a complete one."""
        shutil.rmtree(self.step(step).rename(self.unfinished(step)))

    def quarantine(self, step: int, problem: str) -> str:
        """Takes a damaged checkpoint out of use, and returns how, as a part of a sentence."""
        target = next(path for path in self._candidates(f"{step}{_DAMAGED}") if not path.exists())
        self.step(step).rename(target)
        return f"it is renamed to {target.name}"

    def _candidates(self, name: str) -> Iterator[Path]:
        yield self.path / name
        yield from (self.path / f"{name}.{number}" for number in range(2, 10**6))


class BucketCheckpointFolder(CheckpointFolder):
    """The checkpoints in a folder of a bucket."""

    def steps(self) -> list[int]:
        names = [path.name for path in self.path.iterdir()]
        steps = [int(name) for name in names if name.isdecimal() and f"{name}{_DAMAGED}" not in names]
        return [step for step in steps if self._is_complete(step)]

    def _is_complete(self, step: int) -> bool:
        return (self.step(step) / checksums.MANIFEST).is_file()

    def clean(self) -> None:
        steps = self._numbered()
        for step in steps:
            if not self._is_complete(step):
                remove_tree(self.step(step))
        for marker in self.path.glob(f"*{_DAMAGED}"):
            # a kill may have come between the deletions of a damaged checkpoint and of its marker
            if not self._is_complete(int(marker.name.removesuffix(_DAMAGED))):
                marker.unlink(missing_ok=True)

    def begin(self, step: int) -> None:
        if (self.path / f"{step}{_DAMAGED}").is_file():
            self.delete(step)
            (self.path / f"{step}{_DAMAGED}").unlink(missing_ok=True)

    def unfinished(self, step: int) -> Path:
        return self.step(step)

    def commit(self, step: int) -> None:
        """Does nothing: the checksums complete a checkpoint."""

    def discard(self, step: int) -> None:
        remove_tree(self.step(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        (self.step(step) / checksums.MANIFEST).unlink(missing_ok=True)
        remove_tree(self.step(step))

    def quarantine(self, step: int, problem: str) -> str:
        atomic_write(self.path / f"{step}{_DAMAGED}", problem.encode())
        return f"{step}{_DAMAGED} marks it as unusable"


def checkpoint_folder(path: Path) -> CheckpointFolder:
    """Returns the checkpoints in a folder."""
    return CheckpointFolder(path.absolute()) if bucket_path(path) is None else BucketCheckpointFolder(path)
