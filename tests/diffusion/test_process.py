import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import (
    PREDICTIONS,
    WEIGHTS,
    add_noise,
    eps_from_x,
    loss_weight,
    per_example,
    prediction_target,
    squared_error,
    stratified_times,
    to_x_and_eps,
)

each_kind = pytest.mark.parametrize("kind", PREDICTIONS)


@pytest.fixture(scope="module")
def process():
    """x, eps, alpha [B], sigma [B] and z_t, with levels from nearly clean to nearly noise."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (5, 4, 4, 3)).astype(np.float32)
    eps = rng.standard_normal(x.shape).astype(np.float32)
    angle = np.float32(np.pi / 2) * np.asarray([0.05, 0.3, 0.5, 0.8, 0.95], np.float32)
    alpha, sigma = np.cos(angle), np.sin(angle)
    return x, eps, alpha, sigma, add_noise(x, eps, alpha, sigma)


@each_kind
def test_the_target_of_each_kind_means_the_x_and_eps_it_was_made_of(process, kind):
    x, eps, alpha, sigma, z = process
    x_hat, eps_hat = to_x_and_eps(prediction_target(x, eps, alpha, sigma, kind), z, alpha, sigma, kind)
    np.testing.assert_allclose(x_hat, x, atol=2e-5)
    np.testing.assert_allclose(eps_hat, eps, atol=2e-5)


@each_kind
def test_any_prediction_means_an_x_and_an_eps_that_make_z_and_it(process, kind):
    """A network may be wrong; what it says must still be read in one way."""
    _, _, alpha, sigma, z = process
    said = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    x_hat, eps_hat = to_x_and_eps(said, z, alpha, sigma, kind)
    np.testing.assert_allclose(add_noise(x_hat, eps_hat, alpha, sigma), z, atol=2e-5)
    np.testing.assert_allclose(prediction_target(x_hat, eps_hat, alpha, sigma, kind), said, atol=2e-5)


def test_noise_is_added_per_example():
    x, eps = jnp.ones((2, 1, 2, 1)), jnp.full((2, 1, 2, 1), 10.0)
    z = add_noise(x, eps, jnp.asarray([0.6, 1.0]), jnp.asarray([0.8, 0.0]))
    np.testing.assert_allclose(z[:, 0, 0, 0], [8.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(add_noise(x, eps, jnp.asarray(0.6), jnp.asarray(0.8)), 8.6, rtol=1e-6)


def test_v_on_hand_made_numbers():
    one = jnp.ones((1, 1, 1, 1))
    v = prediction_target(2 * one, 5 * one, jnp.asarray([0.6]), jnp.asarray([0.8]), "v")
    assert v.item() == pytest.approx(0.6 * 5 - 0.8 * 2)


def test_eps_from_x_is_the_noise(process):
    x, eps, alpha, sigma, z = process
    np.testing.assert_allclose(eps_from_x(x, z, alpha, sigma), eps, atol=2e-5)


def test_an_unknown_kind_is_refused(process):
    x, eps, alpha, sigma, z = process
    with pytest.raises(ValueError, match="'noise'"):
        prediction_target(x, eps, alpha, sigma, "noise")
    with pytest.raises(ValueError, match="'noise'"):
        to_x_and_eps(eps, z, alpha, sigma, "noise")


def test_per_example_adds_axes_at_the_end():
    like = jnp.zeros((3, 4, 5, 2))
    assert per_example(jnp.zeros(3), like).shape == (3, 1, 1, 1)
    assert per_example(0.5, like).shape == ()


def test_the_loss_of_an_example_is_the_mean_of_its_squares():
    prediction = jnp.asarray([[[[1.0], [2.0]]], [[[0.0], [4.0]]]])
    target = jnp.asarray([[[[0.0], [0.0]]], [[[0.0], [1.0]]]])
    losses = squared_error(prediction, target)
    assert losses.shape == (2,)
    np.testing.assert_allclose(losses, [2.5, 4.5])
    assert jnp.mean(losses) == 3.5


def test_the_loss_is_summed_in_float32():
    """In bfloat16 a sum of 4096 ones sticks at 256."""
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    loss = squared_error(ones, 0 * ones)
    assert loss.dtype == jnp.float32
    assert loss.item() == 1.0


def weights(logsnr, prediction, kind, bias=0.0, gamma=5.0, data=0.5):
    return np.asarray(
        loss_weight(jnp.asarray(logsnr), prediction, kind, bias=bias, min_snr_gamma=gamma, sigma_data=data)
    )


RANGE = np.linspace(-20, 20, 81, dtype=np.float32)


def test_a_simple_weight_is_one():
    for kind in PREDICTIONS:
        np.testing.assert_array_equal(weights(RANGE, kind, "simple"), 1)


@pytest.mark.parametrize("settings", [{"bias": -2.0}, {"bias": 1.5}, {"gamma": 1.0}, {"data": 1.0}, {}], ids=str)
@pytest.mark.parametrize("weight", [weight for weight in WEIGHTS if weight != "simple"])
def test_a_weight_makes_the_loss_the_same_whatever_is_predicted(process, weight, settings):
    x, eps, alpha, sigma, z = process
    logsnr = 2 * (jnp.log(alpha) - jnp.log(sigma))
    guess = x + np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)

    def loss(kind):
        prediction = prediction_target(guess, eps_from_x(guess, z, alpha, sigma), alpha, sigma, kind)
        error = squared_error(prediction, prediction_target(x, eps, alpha, sigma, kind))
        return weights(logsnr, kind, weight, **settings) * error

    np.testing.assert_allclose(loss("x"), loss("eps"), rtol=1e-3)
    np.testing.assert_allclose(loss("v"), loss("eps"), rtol=1e-3)


def test_a_sigmoid_weight_of_eps_is_a_sigmoid_about_its_bias():
    np.testing.assert_allclose(weights([-30.0, 1.0, 30.0], "eps", "sigmoid", bias=1.0), [1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_a_min_snr_weight_is_the_ratio_up_to_gamma(gamma):
    ratio = np.exp(RANGE)
    least = np.minimum(ratio, gamma)
    np.testing.assert_allclose(weights(RANGE, "x", "min_snr", gamma=gamma), least, rtol=1e-5)
    np.testing.assert_allclose(weights(RANGE, "eps", "min_snr", gamma=gamma), least / ratio, rtol=1e-5)
    np.testing.assert_allclose(weights(RANGE, "v", "min_snr", gamma=gamma), least / (ratio + 1), rtol=1e-5)


@pytest.mark.parametrize("data", [0.5, 1.0, 2.0])
def test_an_edm_weight_is_that_of_its_noise(data):
    sigma = np.exp(-RANGE / 2)
    expected = (sigma**2 + data**2) / (sigma * data) ** 2
    np.testing.assert_allclose(weights(RANGE, "x", "edm", data=data), expected, rtol=1e-4)


def test_an_edm_weight_of_images_of_deviation_1_is_a_simple_one_of_v():
    """EDM's network then predicts v but for its sign."""
    np.testing.assert_allclose(weights(RANGE, "v", "edm", data=1.0), 1, rtol=1e-5)


