"""The state of an evaluation does not depend on how its images are divided into batches, parts and processes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.evaluation.cascade_metrics import compute_metrics
from imagen_jax.evaluation.judges import get_judge
from imagen_jax.evaluation.state import MAX_GRID_IMAGES, EvaluationState
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.images.resize import resize

COUNT = 90
JUDGE = get_judge("shapes")


@pytest.fixture(scope="module")
def samples():
    """Images of two stages with captions; half of the captions are those of other images."""
    source = ShapesSource(5, "held_out", 32, COUNT)
    examples = [source[i] for i in range(COUNT)]
    images = np.stack([example.image for example in examples])
    low_res = np.asarray(to_uint(resize(to_float(jnp.asarray(images)), 16, 16), np.dtype(np.uint8)))
    captions = [examples[i if i % 2 else (i + 2) % COUNT].captions[0] for i in range(COUNT)]
    return [low_res, images], captions


def state_of(samples, start, stop, batch, judge=JUDGE):
    by_stage, captions = samples
    state = EvaluationState(2, judge)
    for first in range(start, stop, batch):
        rows = slice(first, min(first + batch, stop))
        state.update(first, [images[rows] for images in by_stage], captions[rows])
    return state


def assert_equal_results(state, expected):
    assert state.images == expected.images
    assert state.counts.result() == expected.counts.result()
    assert list(state.counts.result()) == list(expected.counts.result())
    assert (state.correct, state.incorrect) == (expected.correct, expected.incorrect)
    for metrics, others in zip(state.stages, expected.stages, strict=True):
        assert metrics.result() == pytest.approx(others.result(), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_batches_equal_one_batch(samples, batch):
    assert_equal_results(state_of(samples, 0, COUNT, batch), state_of(samples, 0, COUNT, COUNT))


def test_equals_metrics_of_all_images(samples):
    state, ((low_res, images), captions) = state_of(samples, 0, COUNT, 8), samples
    scores, correct = JUDGE(images, captions)
    assert state.counts.result() == scores
    assert 30 < correct.sum() < 60
    assert state.correct == np.flatnonzero(correct)[:MAX_GRID_IMAGES].tolist()
    assert state.incorrect == np.flatnonzero(~correct)[:MAX_GRID_IMAGES].tolist()
    for metrics, args in zip(state.stages, [(low_res, None), (images, low_res)], strict=True):
        expected = compute_metrics(*args, real=images)
        del expected["saturation_real"]
        assert metrics.result() == pytest.approx(expected, rel=1e-12)


def test_merged_parts_equal_one_state(samples):
    parts = [state_of(samples, start, stop, 5) for start, stop in ((40, 63), (0, 40), (63, COUNT))]
    merged = EvaluationState(2, JUDGE)
    for part in parts:
        merged.merge(part)
    assert_equal_results(merged, state_of(samples, 0, COUNT, COUNT))


@pytest.mark.parametrize("judge", [JUDGE, None])
def test_json_continues_exactly(samples, judge):
    state = EvaluationState.from_json(json.loads(json.dumps(state_of(samples, 0, 48, 8, judge).to_json())), judge)
    by_stage, captions = samples
    for first in range(48, COUNT, 8):
        state.update(first, [images[first : first + 8] for images in by_stage], captions[first : first + 8])
    assert state.to_json() == state_of(samples, 0, COUNT, 8, judge).to_json()


def test_size_does_not_grow(samples):
    sizes = [len(json.dumps(state_of(samples, 0, count, 6).to_json())) for count in (72, COUNT)]
    assert abs(sizes[1] - sizes[0]) < 100
