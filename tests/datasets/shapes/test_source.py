import dataclasses
import pickle

import grain
import numpy as np
import pytest

from imagen_jax.datasets.shapes.captions import parse_caption
from imagen_jax.datasets.shapes.source import ShapesSource


def test_example_depends_on_seed_and_index():
    one, other = ShapesSource(5, "train", 32, 100), ShapesSource(5, "train", 32, 1000)
    forwards = [one[i] for i in range(50)]
    backwards = [other[i] for i in reversed(range(50))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.captions[0] == b.captions[0]


def test_examples_match_golden():
    """Golden values: a change would invalidate published results."""
    source = ShapesSource(0, "train", 16, 10)
    assert [source[i].captions[0] for i in range(3)] == [
        "on a white background, a large red ring in the bottom right",
        "two small blue squares on a tan background",
        "three large yellow triangles on a black background",
    ]
    # The last bit of a rounded pixel may depend on the processor.
    assert int(source[0].image.sum()) == pytest.approx(184212, abs=100)


def test_examples_differ():
    sources = [ShapesSource(seed, split, 16, 200) for seed in (0, 1) for split in ("train", "validation", "held_out")]
    scenes = [source.scene(i) for source in sources for i in range(200)]
    assert len(set(scenes)) == len(scenes)


def test_seed_and_index_are_distinct():
    assert ShapesSource(1, "train", 16, 10).scene(2) != ShapesSource(2, "train", 16, 10).scene(1)


@pytest.mark.parametrize("other", [{"resolution": 128}, {"resolution": (16, 40)}, {"bits": 16}], ids=str)
def test_scene_is_independent_of_resolution_and_bits(other):
    usual, other = (
        ShapesSource(**({"seed": 0, "split": "train", "resolution": 16, "num_examples": 50} | o)) for o in ({}, other)
    )
    for i in range(50):
        assert usual.scene(i) == other.scene(i)
        assert usual[i].captions[0] == other[i].captions[0]


def test_transparent_captions_omit_background():
    plain, transparent = (ShapesSource(0, "held_out", 16, 200, transparent=on) for on in (False, True))
    for i in range(200):
        parsed = parse_caption(transparent[i].captions[0])
        assert parsed == transparent.description(i)
        assert parsed == dataclasses.replace(plain.description(i), background="")
        assert transparent.scene(i).objects == plain.scene(i).objects
    assert any(plain.description(i).background for i in range(200))


def test_description_matches_caption():
    source = ShapesSource(0, "train", 16, 300)
    for i in range(300):
        assert parse_caption(source[i].captions[0]) == source.description(i)


def test_works_with_grain():
    source = ShapesSource(0, "train", 16, 40)
    assert isinstance(source, grain.sources.RandomAccessDataSource)
    batches = list(grain.MapDataset.source(source).map(lambda example: example.image).batch(8))
    assert len(batches) == 5
    np.testing.assert_array_equal(batches[1][3], source[11].image)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[7].image, source[7].image)


def test_repr():
    source = ShapesSource(3, "held_out", 64, 7)
    assert repr(source) == (
        "ShapesSource(seed=3, split='held_out', resolution=64, num_examples=7, bits=8, transparent=False)"
    )
    assert len(source) == 7
    assert "resolution=32×48," in repr(ShapesSource(3, "held_out", (32, 48), 7))


def test_numpy_index():
    source = ShapesSource(0, "train", 16, 10)
    assert source.scene(np.int64(3)) == source.scene(3)


@pytest.mark.parametrize("index", [-1, 10])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=rf"index {index} is outside \[0, 10\)"):
        ShapesSource(0, "train", 16, 10)[index]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "test"}, "split 'test'.*train, validation, held_out"),
        ({"resolution": 4}, "resolution 4 "),
        ({"resolution": (16, 4)}, r"resolution 16×4 is not an integer in \[8, 4096\]"),
        ({"resolution": (16, 16, 3)}, r"resolution \(16, 16, 3\)"),
        ({"bits": 12}, "bits 12 is not known: choose 8 or 16"),
        ({"resolution": 64.0}, "resolution 64.0"),
        ({"num_examples": 0}, "num_examples 0 "),
        ({"num_examples": 1e3}, "num_examples 1000.0 "),
        ({"seed": -1}, "seed -1 "),
        ({"seed": 2**64}, "seed 18446744073709551616 "),
        ({"seed": 0.5}, "seed 0.5 "),
        ({"seed": True}, "seed True "),
    ],
)
def test_invalid_arguments_raise(wrong, message):
    with pytest.raises(ValueError, match=message):
        ShapesSource(**({"seed": 0, "split": "train", "resolution": 64, "num_examples": 10} | wrong))
