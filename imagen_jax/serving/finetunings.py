"""The fine-tunings of a server on a disk: a folder each, below that of `--finetune_dir`.

    DIR/ID/finetuning.json   what was asked for, and where it is
    DIR/ID/images/           the images that were sent, with their captions
    DIR/ID/out/              what `finetune` writes

A folder appears when it is complete, and is renamed before it is deleted, so that a kill leaves nothing in between.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from imagen_jax.images import png
from imagen_jax.io.atomic import atomic_write, read_json, replacing, write_json
from imagen_jax.serving.jobs import StorageError
from imagen_jax.training.finetune import FinetuneSettings
from imagen_jax.training.finetune_progress import ADAPTER

FinetuningStatus = Literal["queued", "running", "stopping", "done", "stopped", "failed"]
ENDED: tuple[FinetuningStatus, ...] = ("done", "stopped", "failed")
_RECORD, _IMAGES, _OUT, _ARCHIVE = "finetuning.json", "images", "out", "adapter.zip"
_UNFINISHED, _DELETED = ".unfinished", ".deleted"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class UploadedSubject:
    """An image that a cascade is taught, uint8 [H, W, C], and its caption; "" for none."""

    pixels: Any
    caption: str


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """A fine-tuning as it is at a moment.

    Attributes:
        id: 16 characters of [A-Za-z0-9_-], random.
        client: whose it is.
        name: of its adapter, one of a kind among those of the client.
        images: number of images that were sent.
        settings: what was asked for.
        status: where it is.
        created: Unix time.
        queued: Unix time since when it waits, or has waited.
        started: Unix time of the last start; None before.
        finished: Unix time of its end; None before.
        error: why it has failed, or was not continued, one sentence; None otherwise.
        deaths: how often in a row the server has ended while it ran, other than by a stop.
    """

    id: str
    client: str
    name: str
    images: int
    settings: FinetuneSettings
    status: FinetuningStatus
    created: float
    queued: float
    started: float | None = None
    finished: float | None = None
    error: str | None = None
    deaths: int = 0

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Finetuning:
        """Returns the fine-tuning of which `dataclasses.asdict` has made a tree."""
        return cls(**{**tree, "settings": FinetuneSettings(**tree["settings"])})


class FinetuningFolders:
    """The folders below that of `--finetune_dir`. For several threads, but each fine-tuning for one at a time.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def load_all(self) -> list[Finetuning]:
        """Returns all fine-tunings, the oldest first; removes what a kill has left of those being made or deleted."""
        found = []
        for folder in self._root.iterdir():
            if folder.name.startswith((_UNFINISHED, _DELETED)):
                shutil.rmtree(folder, ignore_errors=True)
            elif (folder / _RECORD).exists():
                try:
                    found.append(Finetuning.from_json(read_json(folder / _RECORD)))
                except (OSError, ValueError, TypeError, KeyError) as error:
                    logger.warning("%s is damaged, and left out: %s", folder / _RECORD, error)
        return sorted(found, key=lambda one: one.created)

    def add(self, one: Finetuning, images: Sequence[UploadedSubject]) -> None:
        """Makes the folder of a new one. Raises StorageError."""
        temporary = self._root / f"{_UNFINISHED}-{one.id}"
        try:
            for index, image in enumerate(images):
                path = temporary / _IMAGES / f"{index:04d}.png"
                atomic_write(path, png.encode(image.pixels))
                if image.caption:
                    atomic_write(path.with_suffix(".txt"), image.caption.encode())
            write_json(temporary / _RECORD, dataclasses.asdict(one))
            temporary.rename(self._root / one.id)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(f"the images cannot be kept: {error.strerror or error}") from error

    def save(self, one: Finetuning) -> None:
        """Keeps where one is. Raises StorageError."""
        try:
            write_json(self._root / one.id / _RECORD, dataclasses.asdict(one))
        except OSError as error:
            raise StorageError(f"the state of a fine-tuning cannot be kept: {error.strerror or error}") from error

    def remove(self, one: Finetuning) -> None:
        """Deletes one with all its files. Raises StorageError."""
        deleted = self._root / f"{_DELETED}-{one.id}"
        try:
            (self._root / one.id).rename(deleted)
        except OSError as error:
            raise StorageError(f"the fine-tuning cannot be deleted: {error.strerror or error}") from error
        shutil.rmtree(deleted, ignore_errors=True)

    def images(self, one: Finetuning) -> Path:
        """Returns the folder of the images that were sent."""
        return self._root / one.id / _IMAGES

    def image(self, one: Finetuning, index: int) -> Path:
        """Returns the path of an image that was sent."""
        return self.images(one) / f"{index:04d}.png"

    def out(self, one: Finetuning) -> Path:
        """Returns the folder of what `finetune` writes."""
        return self._root / one.id / _OUT

    def adapter(self, one: Finetuning) -> Path:
        """Returns the folder of the adapter."""
        return self.out(one) / ADAPTER

    def archive(self, one: Finetuning) -> Path:
        """Returns the path of the adapter as a ZIP file, which is made at the first call. Raises StorageError."""
        path, folder = self._root / one.id / _ARCHIVE, self.adapter(one)
        try:
            if not path.exists():
                with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
                    for each in sorted(folder.rglob("*")):
                        archive.write(each, Path(one.name) / each.relative_to(folder))
        except OSError as error:
            raise StorageError(f"the adapter cannot be packed: {error.strerror or error}") from error
        return path

    def without_paths(self, text: str, one: Finetuning) -> str:
        """Returns a message about one without the place of its folder on this machine."""
        return text.replace(f"{self._root / one.id}/", "").replace(str(self._root / one.id), "its folder")
