"""A folder of image files, nested to any depth, with captions beside them; local or remote (see `io/storage.py`).

The captions of `a/fox.jpg` are the lines of `a/fox.txt`, or those of its row in `a/metadata.jsonl`, `.csv` or
`.parquet` (see `metadata.py`), or in the metadata file of a folder above. An image without either is an unconditional
example.
"""

from __future__ import annotations

import errno
import hashlib
import operator
import posixpath
from collections.abc import Mapping
from typing import SupportsIndex

from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets.metadata import EMPTY_ROW, METADATA_FILES, Row, read_rows
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.io.storage import Folder

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_SPLITS = ("train", "validation", "all")
_MAX_IMAGE_BYTES = 2**28  # a longer file is a corrupt record, before it fills the memory
_MAX_CAPTION_BYTES = 2**16  # of a caption file; the rest is ignored
# permanent errors of a file; remote file systems raise the first without an errno
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FILE_ERROR_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)


class FolderSource:
    """The images of a folder, sorted by path, with their captions.

    Args:
        path: the folder; `gs://bucket/folder` needs gcsfs.
        split: "validation" for a fraction of the images, chosen by hashes of their paths; "train" for the others; or
            "all".
        validation_fraction: the fraction, in [0, 1].
        caption_column: the caption column of metadata files.

    Raises:
        ConfigError: the folder does not exist or has no image of the split; a metadata file is invalid.
    """

    def __init__(self, path: str, split: str, validation_fraction: float, caption_column: str) -> None:
        if not path:
            raise ConfigError("config.data.path is empty: give your folder of images, --config.data.path=DIR")
        if split not in _SPLITS:
            raise unknown_name_error("split", split, _SPLITS)
        self._path, self._split = path, split
        try:
            self._folder = Folder(path)
        except ConfigError as error:
            raise ConfigError(f"config.data.path: {error}") from error
        self._sizes = {name: size for name, size in self._folder.list_tree().items() if not _is_hidden(name)}
        self._rows = self._read_metadata(caption_column)
        images = sorted({name for name in self._sizes if name.lower().endswith(_IMAGE_SUFFIXES)} | self._rows.keys())
        if not images:
            raise ConfigError(f"{path} has no images: expected files that end in {', '.join(_IMAGE_SUFFIXES)}")
        self._images = [name for name in images if split in ("all", _split_of_path(name, validation_fraction))]
        if not self._images:
            raise ConfigError(
                f"the {split} split of {path} has none of its {len(images)} images: config.data.validation_fraction is "
                f"{validation_fraction}"
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Record:
        name = self._images[operator.index(index)]
        if self._sizes.get(name, 0) > _MAX_IMAGE_BYTES:
            raise CorruptRecordError(name, f"the file is longer than {_MAX_IMAGE_BYTES} bytes")
        row = self._rows.get(name, EMPTY_ROW)
        return Record(self._read(name), self._captions(name), name, row.columns)

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of image `index`."""
        return self._captions(self._images[operator.index(index)])

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of image `index`."""
        return self._rows.get(self._images[operator.index(index)], EMPTY_ROW).columns

    def _captions(self, name: str) -> tuple[str, ...]:
        row = self._rows.get(name, EMPTY_ROW)
        if row.captions:
            return row.captions
        caption_file = posixpath.splitext(name)[0] + ".txt"
        if caption_file not in self._sizes:
            return ()
        lines = self._read(caption_file, _MAX_CAPTION_BYTES).decode("utf-8-sig", errors="replace").splitlines()
        return tuple(line.strip() for line in lines if line.strip())

    def _read(self, name: str, end: int | None = None) -> bytes:
        try:
            return self._folder.read(name, end)
        except OSError as error:
            if not isinstance(error, _FILE_ERRORS) and error.errno not in _FILE_ERROR_NUMBERS:
                raise  # other errors, such as those of a network, may be temporary: they end the run
            raise CorruptRecordError(name, error.strerror or "the file cannot be read") from error

    def _read_metadata(self, caption_column: str) -> dict[str, Row]:
        """Returns the rows by path of their image; the metadata file nearest to an image wins."""
        rows: dict[str, Row] = {}
        metadata = [name for name in self._sizes if posixpath.basename(name) in METADATA_FILES]
        for name in sorted(metadata, key=lambda name: (name.count("/"), name)):
            for image, row in read_rows(self._read(name), f"{self._path}/{name}", caption_column).items():
                rows[posixpath.normpath(posixpath.join(posixpath.dirname(name), image))] = row
        return rows

    def __repr__(self) -> str:
        return f"FolderSource({self._path!r}, split={self._split!r})"


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _split_of_path(name: str, validation_fraction: float) -> str:
    """Returns the split of a path: a function of the path alone, whatever else is in the folder."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()
    return "validation" if int.from_bytes(digest) / 2**56 < validation_fraction else "train"
