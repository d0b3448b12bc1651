"""What a shapes picture can show: the vocabulary, the scene itself, and the combinations kept from training.

Places are in units of the picture's width and height: x runs from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom).
Radii are in units of its shorter side, so that shapes have their form, and room, in pictures of any aspect.
"""

import dataclasses

SHAPES = ("circle", "square", "triangle", "cross", "ring")

# RGB. Any two of these twelve colours, backgrounds included, are more than 100 apart, so that a picture can be read
# back although it is a little blurred, noisy or off in colour.
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
DEFAULT_BACKGROUND = "white"  # what a picture has where its caption does not say

# From the least to the greatest radius: large enough for the shapes to differ where the demo's base draws, at 32×32.
SIZES = {"small": (0.147, 0.157), "large": (0.205, 0.215)}
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
DEFAULT_POSITION = "centre"  # where a single thing is if its caption does not say
RELATIONS = ("left of", "right of", "above", "below")
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
COUNTS = (2, 3, 4)
SPLITS = ("train", "validation", "held_out")

# Looks, (colour, shape), of which 'train' and 'validation' never show a thing, be it alone, in a pair or counted.
# Each shape and each colour is seen in training; these five meetings of them are not.
HELD_OUT_APPEARANCES = (
    ("yellow", "circle"),
    ("purple", "square"),
    ("blue", "triangle"),
    ("red", "cross"),
    ("green", "ring"),
)

# Relations, (shape, relation, shape), in which 'train' and 'validation' never show two things, whatever their colours:
# 10 of the 100, each with its mirrored statement, which says the same of a picture.
_ONE_WAY = (
    ("circle", "left of", "triangle"),
    ("square", "left of", "ring"),
    ("cross", "above", "circle"),
    ("triangle", "above", "square"),
    ("ring", "above", "cross"),
)
HELD_OUT_RELATIONS = _ONE_WAY + tuple((second, INVERSE_RELATION[spatial_relation], first) for first, spatial_relation, second in _ONE_WAY)


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object: its names, the centre (x, y) of its bounding box, and its radius.

    The bounding box of every shape lies within the square of half-side `radius` around the centre.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """The things in a picture, which never touch each other or the picture's edge, and the background's name."""

    things: tuple[SceneObject, ...]
    background: str


def look(thing: SceneObject) -> tuple[str, str]:
    """(colour, shape) of a thing."""
    return thing.colour, thing.shape


def scene_type(scene: Scene) -> str:
    """'single' (one thing), 'pair' (two that differ in shape or colour) or 'count' (two to four alike)."""
    if len(scene.things) == 1:
        return "single"
    return "count" if len(set(map(look, scene.things))) == 1 else "pair"


def grid_position(x: float, y: float) -> str:
    """The one of the nine POSITIONS, thirds of the picture each way, that holds the point (x, y)."""
    return POSITIONS[3 * min(max(int(3 * y), 0), 2) + min(max(int(3 * x), 0), 2)]


def spatial_relation(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The one of the RELATIONS in which the point `first` stands to `second`: along the axis that parts them more."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def is_held_out(scene: Scene) -> bool:
    """Whether the scene shows a combination that never occurs in 'train' or 'validation'."""
    if any(look(thing) in HELD_OUT_APPEARANCES for thing in scene.things):
        return True
    if scene_type(scene) != "pair":
        return False
    first, second = scene.things
    return (first.shape, spatial_relation((first.x, first.y), (second.x, second.y)), second.shape) in HELD_OUT_RELATIONS
