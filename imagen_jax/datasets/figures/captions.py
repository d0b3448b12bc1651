"""The grammar of captions: from descriptions to words and back.

    caption  = [on a BACKGROUND background,] person | person [on a BACKGROUND background]
    person   = a person (in | wearing) garment [and garment]
    garment  = [a | an] COLOR [striped | dotted] NOUN, without an article for trousers and shorts

A garment is plain if no pattern is named. Every caption is lower-case ASCII of at most 96 bytes, because each byte is a
token of the text encoder.
"""

import dataclasses
import re

import numpy as np

from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, GARMENTS, NOUNS, PATTERNS, Figure, Garment
from imagen_jax.datasets.grammar import alternatives, split_background
from imagen_jax.errors import ConfigError

MAX_BYTES = 96

_PLURALS = ("trousers", "shorts")
_PLACES = tuple(GARMENTS)
_OUTFITS = (("body",), ("top", "bottom"))


@dataclasses.dataclass(frozen=True)
class Description:
    """What a caption says: the garments from the top down, and the background's name, or ''."""

    garments: tuple[Garment, ...]
    background: str = ""


def sample_description(figure: Figure, rng: np.random.Generator) -> Description:
    """Samples a description of a figure: all of its garments, and its background in half of the cases."""
    return Description(figure.garments, figure.background if rng.random() < 0.5 else "")


def sample_caption(description: Description, rng: np.random.Generator) -> str:
    """Samples one of the wordings of a description; `parse_caption` returns the description."""
    names = [garment_words(garment) for garment in description.garments]
    if rng.random() < 0.25:
        names.reverse()
    person = f"a person {'wearing' if rng.random() < 0.3 else 'in'} {' and '.join(names)}"
    if not description.background:
        return person
    background = f"on a {description.background} background"
    return f"{background}, {person}" if rng.random() < 0.3 else f"{person} {background}"


def garment_words(garment: Garment) -> str:
    """Returns the words for a garment: 'a red striped shirt', 'blue trousers'."""
    words = [garment.color, *([garment.pattern] if garment.pattern != "plain" else []), garment.noun]
    if garment.noun not in _PLURALS:
        words.insert(0, "an" if garment.color[0] in "aeiou" else "a")
    return " ".join(words)


_PERSON = re.compile(r"(?:a )?person (?:in|wearing) (.+?)(?: and (.+))?")
_GARMENT = re.compile(rf"(?:an? )?({alternatives(COLORS)}) (?:({alternatives(PATTERNS)}) )?({alternatives(NOUNS)})")


def parse_caption(text: str) -> Description:
    """Parses a caption, the inverse of every wording, ignoring case and white space.

    Raises:
        ConfigError: the text is outside the grammar.
    """
    rest = " ".join(text.lower().split()).rstrip(" .").replace("grey", "gray")
    rest, background = split_background(rest, tuple(BACKGROUNDS))
    if match := _PERSON.fullmatch(rest):
        garments = [_parse_garment(part) for part in match.groups() if part is not None]
        worn = sorted((garment for garment in garments if garment), key=lambda garment: _PLACES.index(garment.place))
        if len(worn) == len(garments) and tuple(garment.place for garment in worn) in _OUTFITS:
            return Description(tuple(worn), background)
    raise ConfigError(
        f"the caption {text!r} is outside the figures grammar: it needs a top and a bottom, or a dress, each with its "
        "color; try 'a person in a red striped shirt and blue trousers'"
    )


def _parse_garment(text: str) -> Garment | None:
    match = _GARMENT.fullmatch(text)
    return Garment(match[3], match[1], match[2] or "plain") if match else None
