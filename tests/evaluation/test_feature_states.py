"""States do not depend on how images are divided into batches, parts and processes, nor on kills in between."""

import logging

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.clip_score import ClipScore
from imagen_jax.evaluation.feature_states import FeatureMoments, FeatureSample
from imagen_jax.evaluation.inception_score import InceptionScore, inception_score
from imagen_jax.evaluation.state_files import load_states, merge_over_hosts, save_states
from imagen_jax.io.paths import as_path

WIDTH, COUNT = 6, 150
# far from 0, where sums of squares would lose half of their digits
FEATURES = (1e4 + np.random.default_rng(0).standard_normal((COUNT, WIDTH)) @ np.diag(np.arange(1, WIDTH + 1))).astype(
    np.float32
)
LOGITS = np.random.default_rng(1).standard_normal((COUNT, 9)).astype(np.float32)
IDENTITY = {"network": "inception-v3-fid/0123", "resizing": "clean", "seed": 3}


def new_states(capacity=COUNT):
    return {
        "moments": FeatureMoments(WIDTH),
        "sample": FeatureSample(WIDTH, capacity, seed=3),
        "inception_score": InceptionScore(COUNT, 5),
        "clip_score": ClipScore(),
    }


def update(states, start, stop):
    rows = slice(start, stop)
    states["moments"].update(start, FEATURES[rows])
    states["sample"].update(start, FEATURES[rows])
    states["inception_score"].update(start, LOGITS[rows])
    states["clip_score"].update(start, FEATURES[rows], FEATURES[rows][::-1])


def states_of(bounds, capacity=COUNT):
    states = new_states(capacity)
    for start, stop in bounds:
        update(states, start, stop)
    return states


def assert_complete(states):
    mean, covariance = states["moments"].gaussian()
    wide = FEATURES.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(wide, rowvar=False), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(states["sample"].features(), FEATURES)
    np.testing.assert_allclose(states["inception_score"].result(), inception_score(LOGITS, 5), rtol=1e-9)
    assert {state.images for state in states.values()} == {COUNT}


@pytest.mark.parametrize("batch", [1, 7, 64, COUNT])
def test_batches_make_no_difference(batch):
    assert_complete(states_of([(start, min(start + batch, COUNT)) for start in range(0, COUNT, batch)]))


def test_parts_make_no_difference():
    parts = [states_of([(90, 150)]), states_of([(40, 60), (0, 40)]), new_states(), states_of([(60, 90)])]
    for part in parts[1:]:
        for name, state in parts[0].items():
            state.merge(part[name])
    assert_complete(parts[0])


def test_a_killed_evaluation_continues(tmp_path):
    save_states(tmp_path / "metrics.npz", IDENTITY, states_of([(0, 64)]))
    states = new_states()
    assert load_states(tmp_path / "metrics.npz", IDENTITY, states)
    update(states, 64, COUNT)
    assert_complete(states)


def test_one_process_is_merged_with_no_other():
    states = states_of([(0, COUNT)])
    merge_over_hosts(states, new_states())
    assert_complete(states)


def test_samples_are_bounded_and_do_not_depend_on_order():
    bounds = [(start, start + 10) for start in range(0, COUNT, 10)]
    one, other = states_of(bounds, 16)["sample"], states_of(bounds[::-1], 16)["sample"]
    np.testing.assert_array_equal(one.features(), other.features())
    parts = states_of(bounds[:8], 16)["sample"], states_of(bounds[8:], 16)["sample"]
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(one.features(), parts[0].features())
    assert len(one.features()) == 16 and one.images == COUNT and not one.is_exact
    assert all((row == FEATURES).all(axis=1).any() for row in one.features())


def test_samples_never_hold_many_more_than_their_capacity():
    sample, held = FeatureSample(WIDTH, 16), []
    for start in range(COUNT):
        sample.update(start, FEATURES[start : start + 1])
        held.append(sum(map(len, sample._parts)))
    assert max(held) == 18


