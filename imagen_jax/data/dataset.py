"""Random access to the examples of a source: images of one size and dtype, with their captions."""

from __future__ import annotations

import operator
from typing import NamedTuple, SupportsIndex

import numpy as np

from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.object_maps import read_object_map
from imagen_jax.data.record import CorruptRecordError, Record, Source
from imagen_jax.data.transforms import Transform, crop_image
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import IMAGE_DTYPES, Size

# If this many replacements in a row are corrupt too, almost nothing can be read.
_MAX_TRIES = 100
_CHECKED = 100  # examples of which one has to have objects, where they are asked for


class Example(NamedTuple):
    """An image with its captions.

    Attributes:
        image: uint8 or uint16 [H, W, C]; until `ImageTextDataset.fit` it may be longer in one direction.
        captions: any number of captions; none for an unconditional example.
        objects: the map of its objects, uint8 [H, W, 1] as long as the image; None if it was not asked for.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    objects: np.ndarray | None = None


class ImageTextDataset:
    """Random access to the examples of a source; corrupt ones are replaced by others.

    Args:
        source: the records.
        channels: number of channels of the images.
        transform: decodes image files; None for a source of decoded images.
        corrupt: counts the corrupt records and ends the run if there are too many; by default the first one does.
        crop_size: (height, width) of the random crops to train on; (0, 0) for full images.
        objects: whether examples have maps of their objects.

    Raises:
        ConfigError: the source is empty, its images have other channels or another dtype, too many are corrupt, or it
            has no objects and is asked for them.
    """

    def __init__(
        self,
        source: Source,
        channels: int,
        transform: Transform | None = None,
        corrupt: CorruptRecords | None = None,
        crop_size: Size = (0, 0),
        objects: bool = False,
    ) -> None:
        self.source, self._transform, self._crop_size = source, transform, crop_size
        self._objects = objects
        if not len(source):
            raise ConfigError(f"{source!r} is empty: there is nothing to train on")
        self.corrupt = corrupt or CorruptRecords(repr(source), len(source), max_fraction=0.0)
        image = self[0].image
        actual = image.shape[-1]
        if actual != channels:
            raise ConfigError(
                f"images of {source!r} have {actual} channels, config.channels is {channels}: set it to {actual}"
            )
        if image.dtype not in IMAGE_DTYPES.values():
            raise ConfigError(f"images of {source!r} have dtype {image.dtype}, expected uint8 or uint16")
        count = min(_CHECKED, len(source)) if objects else 0
        if objects and not any(self._has_objects(index) for index in range(count)):
            raise ConfigError(
                f"inpainting.objects draws masks of objects, and none of the first {count} examples of {source!r} has "
                "any: set it to 0, or give a folder maps of objects (data.objects_suffix)"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Example:
        """Returns example `index`; in place of a corrupt one another that depends on the index alone."""
        try:
            example = self._load(index)
        except CorruptRecordError as corrupt:
            self.corrupt.count_read(corrupt)
            return self._replacement(operator.index(index), corrupt)
        self.corrupt.count_read(None)
        return example

    def name(self, index: SupportsIndex) -> str:
        """Returns the name of record `index`, for logs."""
        try:
            return self.source[index].name
        except CorruptRecordError as corrupt:
            return corrupt.name

    def fit(self, image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Crops the image of an example to [H, W, C].

        Args:
            image: the image of an `Example`.
            rng: random generator for the crops and flips of training; None for the center crop.
        """
        return image if self._transform is None else self._transform.fit(image, rng)

    def training_crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns what is trained on of an image [H, W, C] from `fit`: a random crop of it, or all of it.

        The paper trains its last stage on 256×256 crops of 1024×1024 images (arXiv:2205.11487).
        """
        return crop_image(image, self._crop_size, rng) if any(self._crop_size) else image

    def _load(self, index: SupportsIndex) -> Example:
        record = self.source[index]
        image = decode_image(record, self._transform)
        if not self._objects:
            return Example(image, record.captions)
        objects = read_object_map(self.source, index, record.name, (image.shape[0], image.shape[1]))
        return Example(image, record.captions, objects)

    def _has_objects(self, index: int) -> bool:
        try:
            objects = self._load(index).objects
        except CorruptRecordError:
            return False  # counted when it is read in training
        return objects is not None and bool(objects.any())

    def _replacement(self, index: int, corrupt: CorruptRecordError) -> Example:
        # a random record, not the next one: corrupt files are often neighbors
        candidates = np.random.default_rng(index).integers(len(self), size=_MAX_TRIES)
        for candidate in candidates:
            try:
                return self._load(int(candidate))
            except CorruptRecordError as error:
                self.corrupt.add(error)
                corrupt = error
        raise self.corrupt.error(corrupt)

    def __repr__(self) -> str:
        return repr(self.source)


def decode_image(record: Record, transform: Transform | None) -> np.ndarray:
    """Returns the image of a record, decoded if it is a file: uint8 or uint16 [H, W, C].

    Raises:
        CorruptRecordError: the file cannot be decoded.
        ConfigError: the record has an image file, and there is no transform.
    """
    if not isinstance(record.image, bytes):
        return record.image
    if transform is None:
        raise ConfigError(
            f"config.data has no transform, but {record.name} is an image file: copy the transform of "
            "configs/folder_base.py"
        )
    return transform.decode(record.image, record.name)


def first_caption(captions: tuple[str, ...]) -> str:
    """Returns the first of an example's captions, or the empty (unconditional) one if it has none."""
    return captions[0] if captions else ""


def random_caption(captions: tuple[str, ...], rng: np.random.Generator) -> str:
    """Samples one of an example's captions uniformly; the empty one if it has none."""
    return captions[rng.integers(len(captions))] if len(captions) > 1 else first_caption(captions)


def first_examples(dataset: ImageTextDataset, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the images [N, H, W, C] and first captions of the first `count` examples, at most."""
    examples = [dataset[i] for i in range(min(count, len(dataset)))]
    images = np.stack([dataset.fit(example.image) for example in examples])
    return images, [first_caption(example.captions) for example in examples]
