"""A folder of image files, nested to any depth, with captions beside them; local or remote (see `io/storage.py`).

The captions of `a/fox.jpg` are in `a/fox.txt` or `a/fox.jpg.txt` (see `caption_files.py`), or those of its row in
`a/metadata.jsonl`, `.csv` or `.parquet` (see `metadata.py`), or in the metadata file of a folder above. An image
without either is an unconditional example. What is in the folder and not used is counted and named in `left_out`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import operator
import posixpath
from collections.abc import Collection, Mapping, Sequence
from typing import SupportsIndex

from imagen_jax.data.captions import clean_captions, json_captions, parse_json, split_captions
from imagen_jax.data.encodings import EncodingError, decode_text
from imagen_jax.data.left_out import LeftOut
from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets.caption_files import CaptionFiles, normalized
from imagen_jax.datasets.file_kinds import is_unread
from imagen_jax.datasets.folder_findings import note_files, note_one_text, note_skipped, user_files
from imagen_jax.datasets.metadata import EMPTY_ROW, KOHYA_FILES, Row, is_metadata_file, read_rows, reading_order
from imagen_jax.datasets.row_names import ImageNames, RowMatches
from imagen_jax.errors import ConfigError, unknown_name_error
from imagen_jax.images.formats import image_suffixes
from imagen_jax.io.storage import DEAD_LINK, Folder

_SPLITS = ("train", "validation", "all")
_MAX_IMAGE_BYTES = 2**28  # a longer file is a corrupt record, before it fills the memory
_MAX_CAPTION_BYTES = 2**16  # of a caption file; the rest is ignored
_MAX_JSON_BYTES = 2**20  # of a caption file in JSON
# permanent errors of a file; remote file systems raise the first without an errno
_FILE_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_FILE_ERROR_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG)


@dataclasses.dataclass(frozen=True)
class CaptionRules:
    """Where the captions of a folder are, beside its metadata files.

    Attributes:
        suffixes: of caption files; the first that an image has counts. Those in `.json` are objects with `captions` or
            `caption`.
        files: whether a caption is a line of a file or the "whole" file, see `split_captions`.
        from_file_names: whether the name of an image without another caption is its caption.
    """

    suffixes: tuple[str, ...] = (".txt",)
    files: str = "lines"
    from_file_names: bool = False


class FolderSource:
    """The images of a folder, sorted by path, with their captions.

    Args:
        path: the folder; `gs://bucket/folder` needs gcsfs.
        split: "validation" for a fraction of the images, chosen by hashes of their paths; "train" for the others; or
            "all". Of few images a split may have none: then it has all of them.
        validation_fraction: the fraction, in [0, 1].
        caption_column: the caption column of metadata files.
        captions: where other captions are.
        objects_suffix: what replaces an image's suffix in the name of its map of objects; empty if there are none.

    Raises:
        ConfigError: the folder does not exist or has no image; a metadata file is invalid or names no image.
    """

    def __init__(
        self,
        path: str,
        split: str,
        validation_fraction: float,
        caption_column: str,
        captions: CaptionRules = CaptionRules(),
        objects_suffix: str = "",
    ) -> None:
        if not path:
            raise ConfigError("config.data.path is empty: give your folder of images, --config.data.path=DIR")
        if split not in _SPLITS:
            raise unknown_name_error("split", split, _SPLITS)
        self._path, self._split, self._caption_column, self._rules = path, split, caption_column, captions
        self._objects_suffix = objects_suffix
        self.left_out = LeftOut()
        try:
            self._folder = Folder(path)
        except ConfigError as error:
            raise ConfigError(f"config.data.path: {error}") from error
        listing = self._folder.list_tree()
        note_skipped(listing.skipped, path, self.left_out)
        self._sizes, self._dead_links = listing.sizes, listing.skipped.get(DEAD_LINK, [])
        files = frozenset(user_files(listing.sizes, path, self.left_out))
        self._maps = frozenset(name for name in files if objects_suffix and name.endswith(objects_suffix))
        files -= self._maps
        images = frozenset(name for name in files if name.lower().endswith(image_suffixes()))
        self._rows = self._read_metadata(files, images)
        sorted_images = sorted(images.union(self._rows))
        self._caption_files = CaptionFiles(sorted_images, files, captions.suffixes)
        self._note_files(files, sorted_images)
        if not sorted_images:
            unused = "".join(f"; {message}" for message in self.left_out.messages())
            raise ConfigError(f"{path} has no images: expected files that end in {', '.join(image_suffixes())}{unused}")
        self._note_maps(sorted_images)
        self._images = self._select(sorted_images, validation_fraction)

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

    def objects(self, index: SupportsIndex) -> bytes | None:
        """Returns the file with the map of objects of image `index`; None if it has none."""
        name = self._map_of(self._images[operator.index(index)])
        return self._read(name) if name in self._maps else None

    def columns(self, index: SupportsIndex) -> Mapping[str, str]:
        """Returns the columns of image `index`."""
        return self._rows.get(self._images[operator.index(index)], EMPTY_ROW).columns

    def file_sizes(self) -> dict[str, int]:
        """Returns the bytes of each image's file by its path in the folder, in the order of the images."""
        return {name: self._sizes.get(name, 0) for name in self._images}

    def _captions(self, name: str) -> tuple[str, ...]:
        row = self._rows.get(name, EMPTY_ROW)
        if row.captions:
            return row.captions
        file = self._caption_files.file(name)
        captions = self._read_captions(file) if file else ()
        return captions or (_caption_of_name(name) if self._rules.from_file_names else ())

    def _read_captions(self, file: str) -> tuple[str, ...]:
        """Returns the captions in a file. Raises CorruptRecordError, with the name of the file."""
        try:
            if _is_json(file):
                metadata = parse_json(self._read(file, _MAX_JSON_BYTES))
                captions = json_captions(metadata, (self._caption_column, "captions", "caption"))
                return clean_captions(captions)
            return split_captions(self._read_text(file), self._rules.files)
        except EncodingError as error:
            raise CorruptRecordError(file, str(error)) from error
        except (ValueError, RecursionError) as error:
            raise CorruptRecordError(file, f"is not valid JSON metadata: {error}") from error

    def _read_text(self, file: str) -> str:
        data = self._read(file, _MAX_CAPTION_BYTES)
        return decode_text(data, is_complete=len(data) < _MAX_CAPTION_BYTES)

    def _read(self, name: str, end: int | None = None) -> bytes:
        try:
            return self._folder.read(name, end)
        except OSError as error:
            if not isinstance(error, _FILE_ERRORS) and error.errno not in _FILE_ERROR_NUMBERS:
                raise  # other errors, such as those of a network, may be temporary: they end the run
            raise CorruptRecordError(name, error.strerror or "the file cannot be read") from error

    def _read_metadata(self, files: Collection[str], images: Collection[str]) -> dict[str, Row]:
        """Returns the rows by path of their image; the metadata file nearest to an image wins.

        Raises:
            ConfigError: a file is invalid, or the files name images and none of them is there.
        """
        rows: dict[str, Row] = {}
        file_of: dict[str, str] = {}  # by image, the metadata file that counts
        read: dict[str, RowMatches] = {}
        # a row may name any file, also a hidden one or one with another suffix, but for those that are never read
        names = ImageNames(frozenset(name for name in self._sizes if not is_unread(name)), images)
        problems = []
        for file in sorted(filter(is_metadata_file, files), key=reading_order):
            try:
                described = read_rows(self._read(file), f"{self._path}/{file}", self._caption_column)
            except ConfigError as error:
                if posixpath.basename(file).lower() not in KOHYA_FILES:
                    raise
                # it may have its name by chance
                self.left_out.add(self._path, "metadata file(s) not used", str(error), [file])
                continue
            matches = names.match(described, posixpath.dirname(file))
            if described and not matches.images:
                problems.append(_mismatch(f"{self._path}/{file}", matches.missing, names))
            read[file] = matches
            rows.update((image, described[name]) for name, image in matches.images.items())
            file_of.update(dict.fromkeys(matches.images.values(), file))
        if problems and not rows:
            raise ConfigError(*problems)
        for file, matches in read.items():
            replaced = [name for name, image in matches.images.items() if file_of[image] != file]
            self._note_rows(f"{self._path}/{file}", matches, set(replaced), names)
        return rows

    def _note_rows(self, place: str, matches: RowMatches, replaced: Collection[str], names: ImageNames) -> None:
        """Counts in `left_out` the rows of a metadata file that are not used, or read for an image of another name."""
        what = "row(s) not used"
        pairs = [f"{name} for {matches.images[name]}" for name in matches.inexact if name not in replaced]
        self.left_out.add(place, "row(s) read for an image of another name", "no other image fits them", pairs)
        if matches.missing:
            reason = f"no image, or more than one, has their name{names.hint(matches.missing[0])}"
            self.left_out.add(place, what, reason, matches.missing)
        self.left_out.add(place, what, "other rows fit their images as well or better", matches.surplus)
        reason = "another metadata file, nearer to their images or of a later step, counts for them"
        self.left_out.add(place, what, reason, sorted(replaced))

    def _note_files(self, files: Collection[str], images: Collection[str]) -> None:
        """Counts in `left_out` what is not used of the folder's files, and the images without a caption."""
        file_of = {image: file for image in images if (file := self._caption_files.file(image))}
        in_rows = {image for image in images if self._rows.get(image, EMPTY_ROW).captions}
        used = set(images).union(filter(is_metadata_file, files), self._caption_files.unused, self._dead_links)
        used.update(file_of.values())
        without = [image for image in images if image not in file_of and image not in in_rows]
        left_out, place = self.left_out, self._path
        note_files([name for name in files if name not in used], without, place, left_out)
        texts = dict.fromkeys(file for image, file in file_of.items() if image not in in_rows)
        surplus = self._caption_files.surplus(images, in_rows.union(file_of))
        what = "caption file(s) not used"
        reason = "no image that is read has their name, or several nearly have it"
        left_out.add(place, what, reason, sorted(set(self._caption_files.unused).difference(surplus)))
        reason = "their images have other caption files, or rows of metadata, which count first"
        left_out.add(place, what, reason, sorted({*surplus, *file_of.values()}.difference(texts)))
        if not self._rules.from_file_names:
            reason = f"they are examples without text, of {len(images):,} images"
            left_out.add(place, "image(s) without a caption", reason, without)
        if self._rules.files == "lines":
            files_of_lines = [file for file in texts if not _is_json(file)]
            note_one_text(files_of_lines, lambda file: (file, self._read_text(file)), place, left_out)

    def _map_of(self, image: str) -> str:
        return posixpath.splitext(image)[0] + self._objects_suffix

    def _note_maps(self, images: Collection[str]) -> None:
        """Counts in `left_out` the maps of objects without an image."""
        surplus = self._maps.difference(map(self._map_of, images))
        self.left_out.add(self._path, "map(s) of objects not used", "no image has their name", sorted(surplus))

    def _select(self, images: list[str], validation_fraction: float) -> list[str]:
        """Returns the images of the split: all of them if a split of a few images has none.

        Raises:
            ConfigError: the split has none, as the fraction says.
        """
        if self._split == "all":
            return images
        by_split: dict[str, list[str]] = {"train": [], "validation": []}
        for name in images:
            by_split[_split_of_path(name, validation_fraction)].append(name)
        selected = by_split[self._split]
        empty = [split for split, names in by_split.items() if not names]
        if empty and validation_fraction < 1:
            # said for both splits alike, so that it is said once
            reason = f"data.validation_fraction {validation_fraction} leaves the split {empty[0]!r} none of its own"
            self.left_out.add(self._path, "image(s) trained on and validated on", reason, (), len(images))
            return selected or images
        if not selected:
            raise ConfigError(
                f"the {self._split} split of {self._path} has none of its {len(images)} images: "
                f"config.data.validation_fraction is {validation_fraction}"
            )
        return selected

    def __repr__(self) -> str:
        return f"FolderSource({self._path!r}, split={self._split!r})"


def _is_json(name: str) -> bool:
    return name.lower().endswith(".json")


def _caption_of_name(name: str) -> tuple[str, ...]:
    """Returns the name of an image as its caption: without its suffix, underscores as blanks."""
    caption = " ".join(normalized(posixpath.splitext(posixpath.basename(name))[0]).replace("_", " ").split())
    return (caption,) if caption else ()


def _mismatch(path: str, missing: Sequence[str], names: ImageNames) -> str:
    """Returns the sentence on a metadata file none of whose rows has an image."""
    outside = ", which is outside of the folder" if missing[0].startswith("/") else ""
    return (
        f"{path} names {len(missing):,} image(s), and none of them is there, such as {missing[0]!r}{outside}"
        f"{names.hint(missing[0])}: correct its file_name column, whose paths are relative to the folder of this file"
    )


def _split_of_path(name: str, validation_fraction: float) -> str:
    """Returns the split of a path: a function of the path alone, whatever else is in the folder."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest()
    return "validation" if int.from_bytes(digest) / 2**56 < validation_fraction else "train"
