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

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.io import checksums
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.paths import bucket_path, forget_listings, remove_tree

FROZEN = "frozen"  # the folder beside the checkpoints of what a run does not train, as step 0; see `frozen.py`
_UNFINISHED = ".unfinished"
_ORBAX_UNFINISHED = ".orbax-checkpoint-tmp"
_DAMAGED = ".damaged"
_STEP = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(rf"[0-9]+({re.escape(_UNFINISHED)}|{re.escape(_ORBAX_UNFINISHED)}).*")


class CheckpointFolder:
    """The checkpoints in a folder on a disk, by step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def step(self, step: int) -> Path:
        """Returns the folder of a complete checkpoint."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints. Files, and folders with other names, are somebody else's."""
        try:
            return [int(path.name) for path in self.path.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, step: int) -> bool:
        """Returns whether there is a checkpoint, complete or damaged."""
        return self.step(step).is_dir()

    def identity(self, step: int) -> bytes | None:
        """Returns what a checkpoint has in common with no other one, its checksums; None if it has none, or is gone."""
        try:
            return (self.step(step) / checksums.MANIFEST).read_bytes()
        except BucketError:
            raise
        except OSError:
            return None

    def clean(self) -> None:
        """Creates the folder, and deletes what killed processes left in it. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if _LEFTOVER.fullmatch(path.name) and path.is_dir():
                shutil.rmtree(path)

    def begin(self, step: int) -> str:
        """Makes room for a checkpoint, where something else has its name: renames that; in a bucket, deletes it.

        Returns:
            What was done, as a part of a sentence; "" if there was nothing.
        """
        path = self.step(step)
        return self.quarantine(step, "another has its name") if path.exists() or path.is_symlink() else ""

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

    def rename(self, step: int, to: int) -> str:
        """Gives a checkpoint that was saved at another step that step's name, and returns how, as a part of a sentence.

        If there is one of that name, or in a bucket, where nothing can be renamed, it is only taken out of use.
        """
        if self.exists(to):
            return self.quarantine(step, f"it was saved at step {to}")
        self.step(step).rename(self.step(to))
        return f"it is renamed to {to}"

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
        names: list[str] = []
        while True:
            before, names = names, [path.name for path in self.path.iterdir()]
            steps = [int(name) for name in names if _STEP.fullmatch(name) and f"{name}{_DAMAGED}" not in names]
            complete = [step for step in steps if self._is_complete(step)]
            # the only complete one may have been deleted since it was listed, after a newer one was completed
            if complete or names == before:
                return complete

    def exists(self, step: int) -> bool:
        return self._is_complete(step)

    def _is_complete(self, step: int) -> bool:
        return (self.step(step) / checksums.MANIFEST).is_file()

    def clean(self) -> None:
        names = {path.name for path in self.path.iterdir()}
        for step in (int(name) for name in names if _STEP.fullmatch(name)):
            if not self._is_complete(step):
                remove_tree(self.step(step))
        for marker in self.path.glob(f"*{_DAMAGED}"):
            # a kill may have come between the deletions of a damaged checkpoint and of its marker
            name = marker.name.removesuffix(_DAMAGED)
            if _STEP.fullmatch(name) and not self._is_complete(int(name)):
                marker.unlink(missing_ok=True)

    def begin(self, step: int) -> str:
        if not self.step(step).exists():
            return ""
        self.delete(step)
        (self.path / f"{step}{_DAMAGED}").unlink(missing_ok=True)
        forget_listings()  # Orbax may have read it, and would take it to be there
        return "it is deleted"

    def unfinished(self, step: int) -> Path:
        return self.step(step)

    def commit(self, step: int) -> None:
        """Does nothing: the checksums complete a checkpoint."""

    def discard(self, step: int) -> None:
        remove_tree(self.step(step), ignore_errors=True)

    def delete(self, step: int) -> None:
        (self.step(step) / checksums.MANIFEST).unlink(missing_ok=True)
        remove_tree(self.step(step))

    def rename(self, step: int, to: int) -> str:
        return self.quarantine(step, f"it was saved at step {to}")

    def quarantine(self, step: int, problem: str) -> str:
        atomic_write(self.path / f"{step}{_DAMAGED}", problem.encode())
        return f"{step}{_DAMAGED} marks it as unusable"


def checkpoint_folder(path: Path) -> CheckpointFolder:
    """Returns the checkpoints in a folder."""
    return CheckpointFolder(path.absolute()) if bucket_path(path) is None else BucketCheckpointFolder(path)
