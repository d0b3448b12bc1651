"""Pictures back to what they show: the inverse of render, by measured colours and outlines, with no network.

A picture drawn by a model is read by the same rules as a true one. A slight blur, a slight error of colour, light
noise and specks change nothing; a malformed object is found, but has no name.
"""

import dataclasses
import itertools
import math

import numpy as np
from scipy import ndimage

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.render import coverage
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size

CONTRAST = 45.0  # RGB distance from the background at which something is there at all
COLOUR_TOLERANCE = 50.0  # RGB distance to a palette colour beyond which it has no name: half the least between two
SPECK = 0.003  # of the area of a square of the picture's shorter side: less is no object; the smallest has 0.023
FIT = 0.85  # least overlap (intersection over union) with a shape's outline; true renders have 0.95 and more
HOLE = 0.05  # of an object's area, the least hole; a ring's is 0.43 of it
SCALES = (0.93, 1.0, 1.07)  # radii tried, in units of that of the same area, which blemishes falsify
SECOND_COLOUR = 0.15  # of the inside of one connected object: with more of another colour it is two objects
CORE = 0.1  # of an object's pixels, the part clear of its edge at which they tell its colour
THIN = 0.6  # of the contrast of its colour, what a thin object must keep where it mixes with the background
SIZE_TOLERANCE = 0.15  # by which an object may be smaller than the smallest small or larger than the largest large one

Window = tuple[slice, slice]  # rows and columns

_SIZE_BORDER = math.sqrt(SIZES["small"][1] * SIZES["large"][0])
_PALETTE = COLORS | BACKGROUNDS
_NAMES = tuple(_PALETTE)
_RGB = np.array(list(_PALETTE.values()), np.float32)
_SMOOTH = (0.25, 0.5, 0.25)  # against noise; outlines are compared after the same smoothing


