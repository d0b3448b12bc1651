import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import (
    LOSS_WEIGHTINGS,
    PREDICTION_TYPES,
    add_noise,
    append_dims,
    eps_from_x,
    loss_weight,
    mse_per_example,
    predict_x0_and_eps,
    prediction_target,
    sample_timesteps,
)

each_type = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


@pytest.fixture(scope="module")
def process():
    """Returns x, eps, alpha [B], sigma [B] and z_t, at levels from nearly clean to nearly pure noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (5, 4, 4, 3)).astype(np.float32)
    eps = rng.standard_normal(x.shape).astype(np.float32)
    angle = np.float32(np.pi / 2) * np.asarray([0.05, 0.3, 0.5, 0.8, 0.95], np.float32)
    alpha, sigma = np.cos(angle), np.sin(angle)
    return x, eps, alpha, sigma, add_noise(x, eps, alpha, sigma)


@each_type
def test_target_converts_back_to_x_and_eps(process, prediction_type):
    x, eps, alpha, sigma, z = process
    x_hat, eps_hat = predict_x0_and_eps(
        prediction_target(x, eps, alpha, sigma, prediction_type), z, alpha, sigma, prediction_type
    )
    np.testing.assert_allclose(x_hat, x, atol=2e-5)
    np.testing.assert_allclose(eps_hat, eps, atol=2e-5)


@each_type
def test_any_prediction_is_consistent_with_z(process, prediction_type):
    """Also for a prediction that is wrong."""
    _, _, alpha, sigma, z = process
    prediction = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    x_hat, eps_hat = predict_x0_and_eps(prediction, z, alpha, sigma, prediction_type)
    np.testing.assert_allclose(add_noise(x_hat, eps_hat, alpha, sigma), z, atol=2e-5)
    target = prediction_target(x_hat, eps_hat, alpha, sigma, prediction_type)
    np.testing.assert_allclose(target, prediction, atol=2e-5)


def test_add_noise_per_example():
    x, eps = jnp.ones((2, 1, 2, 1)), jnp.full((2, 1, 2, 1), 10.0)
    z = add_noise(x, eps, jnp.asarray([0.6, 1.0]), jnp.asarray([0.8, 0.0]))
    np.testing.assert_allclose(z[:, 0, 0, 0], [8.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(add_noise(x, eps, jnp.asarray(0.6), jnp.asarray(0.8)), 8.6, rtol=1e-6)


def test_v_target_by_hand():
    one = jnp.ones((1, 1, 1, 1))
    v = prediction_target(2 * one, 5 * one, jnp.asarray([0.6]), jnp.asarray([0.8]), "v")
    assert v.item() == pytest.approx(0.6 * 5 - 0.8 * 2)


def test_eps_from_x(process):
    x, eps, alpha, sigma, z = process
    np.testing.assert_allclose(eps_from_x(x, z, alpha, sigma), eps, atol=2e-5)


def test_unknown_prediction_type_raises(process):
    x, eps, alpha, sigma, z = process
    with pytest.raises(ValueError, match="'noise'"):
        prediction_target(x, eps, alpha, sigma, "noise")
    with pytest.raises(ValueError, match="'noise'"):
        predict_x0_and_eps(eps, z, alpha, sigma, "noise")


def test_append_dims():
    like = jnp.zeros((3, 4, 5, 2))
    assert append_dims(jnp.zeros(3), like).shape == (3, 1, 1, 1)
    assert append_dims(0.5, like).shape == ()


def test_mse_per_example():
    prediction = jnp.asarray([[[[1.0], [2.0]]], [[[0.0], [4.0]]]])
    target = jnp.asarray([[[[0.0], [0.0]]], [[[0.0], [1.0]]]])
    losses = mse_per_example(prediction, target)
    assert losses.shape == (2,)
    np.testing.assert_allclose(losses, [2.5, 4.5])
    assert jnp.mean(losses) == 3.5


def test_mse_where_a_mask_is_1():
    prediction, target = jnp.asarray([[[[1.0, 2.0], [7.0, 8.0]]], [[[3.0, 4.0], [5.0, 6.0]]]]), jnp.zeros((2, 1, 2, 2))
    mask = jnp.asarray([[[[1.0], [0.0]]], [[[1.0], [1.0]]]])
    losses = mse_per_example(prediction, target, mask)
    np.testing.assert_allclose(losses, [2.5, mse_per_example(prediction, target)[1]])


def test_mse_is_float32():
    """In bfloat16 a sum of 4096 ones saturates at 256."""
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    loss = mse_per_example(ones, 0 * ones)
    assert loss.dtype == jnp.float32
    assert loss.item() == 1.0


def weights(logsnr, prediction_type, weighting, bias=0.0, gamma=5.0, sigma_data=0.5):
    return np.asarray(
        loss_weight(
            jnp.asarray(logsnr), prediction_type, weighting, bias=bias, min_snr_gamma=gamma, sigma_data=sigma_data
        )
    )


RANGE = np.linspace(-20, 20, 81, dtype=np.float32)


def test_simple_weighting_is_one():
    for prediction_type in PREDICTION_TYPES:
        np.testing.assert_array_equal(weights(RANGE, prediction_type, "simple"), 1)


@pytest.mark.parametrize("settings", [{"bias": -2.0}, {"bias": 1.5}, {"gamma": 1.0}, {"sigma_data": 1.0}, {}], ids=str)
@pytest.mark.parametrize("weighting", [name for name in LOSS_WEIGHTINGS if name != "simple"])
def test_weighted_loss_is_equal_for_all_prediction_types(process, weighting, settings):
    x, eps, alpha, sigma, z = process
    logsnr = 2 * (jnp.log(alpha) - jnp.log(sigma))
    guess = x + np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def loss(prediction_type):
        prediction = prediction_target(guess, eps_from_x(guess, z, alpha, sigma), alpha, sigma, prediction_type)
        error = mse_per_example(prediction, prediction_target(x, eps, alpha, sigma, prediction_type))
        return weights(logsnr, prediction_type, weighting, **settings) * error

    np.testing.assert_allclose(loss("x"), loss("eps"), rtol=1e-3)
    np.testing.assert_allclose(loss("v"), loss("eps"), rtol=1e-3)


def test_sigmoid_weighting():
    np.testing.assert_allclose(weights([-30.0, 1.0, 30.0], "eps", "sigmoid", bias=1.0), [1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighting(gamma):
    ratio = np.exp(RANGE)
    clipped = np.minimum(ratio, gamma)
    np.testing.assert_allclose(weights(RANGE, "x", "min_snr", gamma=gamma), clipped, rtol=1e-5)
    np.testing.assert_allclose(weights(RANGE, "eps", "min_snr", gamma=gamma), clipped / ratio, rtol=1e-5)
    np.testing.assert_allclose(weights(RANGE, "v", "min_snr", gamma=gamma), clipped / (ratio + 1), rtol=1e-5)


@pytest.mark.parametrize("data", [0.5, 1.0, 2.0])
def test_edm_weighting(data):
    sigma = np.exp(-RANGE / 2)
    expected = (sigma**2 + data**2) / (sigma * data) ** 2
    np.testing.assert_allclose(weights(RANGE, "x", "edm", sigma_data=data), expected, rtol=1e-4)


def test_edm_weighting_of_v_at_unit_variance_is_simple():
    """EDM's network then predicts v up to its sign."""
    np.testing.assert_allclose(weights(RANGE, "v", "edm", sigma_data=1.0), 1, rtol=1e-5)


