import collections
import itertools
import re

import numpy as np
import pytest

from imagen_jax.datasets.generated import SPLITS
from imagen_jax.datasets.shapes.captions import MAX_BYTES, parse_caption, sample_caption
from imagen_jax.datasets.shapes.descriptions import Claim, Description, category, sample_description
from imagen_jax.datasets.shapes.scene_sampling import sample_scene
from imagen_jax.datasets.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    DEFAULT_BACKGROUND,
    DEFAULT_POSITION,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    grid_position,
)
from imagen_jax.errors import ConfigError


@pytest.fixture(scope="module")
def worded():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(split, rng) for split in SPLITS for _ in range(3000)]
    descriptions = [sample_description(scene, rng) for scene in scenes]
    return [(scene, d, sample_caption(d, rng)) for scene, d in zip(scenes, descriptions, strict=True)]


def test_parse_inverts_sample(worded):
    for _, description, caption in worded:
        assert parse_caption(caption) == description, caption


def test_parse_inverts_sample_for_full_grammar():
    rng = np.random.default_rng(0)
    looks = list(itertools.product(("", *SIZES), ("", *COLORS), ("", *SHAPES)))
    grounds, phrases = ("", *BACKGROUNDS), ("", *POSITIONS)
    for look in looks:
        for count in (1, 2, 3, 4):
            grid_position = phrases[rng.integers(len(phrases))] if count == 1 else ""
            description = Description(
                (Claim(count, *look, grid_position),), background=grounds[rng.integers(len(grounds))]
            )
            assert parse_caption(sample_caption(description, rng)) == description
        for relation in ("", *RELATIONS):
            other = looks[rng.integers(len(looks))]
            ground = grounds[rng.integers(len(grounds))]
            description = Description((Claim(1, *look), Claim(1, *other)), relation, ground)
            assert parse_caption(sample_caption(description, rng)) == description


def test_captions_are_short_lower_case_ascii(worded):
    lengths = [len(caption.encode("ascii")) for _, _, caption in worded]
    assert all(caption == caption.lower() for _, _, caption in worded)
    assert max(lengths) <= MAX_BYTES
    assert 30 <= np.mean(lengths) <= 55


def test_longest_caption_fits():
    rng = np.random.default_rng(0)
    longest = max(SIZES, key=len), max(COLORS, key=len), max(SHAPES, key=len)
    ground = max(BACKGROUNDS, key=len)
    pair = [Description((Claim(1, *longest), Claim(1, *longest)), relation, ground) for relation in RELATIONS]
    single = [Description((Claim(1, *longest, max(POSITIONS, key=len)),), background=ground)]
    lengths = [len(sample_caption(description, rng)) for description in pair + single for _ in range(300)]
    assert 85 <= max(lengths) <= MAX_BYTES


def test_descriptions_match_scenes(worded):
    for scene, description, caption in worded:
        assert description.background in ("", scene.background), caption
        assert sum(claim.count for claim in description.claims) == len(scene.objects), caption
        for claim in description.claims:
            alike = [t for t in scene.objects if claim.size in ("", t.size) and claim.color in ("", t.color)]
            assert any(claim.shape in ("", thing.shape) for thing in alike), caption
        if description.relation:
            # One object fits each claim, so that the relation is unambiguous.
            first, second = ([t for t in scene.objects if _fits(claim, t)] for claim in description.claims)
            samples = [(a, b) for a in first for b in second if a is not b]
            assert len(samples) == 1, caption
            (a, b), axis = samples[0], "x" if description.relation == "left of" else "y"
            assert getattr(a, axis) < getattr(b, axis), caption


def _fits(claim, thing):
    mentioned = (claim.size, thing.size), (claim.color, thing.color), (claim.shape, thing.shape)
    return all(claimed in ("", true) for claimed, true in mentioned)


def test_held_out_captions_mention_combination(worded):
    for _, description, caption in worded[-3000:]:
        assert all(claim.color and claim.shape for claim in description.claims), caption
        assert description.relation or len(description.claims) == 1, caption


