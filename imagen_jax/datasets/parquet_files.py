"""The Parquet files of a data set by split, and the rows of one: images and what describes them.

Images are stored as the Hugging Face Hub has them: a column of structs `{bytes, path}`, or of binary.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from imagen_jax.data.left_out import LeftOut
from imagen_jax.datasets.folder_findings import note_files, note_skipped, user_files
from imagen_jax.datasets.row_copy import Row
from imagen_jax.errors import ConfigError, require
from imagen_jax.io import storage

SUFFIX = ".parquet"
MAX_IMAGE_BYTES = 2**28  # a longer image is a corrupt record
_SPLITS = {  # by the words that name them, as the Hub reads file names
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}")  # train-00000-of-00003
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_URL_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_GLOB = re.compile(r"[*?\[]")
_USUAL_SPLITS = ("train", "validation", "test")
_BATCH_ROWS = 32  # that are decoded at a time: as many images are in memory
_MAX_LISTED = 20
_KINDS = {"image_column": "images, which are binary or structs {bytes, path}", "caption_column": "text"}


class Layout(NamedTuple):
    """What is read of the columns of a file.

    Attributes:
        image: name of the column of images.
        texts: names of the columns that describe an image.
        class_names: names of the classes of integer columns, by column.
        unused: names of the other columns.
    """

    image: str
    texts: tuple[str, ...]
    class_names: dict[str, list[str]]
    unused: tuple[str, ...]


def list_files(path: str, cache_dir: str, left_out: LeftOut) -> dict[str, str]:
    """Returns the Parquet files that a path stands for, by name relative to its folder, sorted.

    Args:
        path: a file, a folder that is searched recursively, or a pattern with `*`; local, or `gs://`.
        cache_dir: the folder for copies; it may be in the folder, and is no part of it.
        left_out: gets the other files.

    Raises:
        ConfigError: there is no such file.
    """
    if _URL_SCHEME.match(path) and not storage.is_remote(path):
        raise ConfigError(
            f"config.data.path {path!r} is a web address, which is never followed: download the files, as by "
            "`hf download USER/NAME --repo-type=dataset --local-dir=DIR`, and give the folder"
        )
    if storage.is_pattern(path):
        folder = posixpath.dirname(path[: _GLOB.search(path).start()])  # type: ignore[union-attr]
        named = {posixpath.relpath(file, folder or "."): file for file in storage.glob_files(path)}
    elif _is_parquet(path) and storage.is_file(path):
        named = {posixpath.basename(path): path}
    else:
        listing = storage.Folder(path).list_tree()
        note_skipped(listing.skipped, path, left_out)
        copies = posixpath.relpath(os.path.realpath(cache_dir), os.path.realpath(path))
        named = {name: posixpath.join(path, name) for name in listing.sizes if not name.startswith(f"{copies}/")}
    kept = user_files(named, path, left_out)
    files = {name: named[name] for name in kept if _is_parquet(name)}
    note_files([name for name in kept if name not in files], (), path, left_out)
    if not files:
        unused = "".join(f"; {message}" for message in left_out.messages())
        raise ConfigError(
            f"config.data.path {path!r} has no Parquet file: give a file, a folder or DIR/*.parquet{unused}"
        )
    return files


def files_of_split(files: dict[str, str], path: str, split: str, left_out: LeftOut) -> tuple[dict[str, str], str]:
    """Returns the files of a split by name, and the part of their rows, "train" or "validation"; "" for all of them.

    Files named after no split are those for training if none are named after it; so are those of one other split, but
    for validation and test, if there are no others.

    Args:
        files: of all splits, by name.
        path: `config.data.path`.
        split: one that files are named after, "train" or "validation".
        left_out: gets the files that no split has.

    Raises:
        ConfigError: there are none.
    """
    split, splits = normal_split(split), dict[str, dict[str, str]]()
    for name, file in files.items():
        splits.setdefault(split_of(name), {})[name] = file
    unnamed = splits.pop("", {})
    if "train" not in splits and unnamed:
        splits["train"], unnamed = unnamed, {}
    reason = "they, and their folders, are named after no split, as others are: rename them, or set data.split to 'all'"
    left_out.add(path, "Parquet file(s) not used", reason, unnamed)
    others = [name for name in splits if name not in _USUAL_SPLITS]
    if "train" not in splits and len(others) == 1:
        splits["train"] = splits.pop(others[0])
        split = "train" if split == others[0] else split
    for name in others:
        if name != split and name in splits:
            reason = f"they are the split {name!r}: to use them, set data.split to {name!r}, or to 'all'"
            left_out.add(path, "Parquet file(s) not used", reason, splits[name])
    has_validation = "validation" in splits
    chosen = splits.get("train" if split == "validation" and not has_validation else split)
    if chosen is None:
        raise ConfigError(
            f"{path} has no files for the split {split!r}: set data.split to {', '.join(map(repr, splits))} or 'all'"
        )
    return chosen, split if split in ("train", "validation") and not has_validation else ""


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def split_of(name: str) -> str:
    """Returns the split that a file is named after, in its own name or in that of a folder; "" if there is none."""
    *folders, file = name[: -len(SUFFIX)].split("/")
    numbered = _NUMBERED.fullmatch(file)
    if numbered:
        return normal_split(numbered[1])
    for part in (file, *reversed(folders)):
        for word in _SEPARATORS.split(part.lower()):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


def normal_split(name: str) -> str:
    """Returns the name of a split, of several that mean the same, such as val and validation."""
    return _SPLITS.get(name, name)


def open_file(path: str) -> Any:
    """Opens a Parquet file, of which only the footer is read. Raises ConfigError with its name."""
    parquet = require("pyarrow.parquet", "data")
    try:
        source = storage.open_file(path) if storage.is_remote(path) else path
        # without these, a row group is read as one
        return parquet.ParquetFile(source, buffer_size=2**20, pre_buffer=False)
    except Exception as error:  # readers of files and of Parquet raise errors of many kinds
        raise unreadable_error(path, error) from error


def unreadable_error(path: str, error: Exception) -> ConfigError:
    """Returns the error for a Parquet file that cannot be read."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return ConfigError(f"{path} cannot be read as Parquet ({text}): download or write it again, or remove it")