def test_weightings_are_finite():
    for weighting in LOSS_WEIGHTINGS:
        for prediction_type in PREDICTION_TYPES:
            assert np.isfinite(weights(RANGE, prediction_type, weighting)).all()
    for prediction_type in PREDICTION_TYPES:
        assert (weights([-100.0, 100.0], prediction_type, "sigmoid") <= 1).all()
        assert (weights([-100.0, 100.0], prediction_type, "min_snr") <= 5.0001).all()


def test_unknown_weighting_raises():
    with pytest.raises(ValueError, match="'heavy'"):
        weights(np.zeros(1), "x", "heavy")


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_timesteps_are_stratified(batch):
    for seed in range(5):
        times = np.asarray(sample_timesteps(jax.random.key(seed), batch))
        assert times.shape == (batch,)
        assert (times >= 0).all() and (times < 1).all()
        # slightly off the bounds of the bins, where float32 may round to either side
        assert sorted((times - times.min() + 1e-5) * batch // 1) == list(range(batch))
        assert times.min() < 1 / batch


def test_timesteps_are_uniform_marginally():
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.asarray(jax.vmap(lambda key: sample_timesteps(key, 3))(keys))
    for index in range(3):
        ordered = np.sort(times[:, index])
        # Kolmogorov–Smirnov: the 0.1 % point of 4000 draws is 1.95 / √4000 = 0.031
        assert np.abs(ordered - (np.arange(4000) + 0.5) / 4000).max() < 0.031