@dataclasses.dataclass(frozen=True)
class Detection:
    """An object found in a picture; None is what could not be named.

    (x, y) is the centre and `radius` the radius as in scenes.Thing; `fit` is the overlap with the best shape, in
    [0, 1].
    """

    shape: str | None
    colour: str | None
    size: str | None
    x: float
    y: float
    radius: float
    fit: float

    @property
    def position(self) -> str:
        return scenes.grid_position(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class DetectedScene:
    """The background's name, or None, and all objects, the largest first."""

    background: str | None
    things: tuple[Detection, ...]


def detect(image: np.ndarray) -> DetectedScene:
    """What a picture shows.

    Args:
      image: uint8 RGB [H, W, 3], its shorter side from about 32.

    Raises:
      UsageError: a ValueError; the image has another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ConfigError(f"the reader of shapes wants uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
    pixels = image.astype(np.float32)
    smooth = _smoothed(pixels)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ground = np.median(rim, axis=0)
    name = _colour_name(ground)
    things = [
        _measure(region, pixels[window], smooth[window], ground, window, image.shape[:2])
        for window, region in _regions(smooth, ground)
    ]
    things.sort(key=lambda thing: -thing.radius)
    return DetectedScene(name if name in BACKGROUNDS else None, tuple(things))


def _regions(smooth: np.ndarray, ground: np.ndarray) -> list[tuple[Window, np.ndarray]]:
    """All that stands out from the ground, connected and of one colour each: windows and masks, bool, in them."""
    height, width = smooth.shape[:2]
    reach, least = _reach(smooth.shape[:2]), SPECK * min(height, width) ** 2
    contrast = np.linalg.norm(smooth - ground, axis=-1)
    # An edge lies where the contrast is half of that inside. A fixed contrast would push the edges of strongly
    # contrasting objects outwards until neighbours touch.
    there = contrast > np.maximum(CONTRAST, ndimage.maximum_filter(contrast, size=2 * reach + 1) / 2)
    labels, _ = ndimage.label(there, structure=np.ones((3, 3)))
    core = _core(there)
    names = np.full(there.shape, -1)
    names[core] = _nearest(smooth[core])
    regions: list[tuple[Window, np.ndarray]] = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        window = _widened(rows, reach + 1, height), _widened(columns, reach + 1, width)
        region = labels[window] == label
        if region.sum() >= least:
            regions.extend((window, part) for part in _split_by_colour(region, names[window], least))
    return regions


def _split_by_colour(region: np.ndarray, names: np.ndarray, least: float) -> list[np.ndarray]:
    """Parts of a connected region that differ in colour: objects that touch.

    `names` are the pixels' colours, -1 outside the core; parts of fewer than `least` of them are blemishes.
    """
    names = np.where(region, names, -1)
    counts = np.bincount(names[names >= 0], minlength=len(_NAMES))
    several = np.flatnonzero(counts >= max(SECOND_COLOUR * counts.sum(), least))
    if len(several) < 2 or counts.sum() < CORE * region.sum():
        return [region]
    nearest = ndimage.distance_transform_edt(~np.isin(names, several), return_distances=False, return_indices=True)
    return [region & (names[tuple(nearest)] == colour) for colour in several]


def _measure(
    region: np.ndarray, pixels: np.ndarray, smooth: np.ndarray, ground: np.ndarray, window: Window, size: Size
) -> Detection:
    """Names one region: its colour, and the shape whose outline of the same area and centre overlaps it best."""
    colour = _inner_colour(region, pixels, ground)
    cover = _cover(region, smooth, colour, ground, _reach(size))
    rows, columns = (np.arange(side.start, side.stop, dtype=np.float32) + 0.5 for side in window)
    area = max(float(cover.sum()), 1.0)  # unclipped, so that noise cancels
    x, y = float((cover.sum(0) @ columns) / area), float((cover.sum(1) @ rows) / area)
    cover = _firm(cover)
    best = ("", 0.0, x, y, 0.0)
    for shape, scale in itertools.product(SHAPES, SCALES):
        radius = scale * math.sqrt(area / _AREA[shape])
        middle = y - _SINK[shape] * radius
        outline = _firm(_smoothed(coverage(shape, columns - x, rows - middle, radius)))
        # noise can leave nothing to cover, and an outline of it nothing either
        fit = float(np.minimum(cover, outline).sum() / max(float(np.maximum(cover, outline).sum()), 1.0))
        if fit > best[1]:
            best = (shape, fit, x, middle, radius)
    shape, fit, x, y, radius = best
    height, width = size
    radius /= min(size)
    return Detection(
        shape if fit >= FIT and _has_hole(region) == (shape == "ring") else None,
        _colour_name(colour),
        _size_name(radius),
        x / width,
        y / height,
        radius,
        fit,
    )


def _cover(region: np.ndarray, smooth: np.ndarray, colour: np.ndarray, ground: np.ndarray, reach: int) -> np.ndarray:
    """The part of each pixel that the object covers: how far its colour lies on the way from the ground's.

    0 beyond the region's surroundings and where the colour lies off that way. Noise takes it below 0 and above 1.
    """
    way = colour - ground
    offset = smooth - ground
    cover = offset @ way / max(way @ way, 1)
    astray = np.linalg.norm(offset - cover[..., None] * way, axis=-1) > COLOUR_TOLERANCE
    around = ndimage.binary_dilation(region, np.ones((3, 3)), iterations=reach)
    return np.where(around & ~astray, cover, 0)


def _has_hole(region: np.ndarray) -> bool:
    holes = ndimage.binary_fill_holes(region) & ~region
    return holes.sum() >= HOLE * region.sum()


def _firm(cover: np.ndarray) -> np.ndarray:
    """Coverage with a steeper edge, in [0, 1], which light noise and a slight blur leave as it is."""
    return np.clip(2 * cover - 0.5, 0, 1)


def _areas_and_sinks() -> tuple[dict[str, float], dict[str, float]]:
    """Of each shape of radius 1, its area, and how far its centre of mass lies below its centre; from its picture."""
    radius = 200
    d = np.arange(-radius, radius, dtype=np.float32) + 0.5
    covers = {shape: coverage(shape, d, d, radius) for shape in SHAPES}
    areas = {shape: float(cover.sum()) / radius**2 for shape, cover in covers.items()}
    sinks = {shape: float(cover.sum(1) @ d / cover.sum()) / radius for shape, cover in covers.items()}
    return areas, sinks


_AREA, _SINK = _areas_and_sinks()


def _inner_colour(region: np.ndarray, pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """RGB [3] of a region's inside: the median of its core.

    A thin region, such as a small ring, has no core: where it is blurred all its pixels mix with the ground. Its
    colour is then the palette's on the way to which they lie, if they have come most of it.
    """
    core = _core(region)
    if core.sum() >= CORE * region.sum():
        return np.median(pixels[core], axis=0)
    inside = pixels[region]
    contrast = np.linalg.norm(inside - ground, axis=-1)
    seen = np.median(inside[contrast >= np.quantile(contrast, 0.6)], axis=0)
    ways = np.array(list(COLORS.values()), np.float32) - ground
    part = np.clip(ways @ (seen - ground) / np.maximum((ways**2).sum(-1), 1), 0, 1)
    astray = np.linalg.norm(seen - ground - part[:, None] * ways, axis=-1)
    astray[part < THIN] = np.inf
    nearest = int(astray.argmin())
    # Kept is the direction seen, so that a slight error of colour does not count as a poor outline.
    return ground + (seen - ground) / part[nearest] if astray[nearest] <= COLOUR_TOLERANCE else seen


def _core(region: np.ndarray) -> np.ndarray:
    """The pixels that tell a region's colour: those at its edge mix with the ground, and red with white is pink."""
    return ndimage.binary_erosion(region, np.ones((3, 3)), iterations=2)


def _widened(side: slice, by: int, length: int) -> slice:
    return slice(max(side.start - by, 0), min(side.stop + by, length))


def _reach(size: Size) -> int:
    """Pixels over which an edge may be smeared, less than the gap between two things."""
    return max(1, round(min(size) / 32))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Over rows and columns of [H, W, ...]."""
    return ndimage.correlate1d(ndimage.correlate1d(values, _SMOOTH, 0, mode="nearest"), _SMOOTH, 1, mode="nearest")


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """Index into _NAMES, [N], of the colour nearest to each of [N, 3]."""
    return ((_RGB**2).sum(-1) - 2 * pixels @ _RGB.T).argmin(-1)


def _colour_name(rgb: np.ndarray) -> str | None:
    distances = np.linalg.norm(_RGB - rgb, axis=-1)
    return _NAMES[int(distances.argmin())] if distances.min() <= COLOUR_TOLERANCE else None


def _size_name(radius: float) -> str | None:
    if not SIZES["small"][0] * (1 - SIZE_TOLERANCE) <= radius <= SIZES["large"][1] * (1 + SIZE_TOLERANCE):
        return None
    return "small" if radius < _SIZE_BORDER else "large"
