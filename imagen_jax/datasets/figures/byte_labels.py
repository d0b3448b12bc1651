"""The labels that a text encoder of figures is trained on: at each byte its garment, and all that is worn.

The first garment is the top or the dress; a dress has no second one.
"""

from imagen_jax.datasets.byte_labels import ByteLabels, Span
from imagen_jax.datasets.figures.captions import MAX_BYTES, garment_words, parse_caption, sample_caption
from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, GARMENTS, NOUNS, PATTERNS, Garment
from imagen_jax.datasets.figures.source import FiguresSource


def _spans(caption: str) -> list[Span]:
    spans = []
    for garment in parse_caption(caption).garments:
        words = garment_words(garment)
        start = caption.index(words)
        spans.append(Span(start, start + len(words), _values(garment)))
    return spans


def _scene_values(caption: str) -> tuple[str, ...]:
    description = parse_caption(caption)
    first, *others = description.garments
    second = _values(others[0]) if others else ("", "", "")
    return (*_values(first), *second, description.background)


def _values(garment: Garment) -> tuple[str, str, str]:
    return garment.noun, garment.color, garment.pattern


FIGURES_LABELS = ByteLabels(
    objects={"garment": NOUNS, "color": tuple(COLORS), "pattern": PATTERNS},
    scene={
        "first garment": GARMENTS["top"] + GARMENTS["body"],
        "first color": tuple(COLORS),
        "first pattern": PATTERNS,
        "second garment": ("", *GARMENTS["bottom"]),
        "second color": ("", *COLORS),
        "second pattern": ("", *PATTERNS),
        "background": ("", *BACKGROUNDS),
    },
    spans=_spans,
    scene_values=_scene_values,
    open=lambda seed, split, count: FiguresSource(seed, split, resolution=16, num_examples=count),
    sample_caption=sample_caption,
    is_probed=lambda description: len(description.garments) == 2,
    max_bytes=MAX_BYTES,
)
