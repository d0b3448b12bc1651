"""Renders figures with edges anti-aliased over one pixel, and the masks of their garments, at any resolution."""

import numpy as np

from imagen_jax.datasets.figures.body import Body
from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, HAIRS, PATTERN_COLOR, SHOES, SKINS, Figure
from imagen_jax.images.array import Size, image_dtype, parse_size

# In units of the figure's height.
_STRIPE = (0.125, 0.0525)  # period, height of the white part
_DOTS = (0.13, 0.10)  # from one to the next in a row, and from row to row; every other row is shifted by a half
_DOT = 0.035  # radius
_TOP = 0.225  # where stripes and dots begin

Color = tuple[int, int, int]


def render(figure: Figure, resolution: int | Size, bits: int = 8) -> np.ndarray:
    """Renders a figure.

    Args:
        figure: the figure.
        resolution: side of a square image, or (height, width).
        bits: 8 for uint8, 16 for uint16.

    Returns:
        RGB [H, W, 3].
    """
    size = parse_size(resolution, "resolution")
    dtype = image_dtype(bits, "bits")
    body, scale = Body.over(figure.pose, size), figure.pose.height * min(size)
    # channels come first while rendering: numpy is several times slower over a last axis of 3
    canvas = np.empty((3, *size), np.float32)
    canvas[:] = _planes(BACKGROUNDS[figure.background])

    def draw(distance: np.ndarray, color: np.ndarray) -> None:
        cover = _inside(distance * np.float32(scale))
        canvas[:] = canvas + cover * (color - canvas)

    skin = _planes(SKINS[figure.skin])
    draw(body.legs(), skin)
    draw(body.shoes(), _planes(SHOES))
    draw(body.torso(), skin)
    draw(body.arms(), skin)
    # a top is worn over a bottom
    for garment in reversed(figure.garments):
        color = _planes(COLORS[garment.color])
        if garment.pattern != "plain":
            color = color + pattern_cover(garment.pattern, body, scale) * (_planes(PATTERN_COLOR) - color)
        draw(body.garment(garment.noun), color)
    draw(body.hands(), skin)
    draw(body.head(), skin)
    draw(body.hair(figure.long_hair), _planes(HAIRS[figure.hair]))
    values = canvas * np.float32(np.iinfo(dtype).max / 255) + np.float32(0.5)
    return np.ascontiguousarray(values.astype(dtype).transpose(1, 2, 0))


def _planes(color: Color) -> np.ndarray:
    """Returns a color as float32 [3, 1, 1]."""
    return np.array(color, np.float32)[:, None, None]


def object_map(figure: Figure, resolution: int | Size) -> np.ndarray:
    """Renders where the garments of a figure are, whichever they are, see `Body.area`.

    Args:
        figure: the figure.
        resolution: side of a square image, or (height, width).

    Returns:
        uint8 [H, W]: the index of a garment from 1 where it, or another of its place, may cover any of the pixel; 0
        elsewhere.
    """
    size = parse_size(resolution, "resolution")
    body, scale = Body.over(figure.pose, size), figure.pose.height * min(size)
    labels = np.zeros(size, np.uint8)
    for label, garment in reversed(list(enumerate(figure.garments, start=1))):
        labels[_inside(body.area(garment.place) * scale) > 0] = label
    return labels


def pattern_cover(pattern: str, body: Body, scale: float) -> np.ndarray:
    """Returns the fraction of each pixel that a pattern makes white, [H, W], for `scale` pixels to a unit of `body`."""
    if pattern == "plain":
        return np.zeros_like(body.x)
    y = body.y - _TOP
    if pattern == "striped":
        period, height = _STRIPE
        return _inside((np.abs((y % period) - period / 2) - height / 2) * scale)
    width, height = _DOTS
    row = np.floor(y / height)
    x = (body.x + row % 2 * (width / 2) + width / 2) % width - width / 2
    return _inside((np.sqrt(x * x + (y - (row + 0.5) * height) ** 2) - _DOT) * scale)


def _inside(distance: np.ndarray) -> np.ndarray:
    """Returns coverage from the signed distance in pixels, negative inside, of a pixel's center to an edge."""
    return np.minimum(np.maximum(0.5 - distance, 0), 1)
