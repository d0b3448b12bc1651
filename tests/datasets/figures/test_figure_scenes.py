import itertools

import numpy as np
import pytest

from imagen_jax.datasets.figures import scenes
from imagen_jax.datasets.figures.figure_sampling import sample_figure, sample_garment
from imagen_jax.datasets.figures.scenes import BACKGROUNDS, COLORS, GARMENTS, HELD_OUT, NOUNS, PATTERNS, SKINS
from imagen_jax.datasets.generated import SPLITS


@pytest.fixture(scope="module")
def figures():
    rng = np.random.default_rng(0)
    return {split: [sample_figure(split, rng) for _ in range(2000)] for split in SPLITS}


def test_training_shows_every_pair_of_attributes(figures):
    garments = {
        (garment.noun, garment.color, garment.pattern) for figure in figures["train"] for garment in figure.garments
    }
    assert not garments & HELD_OUT
    for first, second in itertools.combinations(range(3), 2):
        names = (NOUNS, tuple(COLORS), PATTERNS)
        pairs = {(garment[first], garment[second]) for garment in garments}
        assert pairs == set(itertools.product(names[first], names[second]))


def test_everyone_held_out_wears_one_garment_that_is(figures):
    worn = [[scenes.is_held_out(garment) for garment in figure.garments] for figure in figures["held_out"]]
    assert all(sum(held_out) == 1 for held_out in worn)
    assert {held_out.index(True) for held_out in worn} == {0, 1}
    assert not any(scenes.is_held_out(garment) for figure in figures["validation"] for garment in figure.garments)


def test_outfits(figures):
    for figure in itertools.chain(*figures.values()):
        assert tuple(garment.place for garment in figure.garments) in (("body",), ("top", "bottom"))
        assert len({garment.color for garment in figure.garments}) == len(figure.garments)


def test_one_garment_in_eight_is_held_out():
    assert len(HELD_OUT) == len(NOUNS) * len(PATTERNS)
    assert 8 * len(HELD_OUT) == len(NOUNS) * len(PATTERNS) * len(COLORS)


def test_sample_garment():
    rng = np.random.default_rng(0)
    for place in GARMENTS:
        garments = [sample_garment(place, rng, True, ["red", "blue"]) for _ in range(50)]
        assert all(scenes.is_held_out(garment) and garment.place == place for garment in garments)
        assert not {"red", "blue"} & {garment.color for garment in garments}


def test_colors_differ():
    colors = np.array([*COLORS.values(), *BACKGROUNDS.values(), *SKINS.values(), scenes.PATTERN_COLOR], float)
    distances = np.linalg.norm(colors[:, None] - colors, axis=-1)
    assert distances[~np.eye(len(colors), dtype=bool)].min() > 60
