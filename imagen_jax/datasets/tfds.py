"""Any data set that TensorFlow Datasets (TFDS) has prepared as array_record files, read without TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from imagen_jax.data.record import BrokenRecord, Record
from imagen_jax.errors import ConfigError

FORMAT = "array_record"
INFO = "dataset_info.json"  # what TFDS writes last into the folder of a version
VERSION = re.compile(r"\d+\.\d+\.\d+")
DATA_DIR = "~/tensorflow_datasets"  # where TFDS keeps what it prepares, unless $TFDS_DATA_DIR says another place


class Leaf(NamedTuple):
    """A feature that has no others in it, and the keys that lead to it; there may be a "/" in a key too."""

    keys: tuple[str, ...]
    feature: Any


class TfdsSource:
    """The pictures of one feature, with captions from features of texts or of classes.

    A feature within another is named by its path, such as ``captions/text``. The columns of a record are the texts,
    classes and numbers that its example has one of.
    """

    def __init__(
        self, path: str, split: str, image: str, captions: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> None:
        """Finds the data set; reads none of its examples.

        Args:
            path: the folder of a version of the data set, or of its versions, of which the newest is taken; or
                what of it comes after DATA_DIR, such as ``coco_captions/2014``.
            split: as TFDS writes it: ``train``, ``train[:90%]``, ``train[:100]+test``.
            image: the feature of pictures.
            captions: features of texts or of classes, each with any number of values; none for examples without text.
            templates: of captions: ``{}`` stands for the text, or for the name of the class.

        Raises:
            UsageError: there is no such data set, split or feature, the files are of another format or not all there,
                or a template is without ``{}``.
        """
        self._folder = prepared_folder(path)
        builder = open_builder(self._folder)
        self._leaves = {"/".join(leaf.keys): leaf for leaf in leaves(builder.info.features)}
        self._check_feature(image, is_image, "an image")
        for caption in captions:
            self._check_feature(caption, is_text, "a text or a class")
        for template in templates:
            if "{}" not in template:
                raise ConfigError(f"template {template!r} has no {{}}, in whose place the caption goes: add it")
        self._records, self._shards = open_split(builder, split, self._folder)

        self._image, self._captions, self._templates = image, tuple(captions), tuple(templates)
        self._columns = tuple(key for key, feature in builder.info.features.items() if is_single(feature))
        self._decoders = nested([self._leaves[image].keys], tfds.decode.SkipDecoding())
        self._decoded = self._part(builder.info.features, (image, *captions, *self._columns))
        self._captions_decoded = self._part(builder.info.features, captions)
        self._columns_decoded = self._part(builder.info.features, self._columns)
        self._name = f"{builder.info.full_name} {split}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Record:
        i = index.__index__()
        example = self._read(i, self._decoded, decoders=self._decoders)
        (image,) = self._values(example, self._image)
        return Record(image, self._worded(example), f"{self._name}[{i}]", self._columned(example))

    def captions(self, index: SupportsIndex) -> tuple[str, ...]:
        """The captions of an example; its picture is left encoded."""
        return self._worded(self._read(index.__index__(), self._captions_decoded)) if self._captions else ()

    def columns(self, index: SupportsIndex) -> dict[str, str]:
        """The columns of an example; its picture is left encoded."""
        return self._columned(self._read(index.__index__(), self._columns_decoded)) if self._columns else {}

    def __repr__(self) -> str:
        return f"TfdsSource({self._name!r} in {self._folder})"

    def _read(self, i: int, features: Any, **settings: Any) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"index {i} is outside [0, {len(self)}) of {self!r}")
        try:
            record = self._records[i]
            if not record:  # what is left of some cut files
                raise ValueError("there are no bytes")
            return features.deserialize_example_np(record, **settings)
        except Exception as error:  # of a cut file an AttributeError, of a damaged one whatever its readers raise
            reason = f"{self._shard(i)} is cut or damaged ({error}): copy or prepare the data set again"
            raise BrokenRecord(f"{self._name}[{i}]", reason) from error

    def _shard(self, i: int) -> str:
        """The path of the file that example ``i`` is in."""
        for shard in self._shards:
            if i < shard.take:
                break
            i -= shard.take
        return os.fspath(shard.filename)

    def _part(self, features: Any, paths: Sequence[str]) -> Any:
        """The features of these paths, and no others, to decode no more than these."""
        return part(features, nested([self._leaves[path].keys for path in paths], True))

    def _values(self, example: Any, path: str) -> list:
        """What an example has at a path: one value, or those of a sequence."""
        for key in self._leaves[path].keys:
            example = example[key]
        return list(example) if hasattr(example, "__len__") and not isinstance(example, bytes) else [example]

    def _worded(self, example: dict[str, Any]) -> tuple[str, ...]:
        texts = (self._text(path, value) for path in self._captions for value in self._values(example, path))
        return tuple(template.replace("{}", text) for text in texts if text for template in self._templates)

    def _columned(self, example: dict[str, Any]) -> dict[str, str]:
        return {key: self._text(key, example[key]) for key in self._columns}

    def _text(self, path: str, value: Any) -> str:
        feature = self._leaves[path].feature
        if isinstance(feature, tfds.features.ClassLabel):
            return feature.int2str(int(value)).replace("_", " ") if value >= 0 else ""  # -1: it has no label
        return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)

    def _check_feature(self, path: str, fits: Callable[[Any], bool], what: str) -> None:
        leaf = self._leaves.get(path)
        if leaf is None or not fits(leaf.feature):
            found = "is not there" if leaf is None else f"is not {what} but {type(leaf.feature).__name__}"
            fitting = sorted(name for name, other in self._leaves.items() if fits(other.feature))
            there = f"choose of {', '.join(fitting)}" if fitting else f"it has none that is {what}"
            raise ConfigError(f"feature {path!r} of {self._folder} {found}: {there}")


def prepared_folder(path: str) -> tfds.core.Path:
    """The folder of the version of a data set that a config means. Raises UsageError if there is none."""
    data_dir = os.environ.get("TFDS_DATA_DIR", DATA_DIR)
    places = [tfds.core.Path(path).expanduser(), tfds.core.Path(data_dir).expanduser() / path]
    for place in places:
        if (place / INFO).exists():
            return place
        versions = [path.parent for path in place.glob(f"*/{INFO}") if VERSION.fullmatch(path.parent.name)]
        if versions:
            return max(versions, key=lambda path: [int(number) for number in path.name.split(".")])
    below = sorted(
        {str(path.parent.parent) for depth in ("*/*", "*/*/*") for path in places[0].glob(f"{depth}/{INFO}")}
    )
    there = f"there are {', '.join(below)}" if below else "prepare it by imagen_jax.prepare, or by TFDS itself"
    looked = " nor in ".join(dict.fromkeys(map(str, places)))
    raise ConfigError(f"there is no prepared data set in {looked}: {there}")


def open_builder(folder: tfds.core.Path) -> Any:
    """The TFDS builder of a prepared data set. Raises UsageError if its description or its format cannot be read."""
    try:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(form.value for form in builder.info.available_file_formats())
    except Exception as error:  # json, protobuf and TFDS raise what they like
        raise ConfigError(f"the description of the data set in {folder} cannot be read: {error}") from error
    if FORMAT not in formats:
        raise ConfigError(
            f"{folder} is of {' and '.join(formats)} files, which are not read by random access: prepare it again with "
            f"file_format='{FORMAT}'"
        )
    return builder


def open_split(builder: Any, split: str, folder: tfds.core.Path) -> tuple[Any, list]:
    """(random access to the examples' bytes, the parts of files they are in) of a split.

    Raises UsageError if there is no such split, or a file of it is missing.
    """
    info = builder.info
    try:
        shards = info.splits[split].file_instructions
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except Exception as error:  # TFDS raises KeyError, ValueError or AssertionError, by what is wrong
        splits = ", ".join(f"{name} ({part.num_examples} examples)" for name, part in info.splits.items())
        raise ConfigError(f"split {split!r} of {folder} is not known, or empty: it has {splits}") from error
    there = {path.name for path in folder.iterdir()}
    missing = [os.fspath(shard.filename) for shard in shards if tfds.core.Path(shard.filename).name not in there]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(shards)} files of split {split!r} are missing, the first is {missing[0]}: copy or "
            "prepare the data set again"
        )
    return records, shards


def leaves(features: Any, keys: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every feature within others, whether these are groups or sequences."""
    if type(features) is tfds.features.Sequence:
        yield from leaves(features.feature, keys)
    elif type(features) is tfds.features.FeaturesDict:
        for key, feature in features.items():
            yield from leaves(feature, (*keys, key))
    else:
        yield Leaf(keys, features)


def is_image(feature: Any) -> bool:
    """Whether a feature is a picture."""
    return isinstance(feature, tfds.features.Image)


def is_text(feature: Any) -> bool:
    """Whether a feature is a text or a class; those of a text are of NumPy's objects, whatever their kind."""
    return isinstance(feature, tfds.features.ClassLabel) or (
        is_single(feature) and np.dtype(feature.np_dtype) == np.object_
    )


def is_single(feature: Any) -> bool:
    """Whether a feature is one text, one class or one number."""
    return isinstance(feature, tfds.features.Tensor) and feature.shape == ()


def part(features: Any, tree: Any) -> Any:
    """The features that a tree of keys leads to. TFDS's own PartialDecoding needs TensorFlow for it."""
    if tree is True:
        return features
    if type(features) is tfds.features.Sequence:
        return tfds.features.Sequence(part(features.feature, tree))
    return tfds.features.FeaturesDict({key: part(features[key], below) for key, below in tree.items()})


def nested(paths: Iterable[tuple[str, ...]], value: Any) -> dict[str, Any]:
    """Dicts in dicts that have the value at the end of every path of keys."""
    tree: dict[str, Any] = {}
    for *groups, key in paths:
        group = tree
        for name in groups:
            group = group.setdefault(name, {})
        group[key] = value
    return tree
