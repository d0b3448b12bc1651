"""Random masks: each kind has its form and its area, and each mask is a function of its own key."""

import functools

import jax
import numpy as np
import pytest

from imagen_jax.diffusion import random_masks
from imagen_jax.diffusion.random_masks import MASK_KINDS, MaskDistribution
from imagen_jax.errors import ConfigError

COUNT = 600
FAST_COMPILE = {"xla_backend_optimization_level": 0}
SIZES = [(32, 32), (16, 48), (8, 8)]
of_each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@functools.cache
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), COUNT)


@functools.cache
def masks(kind, size):
    """Masks of one kind, bool [COUNT, H, W]."""
    draw = getattr(random_masks, f"random_{kind}")
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key, size)), compiler_options=FAST_COMPILE)(keys()))


@functools.cache
def sampler(**weights):
    distribution = MaskDistribution(**(dict.fromkeys(MASK_KINDS, 0.0) | weights))
    return jax.jit(lambda keys: distribution.sample(keys, (24, 32)), compiler_options=FAST_COMPILE)


def is_rectangle(pixels):
    """Whether the pixels of a mask [H, W] that are set are all of a rectangle."""
    rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
    return bool(rows.size) and pixels.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)


@of_each_size
@pytest.mark.parametrize("kind", ["boxes", "strokes", "borders"])
def test_masks_are_neither_empty_nor_full(kind, size):
    drawn = masks(kind, size)
    assert drawn.shape == (COUNT, *size)
    assert drawn.any((1, 2)).all()
    assert not drawn.all((1, 2)).any()
    # small images have few different ones
    assert len({mask.tobytes() for mask in drawn}) > (0.5 if min(size) > 8 else 0.2) * COUNT


@of_each_size
def test_boxes(size):
    drawn = masks("boxes", size)
    single = [mask for mask in drawn if is_rectangle(mask)]
    assert 0.25 * COUNT < len(single) < 0.75 * COUNT  # a third, and those in which boxes cover each other
    areas = np.array([mask.mean() for mask in single])
    # what rounds to pixels may be larger or smaller by one of them
    slack = sum(1 / side for side in size)
    assert areas.max() <= 0.5 + slack
    assert areas.min() >= 0.02 - slack * np.sqrt(0.02)
    assert areas.min() < 0.06 < 0.3 < areas.max()
    # everywhere in the image
    assert drawn.any(0).all()
    assert drawn.mean(0).max() < 0.6


@of_each_size
def test_borders_leave_a_rectangle(size):
    known = ~masks("borders", size)
    assert all(map(is_rectangle, known))
    at_side = np.array([[mask[0].any(), mask[-1].any(), mask[:, 0].any(), mask[:, -1].any()] for mask in known])
    for side in range(4):
        assert 0.4 * COUNT < at_side[:, side].sum() < 0.9 * COUNT
    # in height alone, in width alone, and in both
    full_height, full_width = at_side[:, :2].all(1), at_side[:, 2:].all(1)
    for part in (full_height, full_width, ~full_height & ~full_width):
        assert 0.2 * COUNT < part.sum() < 0.5 * COUNT


@of_each_size
def test_strokes(size):
    drawn = masks("strokes", size)
    areas = drawn.mean((1, 2))
    assert 0.02 < np.median(areas) < 0.4
    assert areas.max() < 0.8
    assert drawn.any(0).all()
    if min(size) > 8:
        assert np.mean([is_rectangle(mask) for mask in drawn]) < 0.05


def test_each_kind_is_drawn_as_often_as_weighed():
    sampled = np.asarray(sampler(everything=1.0, boxes=2.0, strokes=3.0, borders=4.0)(keys()))
    assert sampled.shape == (COUNT, 24, 32, 1)
    assert sampled.dtype == np.float32
    assert set(np.unique(sampled)) == {0, 1}
    drawn = sampled[..., 0] > 0
    everything = drawn.all((1, 2))
    borders = np.array([not full and is_rectangle(~mask) for mask, full in zip(drawn, everything, strict=True)])
    assert everything.mean() == pytest.approx(0.1, abs=0.05)
    assert borders.mean() == pytest.approx(0.4, abs=0.07)
    boxes_and_strokes = drawn[~everything & ~borders]
    # a box is its own bounding box, a stroke hardly ever
    share = np.mean([is_rectangle(mask) for mask in boxes_and_strokes])
    assert share == pytest.approx(0.45 * 0.4, abs=0.08)


