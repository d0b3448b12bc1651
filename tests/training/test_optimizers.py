"""Optimizers follow their configs, and treat scanned layers as separate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.training.optimizers import learning_rate_schedule, make_optimizer


def config(**changes):
    defaults = {"name": "adam", "learning_rate": 0.5, "warmup_steps": 10, "decay_steps": 110}
    changes = {f"optimizer.{key}": value for key, value in {**defaults, **changes}.items()}
    return StageConfig().with_changes(changes).optimizer


def unchecked(settings, **values):
    """Returns settings with values outside their range, which make steps large enough to measure."""
    return settings.model_copy(update=values)


def test_warmup_is_linear():
    rates = [float(learning_rate_schedule(config(), 110)(step)) for step in range(11)]
    np.testing.assert_allclose(rates, 0.5 * np.arange(11) / 10, rtol=1e-6)


def test_cosine_decay():
    steps = np.arange(10, 111, 10)
    rates = [float(learning_rate_schedule(config(), 110)(step)) for step in steps]
    np.testing.assert_allclose(rates, 0.25 * (1 + np.cos(np.pi * (steps - 10) / 100)), atol=1e-6)
    assert float(learning_rate_schedule(config(), 110)(500)) == 0


def test_schedule_follows_the_run():
    for steps in (110, 220):
        rate = learning_rate_schedule(config(decay_steps=0), steps)
        assert float(rate(10)) == 0.5 and 0 < float(rate(steps - 1)) < 1e-3 and float(rate(steps)) < 1e-9
    # a trial that ends in the warm-up warms up as the full run does
    trial, full = (learning_rate_schedule(config(decay_steps=0), steps) for steps in (5, 500))
    assert [float(trial(step)) for step in range(5)] == [float(full(step)) for step in range(5)]


def test_end_learning_rate():
    rate = learning_rate_schedule(config(end_learning_rate=0.1), 500)
    np.testing.assert_allclose([float(rate(step)) for step in (10, 110, 499)], [0.5, 0.1, 0.1], rtol=1e-6)
    with pytest.raises(ConfigError, match="optimizer.end_learning_rate"):
        config(end_learning_rate=0.6)


def test_no_warmup():
    assert float(learning_rate_schedule(config(warmup_steps=0), 110)(0)) == 0.5


@pytest.mark.parametrize("warmup_steps", [-1, 110, 200])
def test_invalid_warmup(warmup_steps):
    with pytest.raises(ConfigError, match=f"optimizer.warmup_steps {warmup_steps}"):
        make_optimizer(config(warmup_steps=warmup_steps), 110)


def test_unknown_name():
    with pytest.raises(ConfigError, match="optimizer.name 'sgd'.* adam, adafactor"):
        make_optimizer(config(name="sgd"), 110)


def test_invalid_moment_dtype():
    with pytest.raises(ConfigError, match="first_moment_dtype 'float16'.* float32, bfloat16"):
        make_optimizer(config(first_moment_dtype="float16"), 110)
    with pytest.raises(ConfigError, match="'bfloat16'.* optimizer.name 'adafactor'"):
        make_optimizer(config(name="adafactor", first_moment_dtype="bfloat16"), 110)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_bfloat16_moment(name):
    params = {"kernel": jnp.ones((20, 50))}
    gradients = {"kernel": jax.random.normal(jax.random.key(0), (20, 50))}
    sizes, moved = {}, {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(config(name=name, warmup_steps=0, first_moment_dtype=dtype), 110)
        sizes[dtype] = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.init(params)))
        moved[dtype] = after_one(optimizer, params, gradients)["kernel"] - 1
    assert sizes["float32"] - sizes["bfloat16"] == 2 * 1000
    assert moved["bfloat16"].dtype == jnp.float32
    np.testing.assert_allclose(moved["bfloat16"], moved["float32"], atol=0.02 * np.abs(moved["float32"]).max())


def after_one(optimizer, params, gradients):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("name", ["adam", "adafactor", "muon"])
def test_exploding_gradient_is_clipped(name):
    """Above the clipping norm only the direction of a gradient matters."""
    optimizer = make_optimizer(unchecked(config(name=name, warmup_steps=0), eps=1.0), 110)
    params = {"a": jnp.ones((4, 4))}
    gradients = {"a": jax.random.normal(jax.random.key(0), (4, 4))}
    moved = [
        after_one(optimizer, params, jax.tree.map(lambda g, s=scale: g * s, gradients))["a"] for scale in (1e1, 1e8)
    ]
    np.testing.assert_allclose(moved[0], moved[1], atol=1e-5)
    assert not np.array_equal(moved[0], params["a"])


def test_clipping_by_global_norm():
    """With Adam's eps far above the gradient, the step is linear in it and shows its norm."""
    optimizer = make_optimizer(unchecked(config(warmup_steps=0, clip_norm=0.25), eps=1e3, learning_rate=1e3), 110)
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    moved = after_one(optimizer, params, {"a": jnp.full(3, 100.0), "b": jnp.full((2, 2), -50.0)})
    assert float(optax.tree.norm(moved)) == pytest.approx(0.25, rel=1e-3)
    small = after_one(optimizer, params, {"a": jnp.full(3, 0.01), "b": jnp.zeros((2, 2))})
    np.testing.assert_allclose(small["a"], -0.01, rtol=1e-3)


