"""Renders scenes with flat colors and edges anti-aliased over one pixel, at any resolution and aspect ratio."""

import functools
import math

import numpy as np

from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, NEW_SHAPES, Scene, SceneObject
from imagen_jax.images.array import Size, image_dtype, parse_size

# In units of an object's radius, chosen so that shapes with the same radius look equally large.
_SQUARE = 0.88  # half-side; its area is that of the circle
_TRIANGLE = math.sqrt(3) / 2  # half-height of the equilateral triangle of half-width 1
_CROSS = 0.36  # half-width of an arm
_RING = 0.55  # radius of the hole
_STAR = 0.48  # radius of the inner corners of a star with five points
_SUBPIXELS = 8  # per axis, for shapes whose edges have no simple distance


def render(scene: Scene, resolution: int | Size, bits: int = 8, transparent: bool = False) -> np.ndarray:
    """Renders a scene.

    Args:
        scene: the scene.
        resolution: side of a square image, or (height, width).
        bits: 8 for uint8, 16 for uint16.
        transparent: whether to omit the background. Alpha is then the fraction of a pixel that objects cover; RGB is
            their unmixed color where they cover any of the pixel, and white elsewhere.

    Returns:
        RGB [H, W, 3], or RGBA [H, W, 4] if transparent.
    """
    height, width = parse_size(resolution, "resolution")
    dtype = image_dtype(bits, "bits")
    highest = np.iinfo(dtype).max
    background = (255, 255, 255, 0) if transparent else BACKGROUNDS[scene.background]
    channels = len(background)
    # Rows are [W * C] while rendering: numpy is several times slower over a last axis of 3.
    canvas = np.empty((height, channels * width), dtype)
    canvas[:] = np.tile(_in_range(background, highest).astype(dtype), width)
    for item in scene.objects:
        color = (*COLORS[item.color], 255)[:channels]
        _draw(canvas.reshape(height, width, channels), item, _in_range(color, highest))
    return canvas.reshape(height, width, channels)


def object_map(scene: Scene, resolution: int | Size) -> np.ndarray:
    """Returns which object covers at least half of each pixel, uint8 [H, W]: 1 for the first one, 0 for none.

    Args:
        scene: the scene.
        resolution: side of a square image, or (height, width).
    """
    height, width = parse_size(resolution, "resolution")
    objects = np.zeros((height, width), np.uint8)
    for number, item in enumerate(scene.objects, 1):
        box, cover = _cover(item, (height, width))
        objects[box][cover >= 0.5] = number
    return objects


@functools.cache
def _in_range(color: tuple[int, ...], highest: int) -> np.ndarray:
    """Rescales a color from [0, 255] to [0, highest]."""
    return np.array(color, np.float32) * np.float32(highest / 255)


def _draw(canvas: np.ndarray, item: SceneObject, color: np.ndarray) -> None:
    """Composites the object over canvas [H, W, C] in place, within its bounding box."""
    height, width, channels = canvas.shape
    (rows, columns), cover = _cover(item, (height, width))
    over = np.repeat(cover, channels, axis=1)
    if channels == 4:
        # there is no background to mix the color with
        over.reshape(*cover.shape, 4)[..., :3] = cover[..., None] > 0
    box = canvas.reshape(height, width * channels)[rows, channels * columns.start : channels * columns.stop]
    box[:] = box + over * (np.tile(color, cover.shape[1]) - box) + np.float32(0.5)


def _cover(item: SceneObject, size: Size) -> tuple[tuple[slice, slice], np.ndarray]:
    """Returns an object's bounding box in pixels, (rows, columns), and what fraction of each pixel there it covers."""
    height, width = size
    x, y, radius = item.x * width, item.y * height, item.radius * min(height, width)
    left, right = max(math.floor(x - radius), 0), min(math.ceil(x + radius), width)
    top, bottom = max(math.floor(y - radius), 0), min(math.ceil(y + radius), height)
    dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    return (slice(top, bottom), slice(left, right)), coverage(item.shape, dx, dy, radius)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Returns the fraction of each pixel that a shape covers.

    Args:
        shape: one of SHAPES or NEW_SHAPES.
        dx: [W], x of the pixel centers relative to the shape's center, in pixels.
        dy: [H], y of the pixel centers, downwards.
        radius: radius in pixels.

    Returns:
        [H, W] in [0, 1].
    """
    if shape in NEW_SHAPES:
        return _sampled_coverage(shape, dx, dy, radius)
    dx, dy = dx[None, :], dy[:, None]
    if shape == "square":
        return _span(dx, _SQUARE * radius) * _span(dy, _SQUARE * radius)
    if shape == "cross":
        long_x, long_y = _span(dx, radius), _span(dy, radius)
        short_x, short_y = _span(dx, _CROSS * radius), _span(dy, _CROSS * radius)
        return long_x * short_y + (long_y - short_y) * short_x
    if shape == "triangle":
        half_height = _TRIANGLE * radius
        # Two opposite edges may cross one pixel near the apex: what is left of it is what neither cuts off.
        slope = 0.5 * (dy + half_height)
        sides = _inside(_TRIANGLE * dx - slope) + _inside(-_TRIANGLE * dx - slope) - 1
        return np.maximum(sides, 0) * _span(dy, half_height)
    distance = np.sqrt(dx * dx + dy * dy)
    disc = _inside(distance - radius)
    return disc - _inside(distance - _RING * radius) if shape == "ring" else disc


def _sampled_coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Returns the fraction of the points of a grid in each pixel that are inside of a star or a heart."""
    offsets = (np.arange(_SUBPIXELS, dtype=np.float32) + 0.5) / _SUBPIXELS - 0.5
    x, y = ((axis[:, None] + offsets).ravel() / max(radius, 1e-6) for axis in (dx, dy))
    inside = (_in_star if shape == "star" else _in_heart)(x[None, :], y[:, None])
    return inside.reshape(len(dy), _SUBPIXELS, len(dx), _SUBPIXELS).mean(axis=(1, 3), dtype=np.float32)


def _in_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns whether points are inside of a star with a point upwards, whose points are 1 from its center."""
    # turned into the half of a point, where one edge is the border
    angle = np.abs((np.arctan2(x, -y) + math.pi / 5) % (2 * math.pi / 5) - math.pi / 5)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    corner = _STAR * math.cos(math.pi / 5), _STAR * math.sin(math.pi / 5)
    return across * (1 - corner[0]) <= corner[1] * (1 - along)


def _in_heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns whether points are inside of a heart: two discs above, and what is below them down to its tip."""
    lobes = np.hypot(np.abs(x) - 0.46, y + 0.3) <= 0.5
    tip = (y >= -0.3) & (y <= 0.88) & (np.abs(x) <= 0.96 * np.sqrt(np.clip((0.88 - y) / 1.18, 0, 1)) ** 1.4)
    return lobes | tip


def _inside(distance: np.ndarray) -> np.ndarray:
    """Returns coverage from the signed distance, negative inside, of a pixel's center to an edge."""
    return np.minimum(np.maximum(0.5 - distance, 0), 1)


def _span(offset: np.ndarray, half: float) -> np.ndarray:
    """Returns the exact fraction of the pixel at `offset` within [-half, half] on one axis."""
    return np.minimum(np.maximum(half + 0.5 - np.abs(offset), 0), min(1.0, 2 * half))