def test_every_word_occurs(worded):
    words = collections.Counter(w for _, _, caption in worded for w in re.findall(r"[a-z]+", caption))
    nouns = (*SHAPES, "object", "shape")
    plurals = {noun + ("es" if noun == "cross" else "s") for noun in nouns}
    positions = {w for grid_position in POSITIONS for w in grid_position.split()}
    expected = {*nouns, *plurals, *COLORS, *SIZES, *BACKGROUNDS, *positions, "a", "an", "one", "two", "three", "four"}
    expected |= {"on", "in", "at", "the", "to", "of", "is", "and", "above", "below", "background"}
    assert set(words) == expected
    assert min(words.values()) >= 10


def test_attributes_are_mentioned_and_omitted(worded):
    assert {category(d) for _, d, _ in worded} == {"single object", "two objects", "count"}
    for kind in ("single object", "two objects", "count"):
        claims = [(d, claim) for _, d, _ in worded if category(d) == kind for claim in d.claims]
        for attribute in ("size", "color", "shape"):
            mentioned = np.mean([bool(getattr(claim, attribute)) for _, claim in claims])
            assert 0.1 < mentioned < 1, (kind, attribute)
        assert 0.75 < np.mean([bool(d.background) for d, _ in claims]) < 0.95


def test_only_default_background_is_omitted(worded):
    assert {scene.background for scene, d, _ in worded if not d.background} == {DEFAULT_BACKGROUND}
    assert {d.background for _, d, _ in worded} == {"", *BACKGROUNDS}


def test_only_default_position_is_omitted(worded):
    singles = [(scene.objects[0], d.claims[0].position) for scene, d, _ in worded if len(scene.objects) == 1]
    unsaid = [grid_position(thing.x, thing.y) for thing, mentioned in singles if not mentioned]
    assert set(unsaid) == {DEFAULT_POSITION}
    assert 0.1 < len(unsaid) / len(singles) < 0.3
    assert {mentioned for _, mentioned in singles} == {"", *POSITIONS}


def test_scene_has_several_wordings():
    description = parse_caption("a red circle to the left of a blue square on a black background")
    rng = np.random.default_rng(0)
    captions = {sample_caption(description, rng) for _ in range(400)}
    assert "on a black background, a red circle is to the left of a blue square" in captions
    assert "a blue square right of a red circle on a black background" in captions


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a blue square to the right of a red circle", "a red circle left of a blue square"),
        ("a pink ring is below a cross", "a cross above a pink ring"),
        ("a green ring and a cyan cross", "a cyan cross and a green ring"),
        ("  A   Small RED\tcircle in the Top Left. ", "top left: a small red circle"),
        ("on a grey background, 3 yellow crosses", "three yellow crosses on a gray background"),
        ("red circle in the center", "one red circle in the centre"),
        ("a red shape", "a red object"),
    ],
)
def test_equivalent_captions_parse_equal(text, same):
    assert parse_caption(text) == parse_caption(same)


def test_parse_examples():
    assert parse_caption("two large orange triangles on a tan background") == Description(
        (Claim(2, "large", "orange", "triangle"),), background="tan"
    )
    assert parse_caption("top: a ring").claims == (Claim(1, shape="ring", position="top"),)
    assert parse_caption("a red ring below a circle") == Description(
        (Claim(shape="circle"), Claim(1, "", "red", "ring")), "above"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red fox",
        "circles",
        "a red circles",
        "two red circle",
        "five red circles",
        "two red circles in the top left",
        "two red circles left of a blue square",
        "a red circle left of a blue square above a ring",
        "a circle red",
        "a red circle on a blue background",
        "a red circle on a black background on a black background",
    ],
)
def test_parse_error_names_text(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))) as caught:
        parse_caption(text)
    assert isinstance(caught.value, ConfigError)


def test_parse_error_names_unknown_word():
    with pytest.raises(ValueError, match="no word 'fox'"):
        parse_caption("a red fox on a sledge")
