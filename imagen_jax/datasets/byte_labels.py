"""What a text encoder is trained to say of each byte of a caption: the attributes of its object and of the scene."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

_UNLABELED = -1

Attributes = dict[str, tuple]  # name -> its values, "" if the caption does not mention it


@dataclasses.dataclass(frozen=True)
class Span:
    """The bytes of a caption from `start` to `end` that name an object, and the values of its attributes in order."""

    start: int
    end: int
    values: tuple


class Descriptions(Protocol):
    """Random access to descriptions, which a data set's captions state in words."""

    def description(self, index: int) -> Any:
        """Returns the description of example `index`."""
        ...


@dataclasses.dataclass(frozen=True)
class ByteLabels:
    """The labels of the captions of a data set.

    Attributes:
        objects: the attributes of an object, labeled at the bytes that name it.
        scene: the attributes of the scene, labeled at all bytes.
        spans: returns the objects that a caption names.
        scene_values: returns the values of the scene's attributes for a caption, in order.
        open: (seed, split, number of examples) -> descriptions.
        sample_caption: words a description.
        is_probed: whether a description tells apart all attributes of its objects, so that probes can read them.
        max_bytes: of a caption.
    """

    objects: Attributes
    scene: Attributes
    spans: Callable[[str], Sequence[Span]]
    scene_values: Callable[[str], tuple]
    open: Callable[[int, str, int], Descriptions]
    sample_caption: Callable[[Any, np.random.Generator], str]
    is_probed: Callable[[Any], bool]
    max_bytes: int

    @property
    def attributes(self) -> Attributes:
        """All attributes, in the order of the labels."""
        return self.objects | self.scene

    def __call__(self, caption: str, length: int) -> np.ndarray:
        """Labels each byte of a caption and its end of sequence with the index of each attribute's value.

        Returns:
            int32 [L, attributes], -1 where an attribute is not labeled.
        """
        labels = np.full((length, len(self.attributes)), _UNLABELED, np.int32)
        labels[: len(caption) + 1, len(self.objects) :] = _indices(self.scene, self.scene_values(caption))
        for span in self.spans(caption):
            labels[span.start : span.end, : len(self.objects)] = _indices(self.objects, span.values)
        return labels


def _indices(attributes: Attributes, values: tuple) -> list[int]:
    return [of.index(value) for of, value in zip(attributes.values(), values, strict=True)]
