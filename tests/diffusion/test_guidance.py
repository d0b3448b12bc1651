import numpy as np
import pytest

from imagen_jax.diffusion.guidance import (
    Guidance,
    classifier_free,
    dynamic_threshold,
    rescaled,
    static_threshold,
    threshold,
)
from imagen_jax.diffusion.process import to_x_and_eps
from imagen_jax.errors import ConfigError


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 4, 4, 3)).astype(np.float32)


def test_weight_one_is_the_conditional_and_zero_the_unconditional(predictions):
    conditional, unconditional = predictions
    np.testing.assert_allclose(classifier_free(conditional, unconditional, 1.0), conditional, atol=1e-6)
    np.testing.assert_array_equal(classifier_free(conditional, unconditional, 0.0), unconditional)


def test_a_weight_above_one_leads_away_from_the_unconditional():
    assert classifier_free(np.float32(2), np.float32(1), 5.0) == 5 * 2 + (1 - 5) * 1


@pytest.mark.parametrize("kind", ["x", "v"])
def test_guidance_means_the_same_in_every_kind_of_prediction(predictions, kind):
    conditional, unconditional = predictions
    z = np.random.default_rng(1).standard_normal(conditional.shape).astype(np.float32)
    alpha, sigma = np.float32([0.96, 0.6, 0.28]), np.float32([0.28, 0.8, 0.96])

    def eps(prediction):
        return to_x_and_eps(prediction, z, alpha, sigma, kind)[1]

    guided = eps(classifier_free(conditional, unconditional, 3.0))
    np.testing.assert_allclose(guided, classifier_free(eps(conditional), eps(unconditional), 3.0), atol=1e-4)


def test_each_sample_has_its_own_weight(predictions):
    conditional, unconditional = predictions
    weights = np.float32([1.0, 2.5, -3.0])
    together = classifier_free(conditional, unconditional, weights)
    for i, weight in enumerate(weights):
        alone = classifier_free(conditional[i : i + 1], unconditional[i : i + 1], float(weight))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)


def deviations(x):
    return np.asarray(x).std(axis=(1, 2, 3))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_leads_to_the_deviation_of_the_conditional_and_keeps_the_direction(predictions, share):
    conditional, unconditional = predictions
    guided = np.asarray(classifier_free(conditional, unconditional, np.float32([2.0, 5.0, 20.0])))
    found = np.asarray(rescaled(guided, conditional, share))
    expected = share * deviations(conditional) + (1 - share) * deviations(guided)
    np.testing.assert_allclose(deviations(found), expected, rtol=1e-5)
    ratio = found / guided
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-5)


def test_rescaling_a_plain_picture_is_finite():
    plain = np.full((2, 4, 4, 3), 0.5, np.float32)
    assert np.isfinite(rescaled(plain, plain, 0.7)).all()


def test_guidance_alone_is_classifier_free_guidance_in_every_step(predictions):
    conditional, unconditional = predictions
    for step in range(5):
        found = Guidance(3.0)(conditional, unconditional, np.float32(step / 4), np.float32(step))
        np.testing.assert_array_equal(found, classifier_free(conditional, unconditional, 3.0))


def test_there_is_guidance_inside_its_interval_of_noise_levels_and_none_outside(predictions):
    conditional, unconditional = predictions
    guidance = Guidance(3.0, start=0.2, end=0.6, rescale=0.5)
    for level in (0.0, 0.1999, 0.6001, 1.0):
        np.testing.assert_array_equal(guidance(conditional, unconditional, np.float32(level), 0), conditional)
    inside = rescaled(classifier_free(conditional, unconditional, 3.0), conditional, 0.5)
    for level in (0.2, 0.4, 0.6):
        np.testing.assert_array_equal(guidance(conditional, unconditional, np.float32(level), 0), inside)


def test_each_sample_may_be_at_its_own_noise_level(predictions):
    conditional, unconditional = predictions
    found = Guidance(3.0, start=0.5)(conditional, unconditional, np.float32([0.1, 0.6, 0.2]), 0)
    np.testing.assert_array_equal(np.asarray(found)[[0, 2]], conditional[[0, 2]])
    np.testing.assert_array_equal(found[1], classifier_free(conditional, unconditional, 3.0)[1])


