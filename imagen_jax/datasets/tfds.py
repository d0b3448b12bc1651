"""Data sets that TensorFlow Datasets (TFDS) has prepared as array_record files, read without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path

_FORMAT = "array_record"
_INFO_FILE = "dataset_info.json"  # TFDS writes it last into the folder of a version
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DATA_DIR = "~/tensorflow_datasets"  # where TFDS prepares data sets unless $TFDS_DATA_DIR is set


class _Leaf(NamedTuple):
    """A feature without nested features, and the keys that lead to it; a key may contain "/"."""

    keys: tuple[str, ...]
    feature: Any


class TfdsSource:
    """Images of one feature, with captions from text or class features.

    A nested feature is named by its path, such as `captions/text`. The columns of a record are the texts, classes and
    numbers of which its example has a single one.
    """

    def __init__(
        self, path: str, split: str, image: str, captions: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> None:
        """Opens the data set without reading examples.

        Args:
            path: the folder of a version of the data set, or of its versions, of which the newest is used; or this
                path relative to the TFDS data folder, such as `coco_captions/2014`.
            split: split in TFDS syntax: `train`, `train[:90%]`, `train[:100]+test`.
            image: the image feature.
            captions: text or class features, each with any number of values; none for examples without text.
            templates: caption templates, where `{}` is replaced by the text or the name of the class.

        Raises:
            ConfigError: the data set, split or feature does not exist, the files are in another format or incomplete,
                or a template lacks `{}`.
        """
        self._folder = _find_prepared(path)
        builder = _open_builder(self._folder)
        self._leaves = {"/".join(leaf.keys): leaf for leaf in _iter_leaves(builder.info.features)}
        self._check_feature(image, _is_image, "an image")
        for caption in captions:
            self._check_feature(caption, _is_text, "a text or a class")
        for template in templates:
            if "{}" not in template:
                raise ConfigError(f"template {template!r} has no {{}}, which the caption replaces: add it")
        self._records, self._shards = _open_split(builder, split, self._folder)

        self._image, self._captions, self._templates = image, tuple(captions), tuple(templates)
        self._columns = tuple(key for key, feature in builder.info.features.items() if _is_single(feature))
        self._decoders = _nested_dict([self._leaves[image].keys], tfds.decode.SkipDecoding())
        self._record_features = self._feature_subset(builder.info.features, (image, *captions, *self._columns))
        self._caption_features = self._feature_subset(builder.info.features, captions)
        self._column_features = self._feature_subset(builder.info.features, self._columns)
        self._name = f"{builder.info.full_name} {split}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = index.__index__()
        example = self._read(i, self._record_features, decoders=self._decoders)
        (image,) = self._values(example, self._image)
        return Record(image, self._format_captions(example), f"{self._name}[{i}]", self._format_columns(example))

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """Returns the captions of an example; its image is not decoded."""
        return self._format_captions(self._read(index.__index__(), self._caption_features)) if self._captions else ()

    def columns(self, index: SupportsIndex) -> dict[str, str]:
        """Returns the columns of an example; its image is not decoded."""
        return self._format_columns(self._read(index.__index__(), self._column_features)) if self._columns else {}

    def __repr__(self) -> str:
        return f"TfdsSource({self._name!r} in {self._folder})"

    def _read(self, i: int, features: Any, **settings: Any) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        try:
            record = self._records[i]
            if not record:  # some truncated files yield empty records
                raise ValueError("there are no bytes")
            return features.deserialize_example_np(record, **settings)
        except Exception as error:  # a truncated file gives an AttributeError, a damaged one other errors
            reason = f"{self._shard_path(i)} is truncated or damaged ({error}): copy or prepare the data set again"
            raise CorruptRecordError(f"{self._name}[{i}]", reason) from error

    def _shard_path(self, i: int) -> str:
        """Returns the path of the file that contains example `i`."""
        for shard in self._shards:
            if i < shard.take:
                break
            i -= shard.take
        return os.fspath(shard.filename)

    def _feature_subset(self, features: Any, paths: Sequence[str]) -> Any:
        """Returns the features at these paths, to decode no others."""
        return _subset(features, _nested_dict([self._leaves[path].keys for path in paths], True))

    def _values(self, example: Any, path: str) -> list:
        """Returns the values of an example at a path: one, or those of a sequence."""
        for key in self._leaves[path].keys:
            example = example[key]
        return list(example) if hasattr(example, "__len__") and not isinstance(example, bytes) else [example]

    def _format_captions(self, example: dict[str, Any]) -> tuple[str, ...]:
        texts = (self._text(path, value) for path in self._captions for value in self._values(example, path))
        return tuple(template.replace("{}", text) for text in texts if text for template in self._templates)

    def _format_columns(self, example: dict[str, Any]) -> dict[str, str]:
        return {key: self._text(key, example[key]) for key in self._columns}

    def _text(self, path: str, value: Any) -> str:
        feature = self._leaves[path].feature
        if isinstance(feature, tfds.features.ClassLabel):
            return feature.int2str(int(value)).replace("_", " ") if value >= 0 else ""  # -1: no label
        return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)

    def _check_feature(self, path: str, fits: Callable[[Any], bool], what: str) -> None:
        leaf = self._leaves.get(path)
        if leaf is None or not fits(leaf.feature):
            problem = "does not exist" if leaf is None else f"is not {what} but {type(leaf.feature).__name__}"
            names = sorted(name for name, other in self._leaves.items() if fits(other.feature))
            hint = f"choose one of {', '.join(names)}" if names else f"the data set has no feature that is {what}"
            raise ConfigError(f"feature {path!r} of {self._folder} {problem}: {hint}")


def _find_prepared(path: str) -> tfds.core.Path:
    """Returns the folder of the version of a data set that a path stands for."""
    data_dir = os.environ.get("TFDS_DATA_DIR", _DATA_DIR)
    candidates = [tfds.core.Path(as_path(path)), tfds.core.Path(as_path(data_dir)) / path]
    for folder in candidates:
        if (folder / _INFO_FILE).exists():
            return folder
        versions = [info.parent for info in folder.glob(f"*/{_INFO_FILE}") if _VERSION.fullmatch(info.parent.name)]
        if versions:
            return max(versions, key=lambda version: [int(number) for number in version.name.split(".")])
    below = sorted(
        {str(info.parent.parent) for depth in ("*/*", "*/*/*") for info in candidates[0].glob(f"{depth}/{_INFO_FILE}")}
    )
    hint = f"choose one of {', '.join(below)}" if below else "prepare it with `imagen prepare`, or with TFDS itself"
    searched = " nor in ".join(dict.fromkeys(map(str, candidates)))
    raise ConfigError(f"there is no prepared data set in {searched}: {hint}")


def _open_builder(folder: tfds.core.Path) -> Any:
    """Returns the TFDS builder of a prepared data set."""
    try:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(form.value for form in builder.info.available_file_formats())
    except Exception as error:  # json, protobuf and TFDS raise various errors
        raise ConfigError(f"the description of the data set in {folder} cannot be read: {error}") from error
    if _FORMAT not in formats:
        raise ConfigError(
            f"{folder} has {' and '.join(formats)} files, which have no random access: prepare it again with "
            f"file_format='{_FORMAT}'"
        )
    return builder


def _open_split(builder: Any, split: str, folder: tfds.core.Path) -> tuple[Any, list]:
    """Returns (random access to the bytes of the examples, the file ranges that contain them) of a split."""
    info = builder.info
    try:
        shards = info.splits[split].file_instructions
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except Exception as error:  # TFDS raises KeyError, ValueError or AssertionError
        splits = ", ".join(f"{name} ({part.num_examples} examples)" for name, part in info.splits.items())
        raise ConfigError(f"split {split!r} of {folder} is not known or empty: choose one of {splits}") from error
    existing = {path.name for path in folder.iterdir()}
    missing = [os.fspath(shard.filename) for shard in shards if tfds.core.Path(shard.filename).name not in existing]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(shards)} files of split {split!r} are missing, the first is {missing[0]}: copy or "
            "prepare the data set again"
        )
    return records, shards


def _iter_leaves(features: Any, keys: tuple[str, ...] = ()) -> Iterator[_Leaf]:
    """Yields every feature without nested ones, within dicts and sequences."""
    if type(features) is tfds.features.Sequence:
        yield from _iter_leaves(features.feature, keys)
    elif type(features) is tfds.features.FeaturesDict:
        for key, feature in features.items():
            yield from _iter_leaves(feature, (*keys, key))
    else:
        yield _Leaf(keys, features)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, tfds.features.Image)


def _is_text(feature: Any) -> bool:
    """Returns whether a feature is a text or a class; text features of any type have NumPy's dtype object."""
    return isinstance(feature, tfds.features.ClassLabel) or (
        _is_single(feature) and np.dtype(feature.np_dtype) == np.object_
    )


def _is_single(feature: Any) -> bool:
    """Returns whether a feature is a single text, class or number."""
    return isinstance(feature, tfds.features.Tensor) and feature.shape == ()


def _subset(features: Any, tree: Any) -> Any:
    """Returns the features at a tree of keys. TFDS's own PartialDecoding would need TensorFlow."""
    if tree is True:
        return features
    if type(features) is tfds.features.Sequence:
        return tfds.features.Sequence(_subset(features.feature, tree))
    return tfds.features.FeaturesDict({key: _subset(features[key], below) for key, below in tree.items()})


def _nested_dict(paths: Iterable[tuple[str, ...]], value: Any) -> dict[str, Any]:
    """Returns nested dicts with `value` at the end of every path of keys."""
    tree: dict[str, Any] = {}
    for *groups, key in paths:
        group = tree
        for name in groups:
            group = group.setdefault(name, {})
        group[key] = value
    return tree