def test_kinds_without_weight_are_not_drawn():
    assert np.asarray(sampler(everything=1.0)(keys())).all()
    assert not np.asarray(sampler(boxes=1.0, strokes=1.0)(keys())).all((1, 2, 3)).any()


def test_mask_is_a_function_of_its_key():
    sample = sampler(everything=1.0, boxes=2.0, strokes=3.0, borders=4.0)
    together, backwards = np.asarray(sample(keys())), np.asarray(sample(keys()[::-1]))
    np.testing.assert_array_equal(backwards[::-1], together)
    np.testing.assert_array_equal(sample(keys()[5:6])[0], together[5])
    others = np.asarray(sample(keys(1)))
    assert np.abs(others - together).mean() > 0.2


@pytest.mark.parametrize("kind", ["boxes", "strokes", "borders"])
def test_sizes_are_parts_of_the_image(kind):
    small, large = masks(kind, (8, 8)), masks(kind, (32, 32))
    enlarged = small.repeat(4, axis=1).repeat(4, axis=2)
    assert (enlarged != large).mean() < 0.15
    # masks of other keys have less in common
    assert (enlarged != np.roll(large, 1, axis=0)).mean() > 1.5 * (enlarged != large).mean()


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0, 0.0), (1.0, -0.1, 0.0, 0.0), (1.0, float("inf"), 0.0, 0.0)])
def test_weights_are_checked(weights):
    with pytest.raises(ConfigError, match="weights of masks"):
        MaskDistribution(*weights)


def object_maps():
    """Maps [COUNT, 24, 32] of an L of number 7 and a rectangle of number 200."""
    objects = np.zeros((24, 32), np.uint8)
    objects[4:10, 4:6] = objects[8:10, 4:10] = 7
    objects[14:18, 20:26] = 200
    return np.repeat(objects[None], COUNT, axis=0)


@functools.cache
def masks_of_objects():
    sample = jax.jit(
        lambda keys, maps: MaskDistribution(0, 0, 0, 0, 1.0).sample(keys, (24, 32), maps), compiler_options=FAST_COMPILE
    )
    return np.asarray(sample(keys(), object_maps()))[..., 0] > 0


def test_objects_are_covered_with_a_margin():
    """One of the two, as likely as the other, by its form or by its bounding box."""
    objects, drawn = object_maps()[0], masks_of_objects()
    covered = {number: drawn[:, objects == number].all(1) for number in (7, 200)}
    assert (covered[7] ^ covered[200]).all()
    assert covered[7].mean() == pytest.approx(0.5, abs=0.07)
    boxes = np.array([is_rectangle(mask) for mask in drawn])
    assert boxes[covered[7]].mean() == pytest.approx(0.5, abs=0.1)
    forms = drawn[covered[7] & ~boxes]
    # 4% of 24 pixels are one
    assert (forms == forms[0]).all()
    assert forms[0].sum() == 4 * 8 + 4 * 8 - 4 * 4
    rows = drawn[covered[7] & boxes].any(2)
    margins = 4 - rows.argmax(1)
    assert set(margins) == {0, 1, 2, 3, 4}


def test_without_objects_boxes_are_drawn():
    distribution = MaskDistribution(0, 0, 0, 0, 1.0)
    empty = np.asarray(jax.jit(lambda keys: distribution.sample(keys, (24, 32)))(keys()[:50]))[..., 0]
    assert all(0 < mask.mean() < 1 for mask in empty)
    assert len({mask.tobytes() for mask in empty}) > 40