def read_layout(schema: Any, path: str, image_column: str, caption_column: str) -> Layout:
    """Returns what is read of a file, by its schema.

    Args:
        schema: the Arrow schema.
        path: path of the file, for errors.
        image_column: `config.data.image_column`.
        caption_column: `config.data.caption_column`; empty for none.

    Raises:
        ConfigError: it has no such column, or one of another type.
    """
    class_names = _class_names(schema)
    _check_column(schema, path, "image_column", image_column, _has_images)
    if caption_column:
        _check_column(schema, path, "caption_column", caption_column, lambda field: _has_texts(field, class_names))
    is_single = {name: schema.names.count(name) == 1 for name in schema.names if name != image_column}
    texts = tuple(field.name for field in schema if is_single.get(field.name) and _describes(field))
    unused = tuple(name for name in dict.fromkeys(schema.names) if name not in (image_column, *texts))
    return Layout(image_column, texts, class_names, unused)


def _check_column(schema: Any, path: str, key: str, name: str, fits: Callable[[Any], bool]) -> None:
    """Raises ConfigError, with the columns that there are, if the column that a key names does not fit."""
    if schema.names.count(name) > 1:
        raise ConfigError(
            f"{path} has several columns {name!r}: rename all but one, or set config.data.{key} to another"
        )
    field = schema.field(name) if name in schema.names else None
    if field is not None and fits(field):
        return
    problem = f"has no column {name!r}" if field is None else f"has a column {name!r} of {field.type}"
    listed = ", ".join(f"{other.name} ({other.type})" for other in list(schema)[:_MAX_LISTED])
    fitting = [repr(other.name) for other in schema if fits(other)][:_MAX_LISTED]
    choices = fitting + ["'' for no captions"] * (key == "caption_column")
    advice = f"set config.data.{key} to {' or '.join(choices)}" if choices else f"none of them has {_KINDS[key]}"
    raise ConfigError(f"{path} {problem}; it has {listed}: {advice}")


