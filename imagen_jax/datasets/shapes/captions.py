"""The grammar of captions: from descriptions to words and back.

    caption    = [on a BACKGROUND background,] statement | statement [on a BACKGROUND background]
    statement  = objects | object PLACE | POSITION: object | object [is] RELATED object | object and object
    objects    = (a | an | one | two | three | four) [small | large] [COLOR] (SHAPE | object | shape, plural in s)

Every caption is lower-case ASCII of at most 96 bytes, because each byte is a token of the text encoder.
"""

import re

import numpy as np

from imagen_jax.datasets.grammar import alternatives, split_background
from imagen_jax.datasets.shapes.descriptions import Claim, Description
from imagen_jax.datasets.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    INVERSE_RELATION,
    NEW_SHAPES,
    POSITIONS,
    SHAPES,
    SIZES,
)
from imagen_jax.errors import ConfigError

MAX_BYTES = 96

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_COUNTS = {"a": 1, "an": 1, "one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}
_PLACES = {position: f"{_PREPOSITIONS.get(position, 'in')} the {position}" for position in POSITIONS}
_RELATED = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}
_PLURALS = {noun: noun + ("es" if noun == "cross" else "s") for noun in (*SHAPES, *NEW_SHAPES, "object", "shape")}
_SINGULARS = {plural: noun for noun, plural in _PLURALS.items()}


def sample_caption(description: Description, rng: np.random.Generator) -> str:
    """Samples one of the wordings of a description; `parse_caption` returns the description."""
    if len(description.claims) == 2:
        statement = _sample_pair(description, rng)
    else:
        statement = _sample_objects(description.claims[0], rng)
        position = description.claims[0].position
        if position:
            # The position comes first only without a background: 'top left: a red circle'.
            first = not description.background and rng.random() < 0.3
            statement = f"{position}: {statement}" if first else f"{statement} {_PLACES[position]}"
    if not description.background:
        return statement
    background = f"on a {description.background} background"
    return f"{background}, {statement}" if rng.random() < 0.3 else f"{statement} {background}"


def _sample_pair(description: Description, rng: np.random.Generator) -> str:
    first, second = (_sample_objects(claim, rng) for claim in description.claims)
    relation = description.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, INVERSE_RELATION.get(relation, "")
    if not relation:
        return f"{first} and {second}"
    phrases = _RELATED[relation]
    phrase = phrases[int(rng.random() * len(phrases))]
    return f"{first} is {phrase} {second}" if rng.random() < 0.25 else f"{first} {phrase} {second}"


def _sample_objects(claim: Claim, rng: np.random.Generator) -> str:
    noun = claim.shape or ("object" if rng.random() < 0.5 else "shape")
    if claim.count > 1:
        noun = _PLURALS[noun]
    words = [word for word in (claim.size, claim.color, noun) if word]
    if claim.count > 1:
        number = _NUMBERS[claim.count]
    elif rng.random() < 0.1:
        number = "one"
    else:
        number = article(words[0])
    return " ".join((number, *words))


def article(word: str) -> str:
    """Returns the indefinite article before a word: 'a' or 'an'."""
    return "an" if word[0] in "aeiou" else "a"


_PLACE_FIRST = re.compile(rf"(?:(?:in|on|at) the )?({alternatives(POSITIONS)})[:,] (.+)")
_PLACE_LAST = re.compile(rf"(.+?),? (?:in|on|at) the ({alternatives(POSITIONS)})")
_PAIR = re.compile(r"(.+?) (?:is )?(?:(?:to the )?(left of|right of)|(above|below)|and) (.+)")
_OBJECTS = re.compile(
    rf"(?:({alternatives(_COUNTS)}) )?(?:({alternatives(SIZES)}) )?(?:({alternatives(COLORS)}) )?"
    rf"({alternatives([*_PLURALS, *_SINGULARS])})"
)
_WORDS = frozenset(
    f"{' '.join((*_COUNTS, *SIZES, *COLORS, *BACKGROUNDS, *POSITIONS, *_PLURALS, *_SINGULARS))}"
    " on in at the background is to of and above below".split()
)


def parse_caption(text: str) -> Description:
    """Parses a caption, the inverse of every wording, ignoring case and white space.

    People type captions too, so 'grey', 'center', digits, a missing article and a full stop are accepted.

    Raises:
        ConfigError: the text is outside the grammar.
    """
    rest = " ".join(text.lower().split()).rstrip(" .").replace("grey", "gray").replace("center", "centre")
    rest, background = split_background(rest, tuple(BACKGROUNDS))
    position = ""
    if match := _PLACE_FIRST.fullmatch(rest):
        position, rest = match.groups()
    elif match := _PLACE_LAST.fullmatch(rest):
        rest, position = match.groups()
    if claim := _parse_objects(rest, position):
        return Description((claim,), background=background)
    if not position and (match := _PAIR.fullmatch(rest)):
        first, second = _parse_objects(match[1]), _parse_objects(match[4])
        if first and second and first.count == second.count == 1:
            return Description((first, second), match[2] or match[3] or "", background)
    raise ConfigError(_grammar_error(text))


def _parse_objects(text: str, position: str = "") -> Claim | None:
    match = _OBJECTS.fullmatch(text)
    if match is None:
        return None
    number, size, color, noun = match.groups()
    count = _COUNTS[number or "a"]
    singular = _SINGULARS.get(noun, noun)
    if (noun in _SINGULARS) != (count > 1) or (position and count > 1):
        return None
    return Claim(count, size or "", color or "", "" if singular in ("object", "shape") else singular, position)


def _grammar_error(text: str) -> str:
    unknown = [word for word in re.findall(r"[^\s,:.]+", text.lower()) if word not in _WORDS | {"grey", "center"}]
    reason = f"it has no word {unknown[0]!r}" if unknown else "it has no such sentence"
    return (
        f"the caption {text!r} is outside the shapes grammar: {reason}; try 'a small red circle left of a blue square'"
    )
