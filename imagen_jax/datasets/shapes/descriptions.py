"""What a caption claims of a picture, apart from how it is worded."""

import dataclasses

import numpy as np

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.scenes import INVERSE_RELATION, Scene, SceneObject


@dataclasses.dataclass(frozen=True, order=True)
class Claim:
    """`count` things of which the attributes that are not empty are said; '' means unsaid."""

    count: int = 1
    size: str = ""
    colour: str = ""
    shape: str = ""
    position: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """All that a caption claims: one claim, or two of one thing each, and no other thing in the picture.

    Kept in one canonical form, so that statements that say the same are equal: of a relation and its mirrored
    statement 'left of' and 'above' are kept (the first claim stands in it to the second), and two claims without a
    relation are sorted. '' means unsaid.
    """

    claims: tuple[Claim, ...]
    relation: str = ""
    background: str = ""

    def __post_init__(self) -> None:
        if self.relation in ("right of", "below"):
            object.__setattr__(self, "relation", INVERSE_RELATION[self.relation])
            object.__setattr__(self, "claims", self.claims[::-1])
        elif not self.relation and len(self.claims) > 1:
            object.__setattr__(self, "claims", tuple(sorted(self.claims)))


def category(description: Description) -> str:
    """'single object', 'two objects' or 'count'."""
    if len(description.claims) == 2:
        return "two objects"
    return "count" if description.claims[0].count > 1 else "single object"


def sample_description(scene: Scene, rng: np.random.Generator) -> Description:
    """A true description of the scene that leaves some of its attributes unsaid.

    Of backgrounds and positions only the usual one goes unsaid.

    Of a scene that holds a combination out of training, colours, shapes and the relation are always said, so that the
    combination can be judged.
    """
    # What goes unsaid must be guessed by whoever learns to draw. Were it any background, as large as it is, little else
    # would be learned from a picture; were it any position, things would be drawn half here and half there.
    said = rng.random() < 0.4 or scene.background != scenes.DEFAULT_BACKGROUND
    background = scene.background if said else ""
    everything = scenes.is_held_out(scene)
    if scenes.scene_type(scene) == "pair":
        return _describe_pair(scene.things[0], scene.things[1], background, everything, rng)
    thing = scene.things[0]
    unsaid = "" if everything else _unsaid(0.12, rng)
    position = scenes.grid_position(thing.x, thing.y) if len(scene.things) == 1 else ""
    if position == scenes.DEFAULT_POSITION and rng.random() < 0.6:
        position = ""
    return Description((_claim(thing, len(scene.things), 0.75, unsaid, position, rng),), background=background)


def _describe_pair(
    first: SceneObject, second: SceneObject, background: str, everything: bool, rng: np.random.Generator
) -> Description:
    # At most one attribute of one of the two goes unsaid: then the words still tell which thing is which.
    unsaid = ["" if everything else _unsaid(0.08, rng), ""]
    if rng.random() < 0.5:
        unsaid.reverse()
    claims = (_claim(first, 1, 0.4, unsaid[0], "", rng), _claim(second, 1, 0.4, unsaid[1], "", rng))
    related = everything or rng.random() < 0.9
    relation = scenes.spatial_relation((first.x, first.y), (second.x, second.y)) if related else ""
    return Description(claims, relation, background)


def _unsaid(probability: float, rng: np.random.Generator) -> str:
    """Which of colour and shape goes unsaid, if any; never both."""
    draw = rng.random()
    return "" if draw >= probability else "colour" if draw < probability / 2 else "shape"


def _claim(thing: SceneObject, count: int, sized: float, unsaid: str, position: str, rng: np.random.Generator) -> Claim:
    return Claim(
        count,
        thing.size if rng.random() < sized else "",
        "" if unsaid == "colour" else thing.colour,
        "" if unsaid == "shape" else thing.shape,
        position,
    )
