import numpy as np
import pytest

from imagen_jax.datasets.figures.captions import parse_caption
from imagen_jax.datasets.figures.render import object_map
from imagen_jax.datasets.figures.source import FiguresSource
from imagen_jax.errors import ConfigError


def test_example_depends_on_seed_and_index():
    one, other = FiguresSource(5, "train", 32, 20), FiguresSource(5, "train", 32, 1000)
    forwards = [one[i] for i in range(20)]
    backwards = [other[i] for i in reversed(range(20))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.captions == b.captions


def test_examples_differ():
    sources = [FiguresSource(seed, split, 16, 100) for seed in (0, 1) for split in ("train", "validation", "held_out")]
    figures = [source.figure(i) for source in sources for i in range(100)]
    assert len(set(figures)) == len(figures)


def test_captions_describe_figures():
    source = FiguresSource(0, "held_out", 32, 50)
    for i in range(50):
        assert source.captions(i) == source[i].captions
        assert parse_caption(source.captions(i)[0]) == source.description(i)
        assert source.description(i).garments == source.figure(i).garments


def test_objects_are_those_of_the_figure():
    source = FiguresSource(0, "train", (32, 48), 20)
    for i in range(20):
        np.testing.assert_array_equal(source.objects(i), object_map(source.figure(i), (32, 48)))
        assert source.objects(i).shape == source[i].image.shape[:2]


@pytest.mark.parametrize("other", [{"resolution": 64}, {"resolution": (16, 40)}, {"bits": 16}], ids=str)
def test_figure_is_independent_of_resolution_and_bits(other):
    usual = {"seed": 0, "split": "train", "resolution": 32, "num_examples": 20}
    one, another = FiguresSource(**usual), FiguresSource(**(usual | other))
    for i in range(20):
        assert one.figure(i) == another.figure(i)
        assert one.captions(i) == another.captions(i)


@pytest.mark.parametrize(
    "wrong", [{"split": "test"}, {"resolution": 8}, {"num_examples": 0}, {"bits": 12}, {"seed": -1}], ids=str
)
def test_wrong_arguments_raise(wrong):
    usual = {"seed": 0, "split": "train", "resolution": 32, "num_examples": 20}
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        FiguresSource(**(usual | wrong))


def test_index_out_of_range_raises():
    source = FiguresSource(0, "train", 32, 20)
    for index in (-1, 20):
        with pytest.raises(IndexError):
            source[index]