def iter_rows(file: Any, layout: Layout) -> Iterator[Row]:
    """Yields the rows of an open file; what describes one is `{"texts": {column: value}, "error": reason}`."""
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[layout.image, *layout.texts]):
        for row in range(batch.num_rows):
            image, error = _image_of(batch.column(layout.image)[row])
            texts, problem = _texts_of(batch, row, layout)
            yield Row(image, {"texts": texts, "error": error or problem})


def _image_of(cell: Any) -> tuple[memoryview | None, str]:
    """Returns (image, why there is none) of a cell of the column of images."""
    path = ""
    if cell.is_valid and require("pyarrow", "data").types.is_struct(cell.type):
        path = cell.as_py().get("path") if not cell["bytes"].is_valid else ""
        cell = cell["bytes"]
    if not cell.is_valid:
        return None, f"has no image, only the path {path[:200]!r}, which is not followed" if path else "has no image"
    image = memoryview(cell.as_buffer())
    if len(image) > MAX_IMAGE_BYTES:
        return None, f"its image is longer than {MAX_IMAGE_BYTES} bytes"
    return image, ""


def _texts_of(batch: Any, row: int, layout: Layout) -> tuple[dict[str, Any], str]:
    """Returns (values by column, what is wrong with them) of a row; empty cells are left out."""
    texts: dict[str, Any] = {}
    for name in layout.texts:
        cell = batch.column(name)[row]
        try:
            value = cell.as_py()
        except UnicodeDecodeError:
            return texts, f"its column {name!r} is not UTF-8 text"
        except (ValueError, OverflowError, ImportError):  # times that Python has no object for, such as nanoseconds
            value = cell.cast("string").as_py()
        names = layout.class_names.get(name)
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        if value is not None:
            texts[name] = value if isinstance(value, (bool, int, float, str, list)) else str(value)
    return texts, ""


def uncompressed_bytes(metadata: Any, layout: Layout) -> int:
    """Returns how long the columns that are read are, without compression, by the metadata of a file."""
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = [metadata.row_group(group).column(number) for number in range(metadata.num_columns)]
        kept = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in (layout.image, *layout.texts)]
        total += sum(chunk.total_uncompressed_size for chunk in kept)
    return total


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Returns the names of classes that `datasets` of Hugging Face keeps in a schema, by column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {name: names for name, names in named.items() if isinstance(names, list) and all(map(_is_text, names))}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _has_images(field: Any) -> bool:
    types = require("pyarrow", "data").types
    kind = field.type
    if types.is_struct(kind):
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return "bytes" in names and _has_images(kind.field("bytes"))
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return is_binary or types.is_fixed_size_binary(kind)


def _has_texts(field: Any, class_names: Collection[str]) -> bool:
    return field.name in class_names or _is_text_type(field.type) or _is_list_of_texts(field.type)


def _describes(field: Any) -> bool:
    """Returns whether a column is kept: text, numbers, times and lists of text. Masks and embeddings are not."""
    types = require("pyarrow", "data").types
    kind = field.type.value_type if types.is_dictionary(field.type) else field.type
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    return is_number or types.is_temporal(kind) or _is_text_type(kind) or _is_list_of_texts(kind)


def _is_text_type(kind: Any) -> bool:
    types = require("pyarrow", "data").types
    if types.is_dictionary(kind):
        return _is_text_type(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_list_of_texts(kind: Any) -> bool:
    types = require("pyarrow", "data").types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and _is_text_type(kind.value_type)
