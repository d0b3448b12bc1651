import numpy as np
import pytest

from imagen_jax.diffusion.guidance import (
    Guidance,
    classifier_free,
    dynamic_threshold,
    get_threshold_fn,
    rescale_guidance,
    static_threshold,
)
from imagen_jax.diffusion.process import predict_x0_and_eps
from imagen_jax.errors import ConfigError


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, 3, 4, 4, 3)).astype(np.float32)


def test_scale_one_is_conditional_and_zero_unconditional(predictions):
    conditional, unconditional = predictions
    np.testing.assert_allclose(classifier_free(conditional, unconditional, 1.0), conditional, atol=1e-6)
    np.testing.assert_array_equal(classifier_free(conditional, unconditional, 0.0), unconditional)


def test_scale_above_one_extrapolates():
    assert classifier_free(np.float32(2), np.float32(1), 5.0) == 5 * 2 + (1 - 5) * 1


@pytest.mark.parametrize("prediction_type", ["x", "v"])
def test_guidance_is_equal_for_all_prediction_types(predictions, prediction_type):
    conditional, unconditional = predictions
    z = np.random.default_rng(1).standard_normal(conditional.shape).astype(np.float32)
    alpha, sigma = np.float32([0.96, 0.6, 0.28]), np.float32([0.28, 0.8, 0.96])

    def eps(prediction):
        return predict_x0_and_eps(prediction, z, alpha, sigma, prediction_type)[1]

    guided = eps(classifier_free(conditional, unconditional, 3.0))
    np.testing.assert_allclose(guided, classifier_free(eps(conditional), eps(unconditional), 3.0), atol=1e-4)


def test_scale_per_sample(predictions):
    conditional, unconditional = predictions
    scales = np.float32([1.0, 2.5, -3.0])
    together = classifier_free(conditional, unconditional, scales)
    for i, scale in enumerate(scales):
        alone = classifier_free(conditional[i : i + 1], unconditional[i : i + 1], float(scale))
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)


def deviations(x):
    return np.asarray(x).std(axis=(1, 2, 3))


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_rescale_guidance(predictions, phi):
    conditional, unconditional = predictions
    guided = np.asarray(classifier_free(conditional, unconditional, np.float32([2.0, 5.0, 20.0])))
    rescaled = np.asarray(rescale_guidance(guided, conditional, phi))
    expected = phi * deviations(conditional) + (1 - phi) * deviations(guided)
    np.testing.assert_allclose(deviations(rescaled), expected, rtol=1e-5)
    ratio = rescaled / guided
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1, :1], ratio.shape), rtol=1e-5)


def test_rescaling_a_constant_image_is_finite():
    constant = np.full((2, 4, 4, 3), 0.5, np.float32)
    assert np.isfinite(rescale_guidance(constant, constant, 0.7)).all()


def test_default_guidance_is_classifier_free(predictions):
    conditional, unconditional = predictions
    for step in range(5):
        guided = Guidance(3.0)(conditional, unconditional, np.float32(step / 4), np.float32(step))
        np.testing.assert_array_equal(guided, classifier_free(conditional, unconditional, 3.0))


def test_guidance_interval(predictions):
    conditional, unconditional = predictions
    guidance = Guidance(3.0, interval=(0.2, 0.6), rescale=0.5)
    for level in (0.0, 0.1999, 0.6001, 1.0):
        np.testing.assert_array_equal(guidance(conditional, unconditional, np.float32(level), 0), conditional)
    inside = rescale_guidance(classifier_free(conditional, unconditional, 3.0), conditional, 0.5)
    for level in (0.2, 0.4, 0.6):
        np.testing.assert_array_equal(guidance(conditional, unconditional, np.float32(level), 0), inside)


def test_noise_level_per_sample(predictions):
    conditional, unconditional = predictions
    guided = Guidance(3.0, interval=(0.5, 1.0))(conditional, unconditional, np.float32([0.1, 0.6, 0.2]), 0)
    np.testing.assert_array_equal(np.asarray(guided)[[0, 2]], conditional[[0, 2]])
    np.testing.assert_array_equal(guided[1], classifier_free(conditional, unconditional, 3.0)[1])


