"""Detects the objects in shapes images by color and outline, without a network: the inverse of `render`.

The same rules apply to generated and to rendered images. Slight blur, slight color errors, light noise and specks do
not change the result; a malformed object is detected, but has no shape name.
"""

import dataclasses
import itertools
import math

import numpy as np
from scipy import ndimage

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.render import coverage
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, NEW_SHAPES, SHAPES, SIZES
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size

_CONTRAST = 45.0  # minimum RGB distance of an object from the background
_COLOR_TOLERANCE = 50.0  # maximum RGB distance to a named color: half the smallest distance between two of them
_MIN_AREA = 0.003  # minimum area of an object, in squares of the image's shorter side; the smallest true one has 0.023
_MIN_IOU = 0.85  # minimum intersection over union with a shape's outline; renders have 0.95 or more
_MIN_HOLE = 0.05  # minimum area of a hole, as a fraction of the object's area; a ring's is 0.43
_SCALES = (0.93, 1.0, 1.07)  # radii to try, relative to the radius with the same area, which blemishes falsify
_SECOND_COLOR = 0.15  # fraction of a region's core with another color from which it counts as two objects
_MIN_CORE = 0.1  # minimum fraction of an object's pixels away from its edge, for them to determine its color
_MIN_THIN_CONTRAST = 0.6  # minimum fraction of a color's contrast that a thin, blurred object keeps
_SIZE_TOLERANCE = 0.15  # by which radii may be outside the ranges of SIZES, as a fraction

_Window = tuple[slice, slice]  # rows and columns

_SIZE_BORDER = math.sqrt(SIZES["small"][1] * SIZES["large"][0])
_PALETTE = COLORS | BACKGROUNDS
_NAMES = tuple(_PALETTE)
_RGB = np.array(list(_PALETTE.values()), np.float32)
_NAMED = (*SHAPES, *NEW_SHAPES)
_SMOOTH = (0.25, 0.5, 0.25)  # against noise; outlines are smoothed alike before the comparison