def test_weight_decay_without_gradient():
    for name in ("adam", "adafactor"):
        optimizer = make_optimizer(config(name=name, warmup_steps=0, weight_decay=0.1), 110)
        moved = after_one(optimizer, {"a": jnp.ones(3)}, {"a": jnp.zeros(3)})["a"]
        assert (np.asarray(moved) < 1).all()
        assert (np.asarray(moved) > 0.5).all()


def test_adafactor_factors_large_kernels():
    params = {"kernel": jnp.zeros((256, 512))}
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(make_optimizer(config(name=name), 110).init(params)))
        for name in ("adam", "adafactor")
    }
    assert sizes["adam"] > 2 * 256 * 512
    assert sizes["adafactor"] < 2 * (256 + 512)


@pytest.mark.parametrize("name", ["adam", "adafactor", "muon"])
def test_scanned_layers_match_separate_layers(name):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (130, 140), "conv": (3, 3, 8, 12), "bias": (140,)}
    # Optax' Adafactor would clip stacked layers together; the gradients of the last are by far the largest
    layers = [
        {key: (50.0 if i == 2 else 1.0) * rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
        for i in range(3)
    ]
    separate = {f"block_{i}": layer for i, layer in enumerate(layers)}
    stacked = {"blocks_0_to_2": {key: np.stack([layer[key] for layer in layers]) for key in shapes}}
    optimizer = make_optimizer(config(name=name, warmup_steps=0, weight_decay=0.1), 110)

    @jax.jit
    def after_two(params):
        state = optimizer.init(params)
        for i in (1, 2):
            updates, state = optimizer.update(jax.tree.map(lambda p, i=i: p**i, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    actual, expected = after_two(stacked)["blocks_0_to_2"], after_two(separate)
    for i in range(3):
        for key in shapes:
            assert np.abs(expected[f"block_{i}"][key] - separate[f"block_{i}"][key]).max() > 1e-2
            np.testing.assert_allclose(actual[key][i], expected[f"block_{i}"][key], rtol=1e-5, atol=1e-5)


def test_adafactor_equals_optax():
    """Without scanned layers, which Optax clips together."""
    params = {"a": np.random.default_rng(0).standard_normal((150, 160), np.float32), "b": np.ones(3, np.float32)}
    ours = make_optimizer(config(name="adafactor", warmup_steps=0, weight_decay=0.1, clip_norm=1e9), 110)
    rate = learning_rate_schedule(config(warmup_steps=0), 110)
    theirs = optax.adafactor(rate, multiply_by_parameter_scale=False, weight_decay_rate=0.1)
    assert jax.tree.map(jnp.shape, ours.init(params).inner[1]) == jax.tree.map(jnp.shape, theirs.init(params))
    # compiled like the branch of `skip_bad_updates`, because fused operations round differently
    theirs = optax.GradientTransformation(theirs.init, jax.jit(theirs.update))
    jax.tree.map(np.testing.assert_array_equal, *(after_one(update, params, params) for update in (ours, theirs)))


@pytest.mark.parametrize("name", ["adam", "adafactor"])
def test_minimizes_a_quadratic(name):
    optimizer = make_optimizer(config(name=name, warmup_steps=0, learning_rate=0.1), 110)
    target = jnp.array([1.0, -2.0, 0.5])

    @jax.jit
    def step(x, state):
        updates, state = optimizer.update(2 * (x - target), state, x)
        return optax.apply_updates(x, updates), state

    x = jnp.zeros(3)
    state = optimizer.init(x)
    for _ in range(110):
        x, state = step(x, state)
    np.testing.assert_allclose(x, target, atol=0.05)