def test_oscillating_guidance(predictions):
    conditional, unconditional = predictions
    scales = np.float32([9.0, 5.0, 7.0])
    guidance = Guidance(scales, oscillating=True, low=2.0, warmup_steps=4)
    for step in range(10):
        expected = 2.0 if step in (5, 7, 9) else scales
        guided = guidance(conditional, unconditional, np.float32(0.5), np.float32(step))
        np.testing.assert_array_equal(guided, classifier_free(conditional, unconditional, expected))


def test_is_identity():
    assert Guidance(1.0).is_identity
    assert Guidance(1, low=3.0).is_identity
    assert Guidance(1.0, oscillating=True).is_identity
    assert not Guidance(1.0, oscillating=True, low=3.0).is_identity
    assert not Guidance(2.0).is_identity
    assert not Guidance(np.ones(3)).is_identity


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"interval": (0.5, 0.5)}, "guidance_interval 0.5, 0.5"),
        ({"interval": (-0.1, 1.0)}, "guidance_interval -0.1, 1.0"),
        ({"interval": (0.0, 1.5)}, "guidance_interval 0.0, 1.5"),
        ({"rescale": 1.5}, "guidance_rescale 1.5"),
        ({"rescale": -0.5}, "guidance_rescale -0.5"),
        ({"warmup_steps": -1}, "guidance_warmup_steps -1"),
        ({"low": float("inf")}, "guidance_low inf"),
        ({"scale": float("nan")}, "guidance_scale nan"),
    ],
    ids=str,
)
def test_invalid_guidance_raises(settings, match):
    with pytest.raises(ConfigError, match=match):
        Guidance(**{"scale": 2.0, **settings})


def test_static_threshold_clips():
    np.testing.assert_array_equal(
        static_threshold(np.float32([-3, -1, -0.2, 0.7, 1.5])), np.float32([-1, -1, -0.2, 0.7, 1])
    )


def image(magnitudes):
    """Returns an image [1, 1, N, 1] of shuffled magnitudes with random signs."""
    rng = np.random.default_rng(0)
    return (rng.permutation(magnitudes) * rng.choice([-1, 1], len(magnitudes))).astype(np.float32)[None, None, :, None]


@pytest.mark.trap("percentile as a fraction")
def test_dynamic_threshold_divides_by_the_percentile():
    """Of 0, 0.01, …, 4.00, 99.5 % are at most 3.98; 0.995 % would be 0.04."""
    x = image(np.arange(401) / 100)
    np.testing.assert_allclose(dynamic_threshold(x), np.clip(x, -3.98, 3.98) / 3.98, rtol=1e-5)
    np.testing.assert_allclose(dynamic_threshold(x, 50), np.clip(x, -2, 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(dynamic_threshold(x, 100), x / 4, rtol=1e-5)


def test_dynamic_threshold_never_brightens():
    """s is at least 1: a dim image is unchanged, and a single bright pixel is only clipped."""
    dim = image(np.linspace(0, 0.5, 400))
    np.testing.assert_array_equal(dynamic_threshold(dim), dim)
    with_outlier = image(np.append(np.linspace(0, 0.5, 400), 7.0))
    np.testing.assert_array_equal(dynamic_threshold(with_outlier), np.clip(with_outlier, -1, 1))


def test_dynamic_threshold_per_sample():
    bright, dim = image(np.arange(401) / 100), image(np.linspace(0, 0.5, 401))
    both = dynamic_threshold(np.concatenate([bright, dim]))
    np.testing.assert_array_equal(both, np.concatenate([dynamic_threshold(bright), dynamic_threshold(dim)]))


def test_get_threshold_fn():
    x = image(np.arange(401) / 100)
    np.testing.assert_array_equal(get_threshold_fn("none", 99.5)(x), x)
    np.testing.assert_array_equal(get_threshold_fn("static", 99.5)(x), static_threshold(x))
    np.testing.assert_array_equal(get_threshold_fn("dynamic", 80.0)(x), dynamic_threshold(x, 80.0))


def test_unknown_threshold_raises():
    with pytest.raises(ConfigError, match="threshold 'dynamical'"):
        get_threshold_fn("dynamical", 99.5)


@pytest.mark.parametrize("percentile", [0, -1, 100.5, 0.995, 0.95, 1.0])
@pytest.mark.trap("percentile as a fraction")
def test_invalid_percentile_raises(percentile):
    with pytest.raises(ConfigError, match=f"{percentile} is not in"):
        get_threshold_fn("dynamic", percentile)
