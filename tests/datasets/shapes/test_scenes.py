import collections
import itertools

import numpy as np
import pytest

from imagen_jax.datasets.generated import SPLITS
from imagen_jax.datasets.shapes import scenes
from imagen_jax.datasets.shapes.scene_sampling import sample_scene
from imagen_jax.datasets.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_APPEARANCES,
    HELD_OUT_RELATIONS,
    SHAPES,
    SIZES,
)

DRAWS = 4000


@pytest.fixture(scope="module")
def samples():
    return {split: _draw(split) for split in SPLITS}


def _draw(split):
    rng = np.random.default_rng(0)
    return [sample_scene(split, rng) for _ in range(DRAWS)]


def test_colors_are_far_apart():
    rgb = np.array(list((COLORS | BACKGROUNDS).values()), float)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(rgb, 2)) > 100


def test_sizes_have_a_gap():
    assert SIZES["small"][1] * 1.3 < SIZES["large"][0]


def test_held_out_appearances_differ():
    colors, shapes = zip(*HELD_OUT_APPEARANCES, strict=True)
    assert sorted(shapes) == sorted(SHAPES)
    assert len(set(colors)) == len(colors)


def test_held_out_relations_include_inverse():
    for first, relation, second in HELD_OUT_RELATIONS:
        assert (second, scenes.INVERSE_RELATION[relation], first) in HELD_OUT_RELATIONS
    assert len(set(HELD_OUT_RELATIONS)) == 10


@pytest.mark.parametrize("split", ["train", "validation"])
def test_training_has_no_held_out_combination(samples, split):
    for scene in samples[split]:
        assert not {(thing.color, thing.shape) for thing in scene.objects} & set(HELD_OUT_APPEARANCES)
        if scenes.scene_type(scene) == "pair":
            assert not set(_relations(scene)) & set(HELD_OUT_RELATIONS)
        assert not scenes.is_held_out(scene)


def test_held_out_has_held_out_combination(samples):
    for scene in samples["held_out"]:
        looks = {(thing.color, thing.shape) for thing in scene.objects} & set(HELD_OUT_APPEARANCES)
        assert looks or set(_relations(scene)) & set(HELD_OUT_RELATIONS)
        assert scenes.is_held_out(scene)


def _relations(scene):
    """Returns both relations of a pair, from the coordinates of its objects."""
    first, second = scene.objects
    dx, dy = second.x - first.x, second.y - first.y
    if abs(dx) > abs(dy):
        there, back = ("left of", "right of") if dx > 0 else ("right of", "left of")
    else:
        there, back = ("above", "below") if dy > 0 else ("below", "above")
    return (first.shape, there, second.shape), (second.shape, back, first.shape)


def test_training_covers_the_rest(samples):
    looks = {(thing.color, thing.shape) for scene in samples["train"] for thing in scene.objects}
    assert looks == set(itertools.product(COLORS, SHAPES)) - set(HELD_OUT_APPEARANCES)
    pairs = [scene for scene in samples["train"] if scenes.scene_type(scene) == "pair"]
    relations = {statement for scene in pairs for statement in _relations(scene)}
    assert relations == set(itertools.product(SHAPES, scenes.RELATIONS, SHAPES)) - set(HELD_OUT_RELATIONS)


def test_held_out_covers_all(samples):
    pairs = [scene for scene in samples["held_out"] if scenes.scene_type(scene) == "pair"]
    assert {(t.color, t.shape) for scene in samples["held_out"] for t in scene.objects} >= set(HELD_OUT_APPEARANCES)
    assert {statement for scene in pairs for statement in _relations(scene)} >= set(HELD_OUT_RELATIONS)


@pytest.mark.parametrize("split", SPLITS)
def test_scene_type_shares(samples, split):
    shares = collections.Counter(map(scenes.scene_type, samples[split]))
    assert shares["single"] / DRAWS == pytest.approx(0.4, abs=0.03)
    assert shares["pair"] / DRAWS == pytest.approx(0.4, abs=0.03)
    assert shares["count"] / DRAWS == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("split", SPLITS)
def test_objects_do_not_touch(samples, split):
    for scene in samples[split]:
        for thing in scene.objects:
            assert SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1]
            for centre in (thing.x, thing.y):
                assert centre - thing.radius > 0.015
                assert centre + thing.radius < 0.985
        for a, b in itertools.combinations(scene.objects, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius > 0.035


def test_single_objects_are_inside_their_position(samples):
    singles = [scene.objects[0] for scene in samples["train"] if scenes.scene_type(scene) == "single"]
    for thing in singles:
        for centre in (thing.x, thing.y):
            assert min(abs(centre - 1 / 3), abs(centre - 2 / 3)) > 0.05
    assert set(collections.Counter(scenes.grid_position(t.x, t.y) for t in singles)) == set(scenes.POSITIONS)


def test_pairs_have_a_clear_relation(samples):
    for scene in samples["train"]:
        if scenes.scene_type(scene) == "pair":
            first, second = scene.objects
            assert (first.color, first.shape) != (second.color, second.shape)
            less, more = sorted((abs(first.x - second.x), abs(first.y - second.y)))
            assert more > 2 * less


def test_counted_objects_are_alike(samples):
    counts = collections.Counter()
    for scene in samples["train"]:
        if scenes.scene_type(scene) == "count":
            assert len({(t.shape, t.color, t.size, t.radius) for t in scene.objects}) == 1
            counts[len(scene.objects)] += 1
    assert set(counts) == set(scenes.COUNTS)


def test_positions_are_in_reading_order():
    assert scenes.grid_position(0.1, 0.1) == "top left"
    assert scenes.grid_position(0.9, 0.5) == "right"
    assert scenes.grid_position(0.5, 1.0) == "bottom"
