"""Runs that learn nothing are refused, or end; all others are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.training.loop import train
from imagen_jax.training.state import TrainState, update_ema
from imagen_jax.training.stuck import StuckMonitor, check_learned
from imagen_jax.training.validate import check_learning, learning_warnings
from tests.helpers.configs import base_config, one_device, sr_config

IN_VAIN = {
    "optimizer.decay_steps": {"optimizer.decay_steps": 4},
    "optimizer.learning_rate": {"optimizer.learning_rate": 1e-15},
    "optimizer.clip_norm": {"optimizer.clip_norm": 1e-20},
    "optimizer.weight_decay": {"optimizer.weight_decay": 1000.0},
    "diffusion.cond_drop_prob": {"diffusion.cond_drop_prob": 1.0},
    "cond_drop_prob 0.99999": {"diffusion.cond_drop_prob": 0.99999},
}
SOUND = [
    {},
    {"optimizer.decay_steps": 4, "optimizer.end_learning_rate": 1e-4},
    {"optimizer.decay_steps": 6},
    {"optimizer.decay_steps": 0, "optimizer.warmup_steps": 10_000},
    {"optimizer.name": "adafactor", "optimizer.clip_norm": 1e-15},
    {"optimizer.weight_decay": 10.0},
    {"diffusion.cond_drop_prob": 1.0, "sampling.guidance_scale": 0.0},
    {"diffusion.cond_drop_prob": 0.5, "training.steps": 1, "training.batch_size": 1},
    {"optimizer.ema_decay": 0.999999},
]


@pytest.mark.parametrize("key", IN_VAIN)
def test_runs_in_vain_are_refused(key):
    with pytest.raises(ConfigError, match=key):
        check_learning(base_config(**IN_VAIN[key]))


@pytest.mark.parametrize("changes", SOUND, ids=lambda changes: "-".join(changes))
def test_sound_runs_are_not_refused(changes):
    check_learning(base_config(**changes))


@pytest.mark.parametrize(
    "key, changes",
    [
        ("aug_level_range", {"aug_level_range": (1.0, 1.0)}),
        ("aug_level_mean", {"aug_level_distribution": "lognormal", "aug_level_mean": 9.0}),
    ],
)
def test_hidden_low_res_image_is_refused(key, changes):
    changes = {f"diffusion.{name}": value for name, value in changes.items()}
    with pytest.raises(ConfigError, match=key):
        check_learning(sr_config(**changes, **{"sampling.aug_level": 1.0}))
    check_learning(base_config(**changes))  # which has no such image
    check_learning(sr_config())


@pytest.mark.parametrize(
    "key, changes",
    [
        ("optimizer.warmup_steps", {"optimizer.warmup_steps": 6, "optimizer.decay_steps": 0}),
        ("optimizer.end_learning_rate", {"optimizer.decay_steps": 4, "optimizer.end_learning_rate": 1e-3}),
        ("diffusion.cond_drop_prob", {"diffusion.cond_drop_prob": 0.0, "sampling.guidance_scale": 2.0}),
    ],
)
def test_doubtful_settings_are_named(key, changes):
    (warning,) = learning_warnings(base_config(**changes))
    assert key in warning
    assert not learning_warnings(base_config())


def metrics(**changes):
    return {"learning_rate": 1e-2, "gradient_norm": 1.0, "parameter_norm": 3.0, "skipped_in_a_row": 0} | changes


def steps_until_the_end(move, limit=50, config=None, **changes):
    """Returns the step at which a run ends whose parameters are functions of the step; None if it does not end."""
    monitor = StuckMonitor(config or base_config(**{"training.steps": limit, "optimizer.decay_steps": 0}), one_device())
    try:
        for step in range(1, limit + 1):
            monitor.update(step, metrics(**changes))
            monitor.check(step, {"a": jnp.full((2, 3), move(step), jnp.float32), "b": jnp.zeros(())})
    except TrainingError as error:
        assert f"step {step}" in str(error)
        return step
    return None


def test_parameters_that_do_not_change_end_a_run():
    assert 20 <= steps_until_the_end(lambda step: 0.5) <= 25
    assert 20 <= steps_until_the_end(lambda step: 1e-12 * step) <= 25


def test_parameters_that_change_while_their_norm_does_not():
    assert steps_until_the_end(lambda step: 1e-3 * step) is None


def test_gradients_of_zero_end_a_run():
    assert steps_until_the_end(lambda step: step, gradient_norm=0.0) == 10


@pytest.mark.parametrize("changes", [{"skipped_in_a_row": 1}, {"learning_rate": 1e-6}, {"learning_rate": 0.0}])
def test_skipped_updates_and_low_rates_are_not_judged(changes):
    """Those of the first and the last steps of a schedule change little by design."""
    assert steps_until_the_end(lambda step: 0.5, gradient_norm=0.0, **changes) is None


def test_a_run_of_skipped_updates_is_an_error():
    def state(step, skipped):
        counts = type("Counts", (), {"skipped": np.int32(skipped)})
        return TrainState(np.int32(step), {}, counts, {})

    with pytest.raises(TrainingError, match="all 7 updates"):
        check_learned(state(7, 7))
    check_learned(state(7, 6))
    check_learned(state(0, 0))


def test_training_below_frozen_zeros_ends(tmp_path):
    config = base_config(**{"training.trainable": ("^stem/kernel$",), "training.steps": 30, "optimizer.decay_steps": 0})
    with pytest.raises(TrainingError, match="training.trainable"):
        train(config, tmp_path)


@pytest.mark.slow
def test_training_far_below_eps_ends(tmp_path):
    changes = {"optimizer.eps": 0.9, "optimizer.clip_norm": 1e-7, "training.steps": 30, "optimizer.decay_steps": 0}
    with pytest.raises(TrainingError, match="optimizer.clip_norm"):
        train(base_config(**changes), tmp_path)


@pytest.mark.parametrize("decay", [0.9999, 0.9999999, 1 - 1e-15])
def test_the_average_follows_however_slow(decay):
    """The average of a run of N steps reaches back over about N / 9 of them, however close to 1 the decay is."""
    ema, params = {"a": jnp.zeros(3)}, {"a": jnp.ones(3)}
    step = jax.jit(lambda ema, step: update_ema(ema, params, step, decay))
    for count in range(40):
        ema = step(ema, jnp.int32(count))
    assert float(ema["a"][0]) > 0.999
