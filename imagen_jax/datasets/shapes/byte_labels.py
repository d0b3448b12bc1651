"""The labels that the text encoder of shapes is trained on. An object's role is its relation to the other object."""

import re

from imagen_jax.datasets.byte_labels import ByteLabels, Span
from imagen_jax.datasets.shapes.captions import MAX_BYTES, parse_caption, sample_caption
from imagen_jax.datasets.shapes.descriptions import Description
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, INVERSE_RELATION, POSITIONS, SHAPES, SIZES
from imagen_jax.datasets.shapes.source import ShapesSource

_OBJECT_PATTERN = re.compile(
    rf"(?:an?|one|two|three|four) (?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?"
    rf"(?:({'|'.join(SHAPES)})|object|shape)(?:es|s)?\b"
)


def _spans(caption: str) -> list[Span]:
    objects = list(_OBJECT_PATTERN.finditer(caption))
    relation = next((relation for relation in INVERSE_RELATION if f" {relation} " in caption), "")
    roles = (relation, INVERSE_RELATION.get(relation, ""))
    return [
        Span(match.start(), match.end(), (match[1] or "", match[2] or "", match[3] or "", role))
        for match, role in zip(objects, roles, strict=False)
    ]


def _scene_values(caption: str) -> tuple[str, str, int]:
    description = parse_caption(caption)
    claim = description.claims[0]
    return claim.position, description.background, claim.count


def _is_probed(description: Description) -> bool:
    return bool(description.relation) and all(claim.shape for claim in description.claims)


# The names of attributes are those in probe.json.
SHAPES_LABELS = ByteLabels(
    objects={
        "size": ("", *SIZES),
        "colour": ("", *COLORS),
        "shape": ("", *SHAPES),
        "role": ("", *INVERSE_RELATION),
    },
    scene={"position": ("", *POSITIONS), "background": ("", *BACKGROUNDS), "count": (1, 2, 3, 4)},
    spans=_spans,
    scene_values=_scene_values,
    open=lambda seed, split, count: ShapesSource(seed, split, resolution=16, num_examples=count),
    sample_caption=sample_caption,
    is_probed=_is_probed,
    max_bytes=MAX_BYTES,
)
