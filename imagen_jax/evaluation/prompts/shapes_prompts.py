"""Prompts of the shapes data set with the questions of GenEval's six tasks, which its reader answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from imagen_jax.datasets.shapes.captions import sample_caption
from imagen_jax.datasets.shapes.descriptions import Claim, Description
from imagen_jax.datasets.shapes.scenes import (
    COLORS,
    COUNTS,
    HELD_OUT_APPEARANCES,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    SIZES,
)
from imagen_jax.evaluation.prompts.formats import Row

NEW, SEEN = "new combination", "seen combination"  # whether training ever shows it
_SEED = 0  # of wordings, and of pairs of colors
_COLOR_PAIRS = 80  # prompts of color_attr, of 560


def make_rows() -> list[Row]:
    """Returns the prompts, 200 of them: always the same."""
    rng = np.random.default_rng(_SEED)
    rows = []
    for tag, claims, relation in _scenes(rng):
        caption = sample_caption(Description(claims, relation), rng)
        challenge = NEW if _is_new(claims, relation) else SEEN
        question = {"tag": tag, **_question(claims, relation), "prompt": caption, "challenge": challenge}
        rows.append(Row(caption, tag, challenge, question))
    return rows


def _scenes(rng: np.random.Generator) -> Iterator[tuple[str, tuple[Claim, ...], str]]:
    """Yields (task, claims, relation)."""
    pairs = list(itertools.combinations(SHAPES, 2))
    for shape, size in itertools.product(SHAPES, ("", *SIZES)):
        yield "single_object", (Claim(shape=shape, size=size),), ""
    for first, second in pairs:
        yield "two_object", (Claim(shape=first), Claim(shape=second)), ""
    for shape, count in itertools.product(SHAPES, COUNTS):
        yield "counting", (Claim(count, shape=shape),), ""
    for shape, color in itertools.product(SHAPES, COLORS):
        yield "colors", (Claim(shape=shape, color=color),), ""
    for (first, second), relation in itertools.product(pairs, RELATIONS):
        yield "position", (Claim(shape=first), Claim(shape=second)), relation
    color_pairs = [
        (Claim(shape=first, color=one), Claim(shape=second, color=other))
        for (first, second), (one, other) in itertools.product(pairs, itertools.permutations(COLORS, 2))
    ]
    for index in sorted(rng.choice(len(color_pairs), _COLOR_PAIRS, replace=False).tolist()):
        yield "color_attr", color_pairs[index], ""


def _question(claims: Sequence[Claim], relation: str) -> dict[str, Any]:
    """Returns `include` and, for counts, `exclude`."""
    include: list[dict[str, Any]] = []
    # the first claim is related to the second, which GenEval has to find before
    for claim in reversed(claims) if relation else claims:
        item: dict[str, Any] = {"class": claim.shape, "count": claim.count}
        if claim.color:
            item["color"] = claim.color
        if relation and include:
            item["position"] = [relation, 0]
        include.append(item)
    counted = [{"class": claim.shape, "count": claim.count + 1} for claim in claims if claim.count > 1]
    return {"include": include, "exclude": counted} if counted else {"include": include}


def _is_new(claims: Sequence[Claim], relation: str) -> bool:
    """Returns whether no image of training shows it."""
    if any((claim.color, claim.shape) in HELD_OUT_APPEARANCES for claim in claims):
        return True
    return bool(relation) and (claims[0].shape, relation, claims[1].shape) in HELD_OUT_RELATIONS
