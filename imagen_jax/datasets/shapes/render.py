"""Scenes to pictures: flat colours, edges anti-aliased over one pixel, at any resolution and aspect."""

import functools
import math

import numpy as np

from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, Scene, SceneObject
from imagen_jax.images.array import Size, dtype_of, size_of

# In units of a thing's radius, chosen so that shapes of one radius look equally large.
SQUARE = 0.88  # half-side; its area is that of the circle
TRIANGLE = math.sqrt(3) / 2  # half-height of the equilateral triangle of half-width 1
CROSS = 0.36  # half-width of an arm
RING = 0.55  # radius of the hole


def render(scene: Scene, resolution: int | Size, bits: int = 8, transparent: bool = False) -> np.ndarray:
    """The scene as RGB [H, W, 3], or as RGBA [H, W, 4] of its things alone.

    Args:
      scene: what to draw.
      resolution: of a square picture, or (height, width).
      bits: 8 gives uint8, 16 uint16.
      transparent: whether to draw on nothing instead of on the background. Alpha is what things cover of a pixel, and
        RGB their colour, unmixed, where they cover any of it, and white elsewhere.
    """
    height, width = size_of(resolution, "resolution")
    dtype = dtype_of(bits, "bits")
    highest = np.iinfo(dtype).max
    background = (255, 255, 255, 0) if transparent else BACKGROUNDS[scene.background]
    channels = len(background)
    # Rows are [W * C] while drawing: numpy is several times slower over a last axis of 3.
    canvas = np.empty((height, channels * width), dtype)
    canvas[:] = np.tile(_in_range(background, highest).astype(dtype), width)
    for thing in scene.things:
        colour = (*COLORS[thing.colour], 255)[:channels]
        _draw(canvas.reshape(height, width, channels), thing, _in_range(colour, highest))
    return canvas.reshape(height, width, channels)


@functools.cache
def _in_range(colour: tuple[int, ...], highest: int) -> np.ndarray:
    """A colour whose numbers reach to 255 as one whose numbers reach to ``highest``."""
    return np.array(colour, np.float32) * np.float32(highest / 255)


def _draw(canvas: np.ndarray, thing: SceneObject, colour: np.ndarray) -> None:
    """Lays the thing over canvas [H, W, C], touching no pixel outside its bounding box."""
    height, width, channels = canvas.shape
    x, y, radius = thing.x * width, thing.y * height, thing.radius * min(height, width)
    left, right = max(math.floor(x - radius), 0), min(math.ceil(x + radius), width)
    top, bottom = max(math.floor(y - radius), 0), min(math.ceil(y + radius), height)
    dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    cover = coverage(thing.shape, dx, dy, radius)
    over = np.repeat(cover, channels, axis=1)
    if channels == 4:
        # there is nothing for the colour to mix with
        over.reshape(*cover.shape, 4)[..., :3] = cover[..., None] > 0
    box = canvas.reshape(height, width * channels)[top:bottom, channels * left : channels * right]
    box[:] = box + over * (np.tile(colour, right - left) - box) + np.float32(0.5)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """How much of each pixel a shape covers.

    Args:
      shape: one of SHAPES.
      dx: [W] x of the pixels' middles from the shape's centre, in pixels.
      dy: [H] y of them, downwards.
      radius: in pixels.

    Returns:
      [H, W] in [0, 1].
    """
    dx, dy = dx[None, :], dy[:, None]
    if shape == "square":
        return _span(dx, SQUARE * radius) * _span(dy, SQUARE * radius)
    if shape == "cross":
        long_x, long_y = _span(dx, radius), _span(dy, radius)
        short_x, short_y = _span(dx, CROSS * radius), _span(dy, CROSS * radius)
        return long_x * short_y + (long_y - short_y) * short_x
    if shape == "triangle":
        half_height = TRIANGLE * radius
        # Two opposite edges may cross one pixel near the apex: what is left of it is what neither cuts off.
        slope = 0.5 * (dy + half_height)
        sides = _inside(TRIANGLE * dx - slope) + _inside(-TRIANGLE * dx - slope) - 1
        return np.maximum(sides, 0) * _span(dy, half_height)
    distance = np.sqrt(dx * dx + dy * dy)
    disc = _inside(distance - radius)
    return disc - _inside(distance - RING * radius) if shape == "ring" else disc


def _inside(distance: np.ndarray) -> np.ndarray:
    """Coverage by the signed distance, negative inside, of a pixel's middle to an edge."""
    return np.minimum(np.maximum(0.5 - distance, 0), 1)


def _span(offset: np.ndarray, half: float) -> np.ndarray:
    """The part of the pixel at `offset` that lies within [-half, half] of one axis; exact."""
    return np.minimum(np.maximum(half + 0.5 - np.abs(offset), 0), min(1.0, 2 * half))
