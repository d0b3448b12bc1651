"""The vocabulary of figures images, the person they show, and the garments that are held out of training.

The center of a figure is in units of the image's width and height, its height in units of the shorter side.
"""

import dataclasses

from imagen_jax.datasets.shapes.scenes import COLORS as COLORS

# Place of the body -> garments. A person wears a top and a bottom, or a dress.
GARMENTS = {"top": ("vest", "shirt", "sweater"), "bottom": ("trousers", "shorts", "skirt"), "body": ("dress",)}
NOUNS = tuple(noun for nouns in GARMENTS.values() for noun in nouns)
PATTERNS = ("plain", "striped", "dotted")

# RGB. Stripes and dots are white. Any two of these colors and of COLORS are more than 60 apart, but hair and shoes.
PATTERN_COLOR = (255, 255, 255)
BACKGROUNDS = {"gray": (150, 150, 150), "navy": (45, 62, 120), "mint": (180, 225, 200)}
SKINS = {"light": (240, 195, 160), "medium": (190, 130, 85), "dark": (120, 76, 52)}
HAIRS = {"black": (25, 22, 25), "brown": (95, 55, 30), "blond": (215, 170, 90)}
SHOES = (45, 45, 50)

HEIGHT = (0.84, 0.92)
CENTER_X = (0.43, 0.57)
CENTER_Y = (0.48, 0.52)
ARM_ANGLE = (25.0, 55.0)  # of each arm from the vertical, in degrees
LEG_ANGLE = (4.0, 10.0)  # likewise, of both legs

# Triples (noun, color, pattern) that nobody in 'train' and 'validation' wears: of each garment and pattern one color.
# Training shows every pair of a garment, a color and a pattern.
HELD_OUT = frozenset(
    (noun, tuple(COLORS)[(index + 3 * place) % len(COLORS)], pattern)
    for index, noun in enumerate(NOUNS)
    for place, pattern in enumerate(PATTERNS)
)


@dataclasses.dataclass(frozen=True)
class Garment:
    """A garment: one of NOUNS, of COLORS and of PATTERNS."""

    noun: str
    color: str
    pattern: str

    @property
    def place(self) -> str:
        """The place of GARMENTS where it is worn."""
        return next(place for place, nouns in GARMENTS.items() if self.noun in nouns)


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where a figure stands, and how: its center, its height, and the angles in degrees of its arms and legs."""

    x: float
    y: float
    height: float
    left_arm: float
    right_arm: float
    legs: float


@dataclasses.dataclass(frozen=True)
class Figure:
    """A person: garments from the top down, of different colors; names of the background, skin and hair; the pose."""

    garments: tuple[Garment, ...]
    background: str
    skin: str
    hair: str
    long_hair: bool
    pose: Pose


def is_held_out(garment: Garment) -> bool:
    """Returns whether nobody in 'train' and 'validation' wears the garment."""
    return (garment.noun, garment.color, garment.pattern) in HELD_OUT
