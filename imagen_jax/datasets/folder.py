"""A folder of image files, however nested, with captions beside them; on this machine or where fsspec reaches.

The captions of ``a/fox.jpg`` are the lines of ``a/fox.txt``, or those of its row in ``a/metadata.jsonl``, ``.csv`` or
``.parquet`` (see ``metadata.py``), or in that of a folder above it. One that has neither is an unconditional example.
"""

from __future__ import annotations

import errno
import hashlib
import operator
import posixpath
from collections.abc import Mapping
from typing import SupportsIndex

import fsspec

from imagen_jax.data.record import BrokenRecord, Record
from imagen_jax.datasets.metadata import FILES, NO_ROW, Row, read_rows
from imagen_jax.errors import ConfigError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
SPLITS = ("train", "validation", "all")
MAX_IMAGE_BYTES = 2**28  # of a file; a longer one is broken, before it fills the memory
# what is wrong with a file, or with its name, and stays so; file systems in the cloud raise the first without numbers
OF_THE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
OF_ITS_NAME = (errno.ELOOP, errno.ENAMETOOLONG)
MAX_CAPTION_BYTES = 2**16  # of a file of captions; the rest is not read


class FolderSource:
    """The images of a folder in the order of their paths; their captions.

    Args:
        path: of the folder, "gs://bucket/folder" too, for which gcsfs must be installed.
        split: "validation" for a share of the images, chosen by hashes of their paths; "train" for the others; "all".
        validation_share: in [0, 1].
        caption_column: of metadata files.

    Raises:
        UsageError: the folder is not there or has no image of the split; a metadata file is not as described.
    """

    def __init__(self, path: str, split: str, validation_share: float, caption_column: str) -> None:
        if not path:
            raise ConfigError("config.data.path is empty: give your folder of images, --config.data.path=DIR")
        if split not in SPLITS:
            raise ConfigError(f"split {split!r} of a folder is not known: choose one of {', '.join(SPLITS)}")
        if not 0 <= validation_share <= 1:
            raise ConfigError(f"config.data.validation_share {validation_share} is not a share in [0, 1]")
        self._path, self._split = path, split
        self._files, self._root = open_folder(path)
        self._sizes = self._listed()
        self._rows = self._read_metadata(caption_column)
        images = sorted({name for name in self._sizes if name.lower().endswith(IMAGES)} | self._rows.keys())
        if not images:
            raise ConfigError(f"{path} has no images: expected files that end in {', '.join(IMAGES)}")
        self._images = [name for name in images if split in ("all", split_of(name, validation_share))]
        if not self._images:
            raise ConfigError(
                f"the {split} split of {path} has none of its {len(images)} images: config.data.validation_share is "
                f"{validation_share}"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Record:
        name = self._images[operator.index(index)]
        if self._sizes.get(name, 0) > MAX_IMAGE_BYTES:
            raise BrokenRecord(name, f"the file is longer than {MAX_IMAGE_BYTES} bytes")
        row = self._rows.get(name, NO_ROW)
        return Record(self._read(name), self._captions(name), name, row.columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of image ``index``."""
        return self._captions(self._images[operator.index(index)])

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """The columns of image ``index``."""
        return self._rows.get(self._images[operator.index(index)], NO_ROW).columns

    def _captions(self, name: str) -> tuple[str, ...]:
        row = self._rows.get(name, NO_ROW)
        if row.captions:
            return row.captions
        text = posixpath.splitext(name)[0] + ".txt"
        if text not in self._sizes:
            return ()
        lines = self._read(text, MAX_CAPTION_BYTES).decode("utf-8-sig", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())

    def _read(self, name: str, end: int | None = None) -> bytes:
        try:
            return self._files.cat_file(posixpath.join(self._root, name), end=end)
        except OSError as error:
            if not isinstance(error, OF_THE_FILE) and error.errno not in OF_ITS_NAME:
                raise  # whatever else goes wrong, such as a network, may go right another time: that ends the run
            raise BrokenRecord(name, error.strerror or "the file cannot be read") from error

    def _listed(self) -> dict[str, int]:
        """Bytes of every file within the folder by its path; no hidden ones, but links to files, and dead ones too.

        Neither pipes nor devices, nor links to such: to read them may never end.
        """
        sizes = {}
        for path, entry in self._files.find(self._root, detail=True).items():
            name = path.removeprefix(self._root).lstrip("/")
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
            is_link = entry.get("islink") and (self._files.isfile(path) or not self._files.exists(path))
            if (entry["type"] == "file" or is_link) and not hidden:
                sizes[name] = entry["size"] or 0
        return sizes

    def _read_metadata(self, caption_column: str) -> dict[str, Row]:
        """Rows by the path of their image; those of the folder nearest to it count."""
        rows: dict[str, Row] = {}
        metadata = [name for name in self._sizes if posixpath.basename(name) in FILES]
        for name in sorted(metadata, key=lambda name: (name.count("/"), name)):
            for image, row in read_rows(self._read(name), f"{self._path}/{name}", caption_column).items():
                rows[posixpath.normpath(posixpath.join(posixpath.dirname(name), image))] = row
        return rows

    def __repr__(self) -> str:
        return f"FolderSource({self._path!r}, split={self._split!r})"


def open_folder(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path, and the path in it. Raises UsageError if there is no such folder."""
    try:
        files, root = fsspec.core.url_to_fs(path)
        there = files.isdir(root)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"config.data.path {path!r} cannot be opened: {error}") from error
    if not there:
        raise ConfigError(f"config.data.path {path!r} is not a folder")
    return files, root


def split_of(name: str, validation_share: float) -> str:
    """Which split a path belongs to: the same whatever else is in the folder."""
    fraction = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()) / 2**56
    return "validation" if fraction < validation_share else "train"
