"""Descriptions: the claims of a caption about an image, independent of their wording."""

import dataclasses

import numpy as np

from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.scenes import INVERSE_RELATION, Scene, SceneObject


@dataclasses.dataclass(frozen=True, order=True)
class Claim:
    """Claims that there are `count` objects with the given attributes; '' for an attribute that is not mentioned."""

    count: int = 1
    size: str = ""
    color: str = ""
    shape: str = ""
    position: str = ""


@dataclasses.dataclass(frozen=True)
class Description:
    """All claims of a caption: one claim, or two about one object each, and that there are no other objects.

    Descriptions are canonical, so that captions with the same meaning are equal: a relation is always 'left of' or
    'above' (of the first claim to the second), and two claims without a relation are sorted. '' stands for a relation
    or background that is not mentioned.
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
    """Returns 'single object', 'two objects' or 'count'."""
    if len(description.claims) == 2:
        return "two objects"
    return "count" if description.claims[0].count > 1 else "single object"


def sample_description(scene: Scene, rng: np.random.Generator) -> Description:
    """Samples a true description of the scene, which omits some of its attributes.

    Only the default background and the default position are omitted.

    For a scene with a held-out combination, colors, shapes and the relation are always mentioned, so that the
    combination can be judged.
    """
    # A model has to guess what captions omit. If any background could be omitted, it would dominate the loss; if any
    # position could be, samples would blend several positions.
    has_background = rng.random() < 0.4 or scene.background != scenes.DEFAULT_BACKGROUND
    background = scene.background if has_background else ""
    complete = scenes.is_held_out(scene)
    if scenes.scene_type(scene) == "pair":
        return _describe_pair(scene.objects[0], scene.objects[1], background, complete, rng)
    item = scene.objects[0]
    omitted = "" if complete else _sample_omitted(0.12, rng)
    position = scenes.grid_position(item.x, item.y) if len(scene.objects) == 1 else ""
    if position == scenes.DEFAULT_POSITION and rng.random() < 0.6:
        position = ""
    return Description((_claim(item, len(scene.objects), 0.75, omitted, position, rng),), background=background)


def _describe_pair(
    first: SceneObject, second: SceneObject, background: str, complete: bool, rng: np.random.Generator
) -> Description:
    # At most one attribute of one of the two is omitted: then the words still tell which object is which.
    omitted = ["" if complete else _sample_omitted(0.08, rng), ""]
    if rng.random() < 0.5:
        omitted.reverse()
    claims = (_claim(first, 1, 0.4, omitted[0], "", rng), _claim(second, 1, 0.4, omitted[1], "", rng))
    related = complete or rng.random() < 0.9
    relation = scenes.spatial_relation((first.x, first.y), (second.x, second.y)) if related else ""
    return Description(claims, relation, background)


def _sample_omitted(probability: float, rng: np.random.Generator) -> str:
    """Samples which of color and shape is omitted, if any; never both."""
    u = rng.random()
    return "" if u >= probability else "color" if u < probability / 2 else "shape"


def _claim(
    item: SceneObject, count: int, size_probability: float, omitted: str, position: str, rng: np.random.Generator
) -> Claim:
    return Claim(
        count,
        item.size if rng.random() < size_probability else "",
        "" if omitted == "color" else item.color,
        "" if omitted == "shape" else item.shape,
        position,
    )
