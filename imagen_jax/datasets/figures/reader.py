"""Reads what the person in an image wears, from the pixels alone.

The person is found by its contrast with the background; the ends of its arms and legs tell its pose, so that the
outlines of all garments of a place can be compared with the pixels that have the garment's color.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from imagen_jax.datasets.figures.body import ARM, HIP, SHOULDER, Body
from imagen_jax.datasets.figures.scenes import (
    ARM_ANGLE,
    BACKGROUNDS,
    COLORS,
    GARMENTS,
    HEIGHT,
    LEG_ANGLE,
    PATTERN_COLOR,
    Pose,
)
from imagen_jax.errors import ConfigError

_CONTRAST = 40.0  # of the person with the background, as a distance in RGB
_COLOR_TOLERANCE = 60.0  # of a named color, likewise
_MIN_COLOR = 0.25  # of the pixels of a garment have its color
_MIN_IOU = 0.55  # of a garment with its outline
_MIN_WHITE = 0.12  # standard deviation of whiteness from which a garment is not plain
_HEIGHT_TOLERANCE = 0.05  # in units of the image's shorter side
# Where a color is read, in units of the figure's height: rows, and distances from the axis.
_CHEST = ((0.27, 0.51), (0.0, 0.10))
_HIPS = ((0.585, 0.70), (0.03, 0.13))
_WAIST = (0.52, 0.58)  # rows where a top is over a bottom: not compared with outlines
_FACE = ((0.10, 0.19), (0.0, 0.05))
_HANDS = (0.2, 0.28)  # distances from the shoulder of the parts of an arm that show its angle
_SHINS = (0.86, 0.92)  # rows of the legs that show their angle
_PATTERN_ROWS = {"trousers": (0.60, 0.91), "shorts": (0.59, 0.75), "skirt": (0.59, 0.75), "dress": (0.27, 0.77)}


@dataclasses.dataclass(frozen=True)
class Worn:
    """What is read of a garment; None where it is none of the known nouns, colors or patterns."""

    place: str
    noun: str | None
    color: str | None
    pattern: str | None


@dataclasses.dataclass(frozen=True)
class Reading:
    """The background's name, or None, and the garments from the top down; none if there is no person."""

    background: str | None
    garments: tuple[Worn, ...]


def read(image: np.ndarray) -> Reading:
    """Reads the background and the garments of an image.

    Args:
        image: uint8 RGB [H, W, 3], whose shorter side is at least 32; patterns are read without errors from 64.

    Raises:
        ConfigError: the image has another shape or dtype, or is smaller.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 32:
        raise ConfigError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3] of at least 32×32")
    pixels = image.astype(np.float32)
    background = np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    name = _nearest_name(background, BACKGROUNDS)
    person = _largest(np.linalg.norm(pixels - background, axis=-1) > _CONTRAST)
    pose = find_pose(person)
    if pose is None:
        return Reading(name, ())
    body = Body.over(pose, (image.shape[0], image.shape[1]))
    chest, hips = _color(pixels[_window(body, *_CHEST)]), _color(pixels[_window(body, *_HIPS)])
    worn = {"body": chest} if chest == hips else {"top": chest, "bottom": hips}
    others = [background, np.median(pixels[_window(body, *_FACE)], axis=0)]
    others += [np.array(COLORS[color], np.float32) for color in worn.values() if color]
    garments = (_read_garment(pixels, person, body, place, color, others) for place, color in worn.items())
    return Reading(name, tuple(garments))


def find_pose(person: np.ndarray) -> Pose | None:
    """Returns the pose of a person from its pixels, bool [H, W]; None if they are not as high as a figure."""
    rows = np.flatnonzero(person.any(1))
    if not len(rows):
        return None
    side, (height, width) = min(person.shape), person.shape
    length = (rows[-1] + 1 - rows[0]) / side
    if not HEIGHT[0] - _HEIGHT_TOLERANCE <= length <= HEIGHT[1] + _HEIGHT_TOLERANCE:
        return None
    columns = np.arange(width) + 0.5
    head = person[rows[0] : rows[0] + round(0.2 * length * side)].sum(0)
    pose = Pose(
        x=float(head @ columns / head.sum()) / width,
        y=(rows[0] + rows[-1] + 1) / 2 / height,
        height=length,
        left_arm=float(np.mean(ARM_ANGLE)),
        right_arm=float(np.mean(ARM_ANGLE)),
        legs=float(np.mean(LEG_ANGLE)),
    )
    body = Body.over(pose, (height, width))
    left, right = _arm_angle(person, -body.x, body.y), _arm_angle(person, body.x, body.y)
    return dataclasses.replace(pose, left_arm=left, right_arm=right, legs=_leg_angle(person, body))


def _arm_angle(person: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the angle in degrees of the arm on the side where x is positive."""
    dx, dy = x - SHOULDER[0], y - SHOULDER[1]
    distance, angle = np.hypot(dx, dy), np.degrees(np.arctan2(dx, dy))
    (low, high), reach = ARM_ANGLE, math.degrees(ARM[1] / _HANDS[0])
    arm = person & (distance > _HANDS[0]) & (distance < _HANDS[1]) & (angle > low - reach) & (angle < high + reach)
    return float(np.clip(angle[arm].mean(), low, high)) if arm.any() else float(np.mean(ARM_ANGLE))


