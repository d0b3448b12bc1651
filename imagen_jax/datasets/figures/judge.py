"""Judges whether figures images show what their captions claim, and computes scores over many images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from imagen_jax.datasets.figures.captions import Description
from imagen_jax.datasets.figures.reader import Reading, read
from imagen_jax.datasets.figures.scenes import Garment

ROW_NAMES = ("garment", "color", "pattern", "top", "bottom", "dress", "background", "all")


@dataclasses.dataclass(frozen=True)
class Judgment:
    """The result of judging an image.

    Attributes:
        garments: of each claimed garment, whether its noun, its color and its pattern are right.
        background: the background is as claimed; None if the caption does not mention it.
        all: everything is correct, and nothing else is worn.
    """

    garments: tuple[tuple[bool, bool, bool], ...]
    background: bool | None
    all: bool


def judge(image: np.ndarray, description: Description) -> Judgment:
    """Judges whether an image, uint8 [H, W, 3] of at least 32×32, shows what is described."""
    return compare(read(image), description)


def compare(reading: Reading, description: Description) -> Judgment:
    """Judges whether what was read in an image is what is described."""
    worn = {garment.place: garment for garment in reading.garments}

    def match(claim: Garment) -> tuple[bool, bool, bool]:
        garment = worn.get(claim.place)
        if garment is None:
            return False, False, False
        return garment.noun == claim.noun, garment.color == claim.color, garment.pattern == claim.pattern

    garments = tuple(map(match, description.garments))
    background = reading.background == description.background if description.background else None
    return Judgment(garments, background, all(map(all, garments)) and background is not False)


def outcomes(judgments: Sequence[Judgment], descriptions: Sequence[Description]) -> dict[str, list[bool]]:
    """Returns row of ROW_NAMES -> whether each claim is right; rows without claims are absent.

    Rows are the attributes over all garments, the garments of each kind with all attributes right, the background, and
    all that a caption claims.
    """
    rows: dict[str, list[bool]] = {name: [] for name in ROW_NAMES}
    for judgment, description in zip(judgments, descriptions, strict=True):
        for claim, match in zip(description.garments, judgment.garments, strict=True):
            for name, right in zip(("garment", "color", "pattern"), match, strict=True):
                rows[name].append(right)
            rows["dress" if claim.place == "body" else claim.place].append(all(match))
        if judgment.background is not None:
            rows["background"].append(judgment.background)
        rows["all"].append(judgment.all)
    return {name: values for name, values in rows.items() if values}