@dataclasses.dataclass(frozen=True)
class Detection:
    """A detected object. A name is None if the attribute matches none of the known values.

    Attributes:
        shape: one of SHAPES or NEW_SHAPES, or None.
        color: one of COLORS or BACKGROUNDS, or None.
        size: one of SIZES, or None.
        x: center, in units of the image's width.
        y: center, in units of the image's height.
        radius: radius, in units of the image's shorter side.
        iou: intersection over union with the outline of the best shape, in [0, 1].
    """

    shape: str | None
    color: str | None
    size: str | None
    x: float
    y: float
    radius: float
    iou: float

    @property
    def position(self) -> str:
        """Which of POSITIONS contains the center."""
        return scenes.grid_position(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class DetectedScene:
    """The background's name, or None, and all objects, the largest first."""

    background: str | None
    objects: tuple[Detection, ...]


def detect(image: np.ndarray) -> DetectedScene:
    """Detects the background and the objects of an image.

    Args:
        image: uint8 RGB [H, W, 3], whose shorter side is at least about 32.

    Raises:
        ConfigError: the image has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ConfigError(f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]")
    pixels = image.astype(np.float32)
    smooth = _smooth(pixels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = np.median(border, axis=0)
    name = _color_name(background)
    objects = [
        _measure(region, pixels[window], smooth[window], background, window, image.shape[:2])
        for window, region in _regions(smooth, background)
    ]
    objects.sort(key=lambda item: -item.radius)
    return DetectedScene(name if name in BACKGROUNDS else None, tuple(objects))


def _regions(smooth: np.ndarray, background: np.ndarray) -> list[tuple[_Window, np.ndarray]]:
    """Returns the connected regions of one color that stand out from the background: (window, bool mask in it) each."""
    height, width = smooth.shape[:2]
    reach, min_area = _edge_width(smooth.shape[:2]), _MIN_AREA * min(height, width) ** 2
    contrast = np.linalg.norm(smooth - background, axis=-1)
    # An edge is where the contrast is half of that inside. A fixed threshold would move the edges of objects with high
    # contrast outwards until neighbors touch.
    is_object = contrast > np.maximum(_CONTRAST, ndimage.maximum_filter(contrast, size=2 * reach + 1) / 2)
    labels, _ = ndimage.label(is_object, structure=np.ones((3, 3)))
    core = _core(is_object)
    names = np.full(is_object.shape, -1)
    names[core] = _nearest(smooth[core])
    regions: list[tuple[_Window, np.ndarray]] = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        window = _widen(rows, reach + 1, height), _widen(columns, reach + 1, width)
        region = labels[window] == label
        if region.sum() >= min_area:
            regions.extend((window, part) for part in _split_by_color(region, names[window], min_area))
    return regions


def _split_by_color(region: np.ndarray, names: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Splits a connected region into touching objects with different colors.

    `names` are the pixels' color indices, -1 outside the core; parts of fewer than `min_area` pixels are blemishes.
    """
    names = np.where(region, names, -1)
    counts = np.bincount(names[names >= 0], minlength=len(_NAMES))
    colors = np.flatnonzero(counts >= max(_SECOND_COLOR * counts.sum(), min_area))
    if len(colors) < 2 or counts.sum() < _MIN_CORE * region.sum():
        return [region]
    nearest = ndimage.distance_transform_edt(~np.isin(names, colors), return_distances=False, return_indices=True)
    return [region & (names[tuple(nearest)] == color) for color in colors]


def _measure(
    region: np.ndarray, pixels: np.ndarray, smooth: np.ndarray, background: np.ndarray, window: _Window, size: Size
) -> Detection:
    """Names the color of a region, and the shape whose outline with the same area and center overlaps it best."""
    color = _inner_color(region, pixels, background)
    cover = _cover(region, smooth, color, background, _edge_width(size))
    rows, columns = (np.arange(side.start, side.stop, dtype=np.float32) + 0.5 for side in window)
    area = max(float(cover.sum()), 1.0)  # not clipped, so that noise cancels
    x, y = float((cover.sum(0) @ columns) / area), float((cover.sum(1) @ rows) / area)
    cover = _sharpen(cover)
    best = ("", 0.0, x, y, 0.0)
    for shape, scale in itertools.product(_NAMED, _SCALES):
        radius = scale * math.sqrt(area / _UNIT_AREA[shape])
        center_y = y - _CENTROID_OFFSET[shape] * radius
        outline = _sharpen(_smooth(coverage(shape, columns - x, rows - center_y, radius)))
        # with noise, coverage and outline can both be empty
        iou = float(np.minimum(cover, outline).sum() / max(float(np.maximum(cover, outline).sum()), 1.0))
        if iou > best[1]:
            best = (shape, iou, x, center_y, radius)
    shape, iou, x, y, radius = best
    height, width = size
    radius /= min(size)
    return Detection(
        shape if iou >= _MIN_IOU and _has_hole(region) == (shape == "ring") else None,
        _color_name(color),
        _size_name(radius),
        x / width,
        y / height,
        radius,
        iou,
    )


def _cover(region: np.ndarray, smooth: np.ndarray, color: np.ndarray, background: np.ndarray, reach: int) -> np.ndarray:
    """Returns the fraction of each pixel that the object covers: its color's position between background and object.

    It is 0 away from the region and for colors off that line. Noise takes it below 0 and above 1.
    """
    line = color - background
    offset = smooth - background
    cover = offset @ line / max(line @ line, 1)
    off_line = np.linalg.norm(offset - cover[..., None] * line, axis=-1) > _COLOR_TOLERANCE
    around = ndimage.binary_dilation(region, np.ones((3, 3)), iterations=reach)
    return np.where(around & ~off_line, cover, 0)


def _has_hole(region: np.ndarray) -> bool:
    holes = ndimage.binary_fill_holes(region) & ~region
    return holes.sum() >= _MIN_HOLE * region.sum()


def _sharpen(cover: np.ndarray) -> np.ndarray:
    """Returns coverage in [0, 1] with a steeper edge, so that light noise and slight blur have no effect."""
    return np.clip(2 * cover - 0.5, 0, 1)


def _unit_moments() -> tuple[dict[str, float], dict[str, float]]:
    """Returns for each shape of radius 1, from a render, its area and how far its centroid is below its center."""
    radius = 200
    d = np.arange(-radius, radius, dtype=np.float32) + 0.5
    covers = {shape: coverage(shape, d, d, radius) for shape in _NAMED}
    areas = {shape: float(cover.sum()) / radius**2 for shape, cover in covers.items()}
    offsets = {shape: float(cover.sum(1) @ d / cover.sum()) / radius for shape, cover in covers.items()}
    return areas, offsets


_UNIT_AREA, _CENTROID_OFFSET = _unit_moments()


def _inner_color(region: np.ndarray, pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Returns the RGB color [3] of a region's inside: the median of its core.

    A thin region, such as a small ring, has no core: where it is blurred all its pixels mix with the background. Its
    color is then the named one on whose line from the background they are, if they are close enough to it.
    """
    core = _core(region)
    if core.sum() >= _MIN_CORE * region.sum():
        return np.median(pixels[core], axis=0)
    inside = pixels[region]
    contrast = np.linalg.norm(inside - background, axis=-1)
    observed = np.median(inside[contrast >= np.quantile(contrast, 0.6)], axis=0)
    lines = np.array(list(COLORS.values()), np.float32) - background
    part = np.clip(lines @ (observed - background) / np.maximum((lines**2).sum(-1), 1), 0, 1)
    distance = np.linalg.norm(observed - background - part[:, None] * lines, axis=-1)
    distance[part < _MIN_THIN_CONTRAST] = np.inf
    nearest = int(distance.argmin())
    # Keep the observed direction, so that a slight color error does not worsen the outline.
    return background + (observed - background) / part[nearest] if distance[nearest] <= _COLOR_TOLERANCE else observed


def _core(region: np.ndarray) -> np.ndarray:
    """Returns the pixels away from the edge: at the edge colors mix with the background, and red with white is pink."""
    return ndimage.binary_erosion(region, np.ones((3, 3)), iterations=2)


def _widen(side: slice, by: int, length: int) -> slice:
    return slice(max(side.start - by, 0), min(side.stop + by, length))


def _edge_width(size: Size) -> int:
    """Returns the pixels over which an edge may be blurred, less than the gap between two objects."""
    return max(1, round(min(size) / 32))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smooths rows and columns of [H, W, ...]."""
    return ndimage.correlate1d(ndimage.correlate1d(values, _SMOOTH, 0, mode="nearest"), _SMOOTH, 1, mode="nearest")


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """Returns the index into _NAMES, [N], of the color nearest to each of [N, 3]."""
    return ((_RGB**2).sum(-1) - 2 * pixels @ _RGB.T).argmin(-1)


def _color_name(rgb: np.ndarray) -> str | None:
    distances = np.linalg.norm(_RGB - rgb, axis=-1)
    return _NAMES[int(distances.argmin())] if distances.min() <= _COLOR_TOLERANCE else None


def _size_name(radius: float) -> str | None:
    if not SIZES["small"][0] * (1 - _SIZE_TOLERANCE) <= radius <= SIZES["large"][1] * (1 + _SIZE_TOLERANCE):
        return None
    return "small" if radius < _SIZE_BORDER else "large"