def _leg_angle(person: np.ndarray, body: Body) -> float:
    """Returns the angle in degrees of both legs."""
    shins = person & (body.y > _SHINS[0]) & (body.y < _SHINS[1])
    if not shins.any():
        return float(np.mean(LEG_ANGLE))
    dx, dy = np.abs(body.x[shins]).mean() - HIP[0], body.y[shins].mean() - HIP[1]
    return float(np.clip(np.degrees(np.arctan2(dx, dy)), *LEG_ANGLE))


def _read_garment(
    pixels: np.ndarray, person: np.ndarray, body: Body, place: str, color: str | None, others: list[np.ndarray]
) -> Worn:
    """Reads a garment of a place with a color; `others` are the colors of what may be beside it."""
    if color is None:
        return Worn(place, None, None, None)
    own = np.array(COLORS[color], np.float32)
    beside = [other for other in others if np.any(other != own)]
    white, off_line = _whiteness(pixels, own)
    covered = person & (off_line < np.min([np.linalg.norm(pixels - other, axis=-1) for other in beside], axis=0))
    compared = (body.y < _WAIST[0]) | (body.y > _WAIST[1]) if place != "body" else np.ones_like(covered)
    # what is far from the place, such as the white of another garment, does not count
    compared &= body.area(place) < 0.06
    ious = {noun: _iou(covered & compared, (body.garment(noun) < 0) & compared) for noun in GARMENTS[place]}
    noun = max(ious, key=lambda noun: ious[noun])
    if ious[noun] < _MIN_IOU:
        return Worn(place, None, color, None)
    rows = _PATTERN_ROWS.get(noun, _CHEST[0])
    inside = (body.garment(noun) < -0.025) & (body.y > rows[0]) & (body.y < rows[1]) & (np.abs(body.x) < 0.2)
    if place == "top":
        inside &= np.abs(body.x) < _CHEST[1][1]
    return Worn(place, noun, color, _pattern(white, inside))


def _whiteness(pixels: np.ndarray, color: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (part of white in a mix of a color and white, distance in RGB from that mix), [H, W] each."""
    line, offset = np.array(PATTERN_COLOR, np.float32) - color, pixels - color
    white = np.clip(offset @ line / (line @ line), 0, 1)
    return white, np.linalg.norm(offset - white[..., None] * line, axis=-1)


def _pattern(white: np.ndarray, inside: np.ndarray) -> str:
    """Returns the pattern of whiteness [H, W] inside, bool [H, W]: stripes differ between rows, dots within rows."""
    if not inside.any() or white[inside].std() < _MIN_WHITE:
        return "plain"
    rows = [white[row][inside[row]] for row in np.flatnonzero(inside.sum(1) >= 3)]
    between = np.std([row.mean() for row in rows])
    within = np.sqrt(np.mean([row.var() for row in rows]))
    return "striped" if between > within else "dotted"


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def _window(body: Body, rows: tuple[float, float], distances: tuple[float, float]) -> np.ndarray:
    x = np.abs(body.x)
    return (body.y > rows[0]) & (body.y < rows[1]) & (x >= distances[0]) & (x < distances[1])


def _color(pixels: np.ndarray) -> str | None:
    """Returns the name of the color that most of [N, 3] have, beside white; None if few have one."""
    palette = np.array([*COLORS.values(), PATTERN_COLOR], np.float32)
    distances = np.linalg.norm(pixels[:, None] - palette, axis=-1)
    nearest = np.where(distances.min(-1) < _COLOR_TOLERANCE, distances.argmin(-1), len(COLORS))
    counts = np.bincount(nearest, minlength=len(palette))[: len(COLORS)]
    return list(COLORS)[int(counts.argmax())] if counts.max() > _MIN_COLOR * len(pixels) else None


def _nearest_name(rgb: np.ndarray, colors: dict[str, tuple[int, int, int]]) -> str | None:
    distances = {name: float(np.linalg.norm(rgb - np.array(color))) for name, color in colors.items()}
    name = min(distances, key=lambda name: distances[name])
    return name if distances[name] <= _COLOR_TOLERANCE else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """Returns the largest connected part of a mask [H, W]; gaps of up to four pixels are part of it."""
    # where a stripe's edge mixes white with green, it is mint
    closed = mask | ndimage.binary_closing(mask, np.ones((3, 3)), iterations=2)
    labels, count = ndimage.label(closed, structure=np.ones((3, 3)))
    return labels == np.bincount(labels[closed]).argmax() if count else mask
