"""The vocabulary of shapes images, the scene they show, and the combinations that are held out of training.

Positions are in units of the image's width and height: x runs from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom).
Radii are in units of its shorter side, so that shapes keep their form in images of any aspect ratio.
"""

import dataclasses

SHAPES = ("circle", "square", "triangle", "cross", "ring")
# in no image of the data set: what a trained cascade can be taught from a few images
NEW_SHAPES = ("star", "heart")

# RGB. Any two of these twelve colors, backgrounds included, are more than 100 apart, so that objects can be detected in
# an image that is a little blurred, noisy or off in color.
COLORS = {
    "red": (220, 38, 38),
    "orange": (255, 130, 0),
    "yellow": (255, 225, 40),
    "green": (34, 160, 60),
    "cyan": (40, 205, 230),
    "blue": (35, 85, 225),
    "purple": (140, 40, 190),
    "pink": (255, 100, 190),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (12, 12, 12), "gray": (128, 128, 128), "tan": (215, 190, 150)}
DEFAULT_BACKGROUND = "white"  # of an image whose caption does not mention it

# Smallest and largest radius: large enough to tell the shapes apart at 32×32, the size of the demo's base stage.
SIZES = {"small": (0.147, 0.157), "large": (0.205, 0.215)}
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
DEFAULT_POSITION = "centre"  # of a single object whose caption does not mention it
RELATIONS = ("left of", "right of", "above", "below")
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = (2, 3, 4)

# Pairs (color, shape) that no object in 'train' and 'validation' has, be it alone, in a pair or counted. Each shape and
# each color occurs in training; these five combinations do not.
HELD_OUT_APPEARANCES = (
    ("yellow", "circle"),
    ("purple", "square"),
    ("blue", "triangle"),
    ("red", "cross"),
    ("green", "ring"),
)

# Triples (shape, relation, shape) that no two objects in 'train' and 'validation' have, whatever their colors: 10 of
# the 100 triples, each with its inverse, which describes the same image.
_ONE_WAY = (
    ("circle", "left of", "triangle"),
    ("square", "left of", "ring"),
    ("cross", "above", "circle"),
    ("triangle", "above", "square"),
    ("ring", "above", "cross"),
)
HELD_OUT_RELATIONS = _ONE_WAY + tuple(
    (second, INVERSE_RELATION[spatial_relation], first) for first, spatial_relation, second in _ONE_WAY
)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object: its names, the center (x, y) of its bounding box, and its radius.

    The bounding box of every shape is within the square of half-side `radius` around the center.
    """

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The objects in an image, which never touch each other or the image's edge, and the background's name."""

    objects: tuple[SceneObject, ...]
    background: str


def _appearance(item: SceneObject) -> tuple[str, str]:
    return item.color, item.shape


def scene_type(scene: Scene) -> str:
    """Returns 'single' (one object), 'pair' (two that differ in shape or color) or 'count' (two to four alike)."""
    if len(scene.objects) == 1:
        return "single"
    return "count" if len(set(map(_appearance, scene.objects))) == 1 else "pair"


def grid_position(x: float, y: float) -> str:
    """Returns which of the nine POSITIONS, a 3×3 grid over the image, contains the point (x, y)."""
    return POSITIONS[3 * min(max(int(3 * y), 0), 2) + min(max(int(3 * x), 0), 2)]


def spatial_relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """Returns the relation of the point `first` to `second`, along the axis on which they are farther apart."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def is_held_out(scene: Scene) -> bool:
    """Returns whether the scene shows a combination that never occurs in 'train' or 'validation'."""
    if any(_appearance(item) in HELD_OUT_APPEARANCES for item in scene.objects):
        return True
    if scene_type(scene) != "pair":
        return False
    first, second = scene.objects
    return (first.shape, spatial_relation((first.x, first.y), (second.x, second.y)), second.shape) in HELD_OUT_RELATIONS
