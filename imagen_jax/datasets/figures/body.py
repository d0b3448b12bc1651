"""The forms of a figure: signed distances from its parts and its garments.

Coordinates are in units of the figure's height: x from its axis, to the right of the image, and y from its top down.
"""

import dataclasses
import math

import numpy as np

from imagen_jax.datasets.figures.scenes import Pose
from imagen_jax.images.array import Size

HEAD = (0.115, 0.095)  # y of its center, its radius
SHOULDER = (0.145, 0.275)
ARM = (0.30, 0.048)  # length, radius
HIP = (0.08, 0.56)
LEG = (0.40, 0.058)
SLEEVES = {"vest": 0.0, "shirt": 0.48, "sweater": 0.93}  # part of the arm
TROUSERS = {"shorts": 0.55, "trousers": 0.93}  # part of the leg
Axis = tuple[tuple[float, float], tuple[float, float]]  # (x, y) of the start and of the end

_SLEEVE = 0.064  # half-width
_TROUSER = 0.08
_WAIST = 0.565  # where a bottom begins
_HAND = 0.055
_SHOE = (0.05, 0.045)  # length to the outside, radius


@dataclasses.dataclass(frozen=True)
class Body:
    """The forms of a figure over an image's pixels; all methods return signed distances, negative inside.

    Attributes:
        x: of the pixels' centers, [H, W].
        y: likewise.
        pose: of the figure.
    """

    x: np.ndarray
    y: np.ndarray
    pose: Pose

    @classmethod
    def over(cls, pose: Pose, size: Size) -> "Body":
        """Returns the forms of a figure over the pixels of an image of (height, width)."""
        height, width = size
        scale = pose.height * min(size)
        columns = (np.arange(width, dtype=np.float32) + np.float32(0.5 - pose.x * width)) / np.float32(scale)
        rows = (np.arange(height, dtype=np.float32) + np.float32(0.5 - pose.y * height)) / np.float32(scale)
        x, y = np.meshgrid(columns, rows + np.float32(0.5))
        return cls(x, y, pose)

    def head(self) -> np.ndarray:
        """The head and the neck."""
        center, radius = HEAD
        neck = _trapezoid(self.x, self.y, (0.15, 0.26), (0.045, 0.05))
        return np.minimum(_disc(self.x, self.y - center, radius), neck)

    def hair(self, long: bool) -> np.ndarray:
        """The hair on the head; if long, also beside it."""
        center, radius = HEAD
        cap = np.maximum(_disc(self.x, self.y - center, radius + 0.02), self.y - (center - 0.03))
        if not long:
            return cap
        x = np.abs(np.abs(self.x) - radius) - 0.025
        return np.minimum(cap, np.maximum(x, np.maximum(center - 0.03 - self.y, self.y - 0.24)))

    def arms(self) -> np.ndarray:
        """The arms."""
        return self._arms(1.0, ARM[1])

    def hands(self) -> np.ndarray:
        """The hands."""
        (_, (x1, y1)), (_, (x2, y2)) = self._arm(-1), self._arm(1)
        return np.minimum(_disc(self.x - x1, self.y - y1, _HAND), _disc(self.x - x2, self.y - y2, _HAND))

    def legs(self) -> np.ndarray:
        """The legs."""
        return self._legs(1.0, LEG[1])

    def shoes(self) -> np.ndarray:
        """The shoes."""
        (_, (ankle, _)), (length, radius) = self._leg(), _SHOE
        x = np.abs(self.x) - ankle
        along = np.minimum(np.maximum(x, 0), np.float32(length))
        return _disc(x - along, self.y - (1 - radius), radius)

    def torso(self) -> np.ndarray:
        """The torso."""
        return _trapezoid(self.x, self.y, (0.225, 0.575), (0.15, 0.13))

    def garment(self, noun: str) -> np.ndarray:
        """A garment, one of NOUNS."""
        if noun in SLEEVES:
            return self._top(noun)
        if noun in TROUSERS:
            hips = _trapezoid(self.x, self.y, (_WAIST, 0.65), (0.135, 0.17))
            # the round ends of the legs would show beside a top
            return np.minimum(hips, np.maximum(self._legs(TROUSERS[noun], _TROUSER), 0.61 - self.y))
        if noun == "skirt":
            return _trapezoid(self.x, self.y, (_WAIST, 0.77), (0.135, 0.275))
        bodice = _trapezoid(self.x, self.y, (0.225, 0.56), (0.125, 0.13))
        return np.minimum(bodice, _trapezoid(self.x, self.y, (0.48, 0.80), (0.125, 0.285)))

    def area(self, place: str) -> np.ndarray:
        """What garments of a place of GARMENTS may cover, whichever is worn: it does not tell one from another."""
        if place == "top":
            return self._top("sweater")
        if place == "bottom":
            return np.minimum(self.garment("trousers"), self.garment("skirt"))
        return self.garment("dress")

    def _top(self, noun: str) -> np.ndarray:
        shoulders = 0.125 if noun == "vest" else 0.165
        torso = _trapezoid(self.x, self.y, (0.225, 0.575), (shoulders, 0.15))
        return np.minimum(torso, self._arms(SLEEVES[noun], _SLEEVE)) if SLEEVES[noun] else torso

    def _arms(self, part: float, half_width: float) -> np.ndarray:
        return np.minimum(
            _limb(self.x, self.y, self._arm(-1), part, half_width),
            _limb(self.x, self.y, self._arm(1), part, half_width),
        )

    def _legs(self, part: float, half_width: float) -> np.ndarray:
        return _limb(np.abs(self.x), self.y, self._leg(), part, half_width)

    def _arm(self, side: int) -> Axis:
        """Returns the axis of the left (-1) or the right (1) arm."""
        (x, y), angle = SHOULDER, math.radians(self.pose.left_arm if side < 0 else self.pose.right_arm)
        return (side * x, y), (side * (x + ARM[0] * math.sin(angle)), y + ARM[0] * math.cos(angle))

    def _leg(self) -> Axis:
        """Returns the axis of the right leg, of which the left one is the mirror image."""
        (x, y), angle = HIP, math.radians(self.pose.legs)
        return HIP, (x + LEG[0] * math.sin(angle), y + LEG[0] * math.cos(angle))


def _limb(x: np.ndarray, y: np.ndarray, axis: Axis, part: float, half_width: float) -> np.ndarray:
    """A limb around an axis, round at its start and cut straight after a part of its length."""
    start, end = axis
    length = math.dist(start, end)
    dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x, y = x - start[0], y - start[1]
    along, across = x * dx + y * dy, x * dy - y * dx
    back = np.minimum(along, 0)
    return np.maximum(np.sqrt(across * across + back * back) - half_width, along - part * length)


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _trapezoid(x: np.ndarray, y: np.ndarray, rows: tuple[float, float], half_widths: tuple[float, float]) -> np.ndarray:
    """A trapezoid around the axis, from the row `rows[0]` to `rows[1]`, with its half-width at both."""
    (top, bottom), (first, last) = rows, half_widths
    slope = (last - first) / (bottom - top)
    side = (np.abs(x) - first - slope * (y - top)) / math.hypot(1, slope)
    return np.maximum(side, np.maximum(top - y, y - bottom))