def test_samples_are_fair_and_follow_the_seed():
    """Each image is in a quarter of the samples of so many seeds, about; so is each pair in a sixteenth."""
    indices = np.arange(40, dtype=np.float32)[:, None]
    chosen = np.zeros((400, 40))
    for seed in range(400):
        sample = FeatureSample(1, 10, seed)
        sample.update(0, indices)
        chosen[seed, sample.features()[:, 0].astype(int)] = 1
    share = chosen.mean(axis=0)
    assert (np.abs(share - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 400)).all()
    pairs = (chosen.T @ chosen / 400)[~np.eye(40, dtype=bool)]
    assert (np.abs(pairs - 0.25 * 9 / 39) < 5.5 * np.sqrt(0.0577 / 400)).all()


def test_flipped_bits_are_found(tmp_path, caplog):
    path = tmp_path / "metrics.npz"
    save_states(path, IDENTITY, states_of([(0, 5)]))
    content = path.read_bytes()
    expected = new_states()
    load_states(path, IDENTITY, expected)
    found = 0
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        states = new_states()
        try:
            is_loaded = load_states(path, IDENTITY, states)
        except ConfigError:
            is_loaded = False
        found += not is_loaded
        if is_loaded:  # where zip files have times and the like
            for name, state in states.items():
                for key, array in state.to_arrays().items():
                    np.testing.assert_array_equal(array, expected[name].to_arrays()[key])
    assert found > len(content) / 7 / 2
    path.write_bytes(content[: len(content) // 2])
    assert not load_states(path, IDENTITY, new_states())
    assert "is damaged" in caplog.text
    assert not load_states(tmp_path / "none.npz", IDENTITY, new_states())


def test_states_of_other_evaluations_are_refused(tmp_path):
    path = tmp_path / "metrics.npz"
    save_states(path, IDENTITY, states_of([(0, 5)]))
    with pytest.raises(ConfigError, match="resizing was 'clean' and is now 'legacy_pytorch'"):
        load_states(path, IDENTITY | {"resizing": "legacy_pytorch"}, new_states())
    with pytest.raises(ConfigError, match="it has moments, sample"):
        load_states(path, IDENTITY, {"moments": FeatureMoments(WIDTH)})
    for name, other in (
        ("moments", FeatureMoments(2)),
        ("sample", FeatureSample(WIDTH, 2)),
        ("inception_score", InceptionScore(5, 5)),
    ):
        with pytest.raises(ConfigError, match="another folder"):
            load_states(path, IDENTITY, new_states() | {name: other})


def test_too_few_images_are_told(caplog):
    moments = FeatureMoments(WIDTH)
    for count, match in ((0, "0 images have no covariance"), (1, "1 image has no covariance.*more than 6")):
        moments.update(0, FEATURES[:count])
        with pytest.raises(ConfigError, match=match):
            moments.gaussian()
    moments.update(1, FEATURES[1:6])
    with caplog.at_level(logging.WARNING):
        moments.gaussian()
    assert "6 images are fewer than the 7 that a covariance of 6 dimensions needs" in caplog.text
    caplog.clear()
    moments.update(6, FEATURES[6:7])
    moments.gaussian()
    assert not caplog.text


def test_wrong_features_are_refused():
    damaged = FEATURES[:4].copy()
    damaged[2, 1] = np.inf
    for call, match in (
        (lambda: FeatureMoments(WIDTH).update(20, damaged), "the first is image 22"),
        (lambda: FeatureSample(WIDTH).update(20, damaged), "the first is image 22"),
        (lambda: FeatureMoments(WIDTH).update(0, FEATURES[:, :2]), "2 dimensions, and those before 6"),
        (lambda: FeatureMoments(WIDTH).merge(FeatureMoments(2)), "2 dimensions"),
        (lambda: FeatureSample(WIDTH).merge(FeatureSample(WIDTH, seed=1)), "seeds"),
        (lambda: FeatureSample(WIDTH, 0), "capacity 0"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_images_are_counted_once():
    sample = states_of([(0, 9)])["sample"]
    sample.merge(states_of([(8, 10)])["sample"])
    with pytest.raises(ConfigError, match="twice"):
        sample.features()


def test_states_are_kept_in_buckets(bucket):
    path = as_path("gs://pictures/run/metrics.npz")
    assert not load_states(path, IDENTITY, new_states())
    save_states(path, IDENTITY, states_of([(0, 64)]))
    states = new_states()
    assert load_states(path, IDENTITY, states)
    update(states, 64, COUNT)
    assert_complete(states)
