"""Scenes to pictures: flat colours, edges anti-aliased over one pixel, at any resolution."""

import math

import numpy as np

from imagen_jax.data.shapes.scenes import BACKGROUNDS, COLOURS, Scene, Thing

# In units of a thing's radius, chosen so that shapes of one radius look equally large.
SQUARE = 0.88  # half-side; its area is that of the circle
TRIANGLE = math.sqrt(3) / 2  # half-height of the equilateral triangle of half-width 1
CROSS = 0.36  # half-width of an arm
RING = 0.55  # radius of the hole

_RGB = {name: np.array(rgb, np.float32) for name, rgb in (COLOURS | BACKGROUNDS).items()}


def render(scene: Scene, resolution: int) -> np.ndarray:
    """The scene as uint8 RGB [resolution, resolution, 3]."""
    # Rows are [R * 3] while drawing: numpy is several times slower over a last axis of 3.
    canvas = np.empty((resolution, 3 * resolution), np.uint8)
    canvas[:] = np.tile(_RGB[scene.background].astype(np.uint8), resolution)
    for thing in scene.things:
        _draw(canvas, thing, resolution)
    return canvas.reshape(resolution, resolution, 3)


def _draw(canvas: np.ndarray, thing: Thing, resolution: int) -> None:
    """Lays the thing over canvas [R, R * 3], touching no pixel outside its bounding box."""
    x, y, radius = thing.x * resolution, thing.y * resolution, thing.radius * resolution
    left, right = max(math.floor(x - radius), 0), min(math.ceil(x + radius), resolution)
    top, bottom = max(math.floor(y - radius), 0), min(math.ceil(y + radius), resolution)
    dx = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)
    over = np.repeat(coverage(thing.shape, dx, dy, radius), 3, axis=1)
    box = canvas[top:bottom, 3 * left : 3 * right]
    box[:] = box + over * (np.tile(_RGB[thing.colour], right - left) - box) + np.float32(0.5)


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
