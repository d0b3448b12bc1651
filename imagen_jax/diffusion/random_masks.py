"""Random masks, on which a stage is trained to inpaint (arXiv:2212.06909, Section 3.2).

All sizes are parts of the image's, so that the stages of a cascade learn the same task at their own sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size

MASK_KINDS = ("everything", "boxes", "strokes", "borders", "objects")

_MAX_BOXES = 3
_BOX_AREA = (0.02, 0.5)  # part of the image; the logarithm is uniform
_BOX_ASPECT = (0.5, 2.0)  # likewise
_MAX_STROKES = 3
_STROKE_POINTS = 6
_STROKE_STEP = (0.05, 0.3)  # in units of the shorter side
_STROKE_RADIUS = (0.03, 0.12)  # likewise
_BOX_MARGIN = (0.02, 0.15)  # on each side of an object's bounding box, in units of the image's shorter side
_FORM_MARGIN = 0.04  # around an object's form, likewise
_KNOWN_SIDE = (0.25, 0.9)  # what a border leaves of a side


@dataclasses.dataclass(frozen=True)
class MaskDistribution:
    """A distribution of masks; the attributes are how often each kind is drawn, relative to their sum.

    Attributes:
        everything: all pixels, as in sampling without an image.
        boxes: one to three rectangles.
        strokes: one to three bent lines of a round brush.
        borders: all but a rectangle, which mostly touches sides of the image, as in outpainting.
        objects: an object of the image with a margin, by its form or its bounding box; boxes where there is none.

    Raises:
        ConfigError: a weight is negative or not finite, or all are 0.
    """

    everything: float
    boxes: float
    strokes: float
    borders: float
    objects: float = 0.0

    def __post_init__(self) -> None:
        weights = [getattr(self, kind) for kind in MASK_KINDS]
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            given = ", ".join(f"{kind} {weight}" for kind, weight in zip(MASK_KINDS, weights, strict=True))
            raise ConfigError(f"{given} are not weights of masks: give finite numbers of at least 0, one above 0")

    def sample(self, keys: jax.Array, size: Size, objects: jax.Array | None = None) -> jax.Array:
        """Samples masks, float32 [B, H, W, 1]: 1 where pixels are to be drawn, at least one, and 0 where not.

        Args:
            keys: PRNG keys [B]; each mask is a function of its own key, and of its objects.
            size: (H, W), each at least 2.
            objects: integers [B, H, W] in [0, 256), another one for each object and 0 where there is none; None for
                images without objects.
        """
        maps = jnp.zeros((keys.shape[0], *size), jnp.uint8) if objects is None else objects
        logits = jnp.log(jnp.array([getattr(self, kind) for kind in MASK_KINDS], jnp.float32))

        def sample_one(key: jax.Array, objects: jax.Array) -> jax.Array:
            kind_key, mask_key = jax.random.split(key)
            # in a batch all of them are computed, which is cheap beside a network
            return jax.lax.switch(
                jax.random.categorical(kind_key, logits),
                [
                    lambda *_: jnp.ones(size, bool),
                    lambda key, _: random_boxes(key, size),
                    lambda key, _: random_strokes(key, size),
                    lambda key, _: random_borders(key, size),
                    random_object,
                ],
                mask_key,
                objects,
            )

        return jax.vmap(sample_one)(keys, maps)[..., None].astype(jnp.float32)


def random_boxes(key: jax.Array, size: Size) -> jax.Array:
    """Returns one to three random rectangles within an image, bool [H, W], each of 2% to 50% of it."""
    return _some_of(key, lambda key: _random_box(key, size), _MAX_BOXES)


def _random_box(key: jax.Array, size: Size) -> jax.Array:
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    area, aspect = _log_uniform(area_key, _BOX_AREA), _log_uniform(aspect_key, _BOX_ASPECT)
    parts = jnp.stack([jnp.sqrt(area * aspect), jnp.sqrt(area / aspect)])
    sides = jnp.array(size)
    lengths = jnp.clip(jnp.round(parts * sides), 1, sides).astype(jnp.int32)
    starts = jnp.floor(jax.random.uniform(place_key, (2,)) * (sides - lengths + 1)).astype(jnp.int32)
    return _rectangle(starts, lengths, size)


def random_borders(key: jax.Array, size: Size) -> jax.Array:
    """Returns all but a random rectangle of an image, bool [H, W], as in outpainting.

    The image continues in height, in width, or in both; in each it is at the start, at the end or anywhere.
    """
    axes_key, part_key, where_key, place_key = jax.random.split(key, 4)
    sides = jnp.array(size)
    continues = (jax.random.randint(axes_key, (), 1, 4) >> jnp.arange(2)) & 1  # 1, 2 or 3: at least one of both
    low, high = _KNOWN_SIDE
    parts = jax.random.uniform(part_key, (2,), minval=low, maxval=high)
    lengths = jnp.where(continues, jnp.clip(jnp.round(parts * sides), 1, sides - 1), sides).astype(jnp.int32)
    room = sides - lengths
    anywhere = jnp.floor(jax.random.uniform(place_key, (2,)) * (room + 1)).astype(jnp.int32)
    where = jax.random.randint(where_key, (2,), 0, 3)
    return ~_rectangle(jnp.where(where == 0, 0, jnp.where(where == 1, room, anywhere)), lengths, size)


def random_object(key: jax.Array, objects: jax.Array) -> jax.Array:
    """Returns a random object of an image with a margin, bool [H, W]: by its form, or its bounding box, at equal odds.

    Args:
        key: PRNG key.
        objects: integers [H, W] in [0, 256), see `MaskDistribution.sample`. Without an object the mask is that of
            `random_boxes` with the same key.
    """
    size = objects.shape[0], objects.shape[1]
    choice_key, kind_key, margin_key = jax.random.split(key, 3)
    # every number has a place in a random order; of those in the image the first is taken
    order = jax.random.permutation(choice_key, jnp.arange(1, 257)).at[0].set(0)[objects]
    chosen = (order == order.max()) & (objects > 0)
    low, high = _BOX_MARGIN
    margins = jax.random.uniform(margin_key, (4,), minval=low, maxval=high) * min(size)
    box = _bounding_box(chosen, jnp.round(margins).astype(jnp.int32))
    mask = jnp.where(jax.random.bernoulli(kind_key), box, _dilate(chosen, max(1, round(_FORM_MARGIN * min(size)))))
    return jnp.where(chosen.any(), mask, random_boxes(key, size))


def _bounding_box(pixels: jax.Array, margins: jax.Array) -> jax.Array:
    """Returns the bounding box of pixels, bool [H, W], enlarged by (top, left, bottom, right) where there is room."""
    size = pixels.shape[0], pixels.shape[1]
    within = []
    for axis, side in enumerate(size):
        places, there = jnp.arange(side), pixels.any(1 - axis)
        start = jnp.where(there, places, side).min() - margins[axis]
        end = jnp.where(there, places, -1).max() + margins[axis + 2]
        within.append((places >= start) & (places <= end))
    return within[0][:, None] & within[1]


def _dilate(pixels: jax.Array, margin: int) -> jax.Array:
    """Returns the pixels [H, W] that are at most `margin` rows and columns from one of these."""
    for window in ((2 * margin + 1, 1), (1, 2 * margin + 1)):  # a row of maxima, then a column: a square
        pixels = jax.lax.reduce_window(pixels, False, jax.lax.bitwise_or, window, (1, 1), "SAME")
    return pixels


def random_strokes(key: jax.Array, size: Size) -> jax.Array:
    """Returns one to three strokes of a round brush over an image, bool [H, W]: walks of five bent segments each."""
    return _some_of(key, lambda key: _random_stroke(key, size), _MAX_STROKES)


def _random_stroke(key: jax.Array, size: Size) -> jax.Array:
    start_key, angle_key, step_key, radius_key = jax.random.split(key, 4)
    sides = jnp.array(size) / min(size)
    start = jax.random.uniform(start_key, (2,)) * sides
    # a walk that keeps about its direction
    angles = jnp.cumsum(
        jax.random.uniform(angle_key, (_STROKE_POINTS - 1,), minval=-1.0, maxval=1.0)
        * jnp.array([math.pi] + [1.2] * (_STROKE_POINTS - 2))
    )
    low, high = _STROKE_STEP
    steps = jax.random.uniform(step_key, (_STROKE_POINTS - 1, 1), minval=low, maxval=high)
    walk = start + jnp.cumsum(steps * jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1), axis=0)
    points = jnp.concatenate([start[None], jnp.clip(walk, 0, sides)])
    low, high = _STROKE_RADIUS
    # never thinner than what surely covers a pixel's center
    radius = jnp.maximum(jax.random.uniform(radius_key, (), minval=low, maxval=high), 0.75 / min(size))
    rows, columns = ((jnp.arange(side) + 0.5) / min(size) for side in size)
    pixels = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)

    def add(covered: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return covered | (_distance(pixels, *ends) <= radius), None

    return jax.lax.scan(add, jnp.zeros(size, bool), (points[:-1], points[1:]))[0]


def _some_of(key: jax.Array, draw: Callable[[jax.Array], jax.Array], most: int) -> jax.Array:
    """Returns the union of one to `most` masks [H, W] that a function draws with a key."""
    count_key, draw_key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 1, most + 1)
    masks = jax.vmap(draw)(jax.random.split(draw_key, most))
    return (masks & (jnp.arange(most) < count)[:, None, None]).any(0)


def _distance(points: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the distances of points [..., 2] from the segment between two points [2]."""
    along = second - first
    share = jnp.clip((points - first) @ along / jnp.maximum(along @ along, 1e-12), 0, 1)
    return jnp.linalg.norm(points - first - share[..., None] * along, axis=-1)


def _rectangle(starts: jax.Array, lengths: jax.Array, size: Size) -> jax.Array:
    """Returns a rectangle, bool [H, W], from (top, left) and (height, width) in pixels."""
    rows, columns = (jnp.arange(side) for side in size)
    in_rows = (rows >= starts[0]) & (rows < starts[0] + lengths[0])
    in_columns = (columns >= starts[1]) & (columns < starts[1] + lengths[1])
    return in_rows[:, None] & in_columns


def _log_uniform(key: jax.Array, limits: tuple[float, float]) -> jax.Array:
    low, high = (math.log(limit) for limit in limits)
    return jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))
