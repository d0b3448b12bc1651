import numpy as np
import pytest

from imagen_jax.diffusion import to_x_and_eps
from imagen_jax.errors import UsageError
from imagen_jax.guidance import classifier_free, dynamic_threshold, static_threshold, threshold


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
    with pytest.raises(UsageError, match="'dynamical'.*none, static or dynamic"):
        threshold("dynamical", 99.5)


@pytest.mark.parametrize("percentile", [0, -1, 100.5])
def test_a_percentile_that_is_none_is_refused(percentile):
    with pytest.raises(UsageError, match=f"{percentile} is not in"):
        threshold("dynamic", percentile)