def test_no_weight_overflows():
    for weight in WEIGHTS:
        for kind in PREDICTIONS:
            assert np.isfinite(weights(RANGE, kind, weight)).all()
    for kind in PREDICTIONS:
        assert (weights([-100.0, 100.0], kind, "sigmoid") <= 1).all()
        assert (weights([-100.0, 100.0], kind, "min_snr") <= 5.0001).all()


def test_an_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="'heavy'"):
        weights(np.zeros(1), "x", "heavy")


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_one_time_lies_in_each_part_of_the_unit_interval(batch):
    for seed in range(5):
        times = np.asarray(stratified_times(jax.random.key(seed), batch))
        assert times.shape == (batch,)
        assert (times >= 0).all() and (times < 1).all()
        # a hair away from the bounds of the parts, where float32 may fall to either side
        assert sorted((times - times.min() + 1e-5) * batch // 1) == list(range(batch))
        assert times.min() < 1 / batch


def test_the_time_of_each_place_in_the_batch_is_uniform():
    keys = jax.random.split(jax.random.key(0), 4000)
    times = np.asarray(jax.vmap(lambda key: stratified_times(key, 3))(keys))
    for place in range(3):
        ordered = np.sort(times[:, place])
        # Kolmogorov–Smirnov: the 0.1 % point of 4000 draws is 1.95 / √4000 = 0.031
        assert np.abs(ordered - (np.arange(4000) + 0.5) / 4000).max() < 0.031