def test_an_oscillation_is_low_in_every_second_step_after_the_constant_ones(predictions):
    conditional, unconditional = predictions
    weights = np.float32([9.0, 5.0, 7.0])
    guidance = Guidance(weights, oscillates=True, low=2.0, constant_steps=4)
    for step in range(10):
        expected = 2.0 if step in (5, 7, 9) else weights
        found = guidance(conditional, unconditional, np.float32(0.5), np.float32(step))
        np.testing.assert_array_equal(found, classifier_free(conditional, unconditional, expected))


def test_guidance_that_is_none_is_known_to_be():
    assert Guidance(1.0).is_none
    assert Guidance(1, low=3.0).is_none
    assert Guidance(1.0, oscillates=True).is_none
    assert not Guidance(1.0, oscillates=True, low=3.0).is_none
    assert not Guidance(2.0).is_none
    assert not Guidance(np.ones(3)).is_none


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"start": 0.5, "end": 0.5}, "from noise level 0.5 to 0.5 is no interval"),
        ({"start": -0.1}, "from noise level -0.1 to 1.0 is no interval"),
        ({"end": 1.5}, "from noise level 0.0 to 1.5 is no interval"),
        ({"rescale": 1.5}, "rescale 1.5 is not in"),
        ({"rescale": -0.5}, "rescale -0.5 is not in"),
        ({"constant_steps": -1}, "constant steps -1 are too few"),
        ({"low": float("inf")}, "low inf is not a finite number"),
        ({"weight": float("nan")}, "weight nan is not a finite number"),
    ],
    ids=str,
)
def test_guidance_that_means_nothing_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Guidance(**{"weight": 2.0, **settings})


def test_static_threshold_clips():
    np.testing.assert_array_equal(
        static_threshold(np.float32([-3, -1, -0.2, 0.7, 1.5])), np.float32([-1, -1, -0.2, 0.7, 1])
    )


def image(magnitudes):
    """[1, 1, N, 1] of these magnitudes, in disorder and of both signs."""
    rng = np.random.default_rng(0)
    return (rng.permutation(magnitudes) * rng.choice([-1, 1], len(magnitudes))).astype(np.float32)[None, None, :, None]


def test_dynamic_threshold_divides_by_the_percentile():
    """Of 0, 0.01, …, 4.00, 99.5 per cent are at most 3.98: 0.995 per cent would be 0.04."""
    x = image(np.arange(401) / 100)
    np.testing.assert_allclose(dynamic_threshold(x), np.clip(x, -3.98, 3.98) / 3.98, rtol=1e-5)
    np.testing.assert_allclose(dynamic_threshold(x, 50), np.clip(x, -2, 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(dynamic_threshold(x, 100), x / 4, rtol=1e-5)


def test_dynamic_threshold_never_brightens():
    """s is at least 1: a dim image stays as it is, and a single bright pixel is only clipped."""
    dim = image(np.linspace(0, 0.5, 400))
    np.testing.assert_array_equal(dynamic_threshold(dim), dim)
    spotted = image(np.append(np.linspace(0, 0.5, 400), 7.0))
    np.testing.assert_array_equal(dynamic_threshold(spotted), np.clip(spotted, -1, 1))


def test_dynamic_threshold_looks_at_each_sample_alone():
    bright, dim = image(np.arange(401) / 100), image(np.linspace(0, 0.5, 401))
    both = dynamic_threshold(np.concatenate([bright, dim]))
    np.testing.assert_array_equal(both, np.concatenate([dynamic_threshold(bright), dynamic_threshold(dim)]))


def test_thresholds_by_name():
    x = image(np.arange(401) / 100)
    np.testing.assert_array_equal(threshold("none", 99.5)(x), x)
    np.testing.assert_array_equal(threshold("static", 99.5)(x), static_threshold(x))
    np.testing.assert_array_equal(threshold("dynamic", 80.0)(x), dynamic_threshold(x, 80.0))


def test_an_unknown_threshold_is_refused():
    with pytest.raises(ConfigError, match="'dynamical'.*none, static or dynamic"):
        threshold("dynamical", 99.5)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, 0.995, 0.95, 1.0])
def test_a_percentile_that_is_none_is_refused(percentile):
    with pytest.raises(ConfigError, match=f"{percentile} is not in"):
        threshold("dynamic", percentile)
