"""Every key of a config's sampling has a flag, and a flag's text becomes the value that a config would have."""

import math

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from imagen_jax import mesh_flags, sampling_flags
from imagen_jax.errors import ConfigError
from tests.helpers.configs import base_config


@pytest.fixture
def given():
    """Parses flags for the length of a test."""
    with flagsaver.flagsaver():
        yield lambda *arguments: flags.FLAGS(["sample", *arguments])


def test_there_is_a_flag_for_each_key_and_no_other():
    assert set(sampling_flags.FLAGS) == set(base_config().sampling)


def as_text(value):
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("name, value", base_config().sampling.to_dict().items(), ids=str)
def test_a_value_of_a_config_survives_its_flag(given, name, value):
    given(f"--{name}={as_text(value)}")
    (change,) = sampling_flags.stage_changes(1)
    assert change == {name: value}
    assert type(change[name]) is type(value)


def test_without_flags_nothing_is_changed(given):
    given()
    assert sampling_flags.stage_changes(2) == [{}, {}]
    assert sampling_flags.prompt_weights(2, 5) is None


def test_a_value_is_of_all_stages_or_each_has_its_own(given):
    given("--steps=30, 20", "--guidance=1.5", "--sampler=ddpm,heun", "--churn_range=0:inf,0.1:9")
    assert sampling_flags.stage_changes(2) == [
        {"steps": 30, "guidance": 1.5, "sampler": "ddpm", "churn_range": (0.0, math.inf)},
        {"steps": 20, "guidance": 1.5, "sampler": "heun", "churn_range": (0.1, 9.0)},
    ]
    assert sampling_flags.prompt_weights(2, 5) is None


def test_a_prompt_may_have_weights_of_its_own(given):
    given("--guidance=1.5,3; 2;7,1", "--eta=1")
    np.testing.assert_array_equal(sampling_flags.prompt_weights(2, 3), np.float32([[1.5, 2, 7], [3, 2, 1]]))
    assert sampling_flags.stage_changes(2, with_guidance=False) == [{"eta": 1.0}, {"eta": 1.0}]
    # they are no change of a config
    with pytest.raises(ConfigError, match="--guidance has 3 values for 2 stages"):
        sampling_flags.stage_changes(2)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--steps=1,2,3", "--steps has 3 values for 2 stages: give one for all, or one for each"),
        ("--steps=1.5", "--steps '1.5' is not a whole number"),
        ("--steps=", "--steps '' is not a whole number"),
        ("--eta=much", "--eta 'much' is not a number"),
        ("--churn=nan", "--churn 'nan' is not a number"),
        ("--guidance=inf,1", "--guidance 'inf' is not a number"),
        ("--churn_range=0.05", "--churn_range '0.05' is not a range such as 0.05:50"),
        ("--churn_range=1:2:3", "--churn_range '1:2:3' is not a range"),
        ("--guidance_oscillates=1", "--guidance_oscillates '1' is not true or false"),
        ("--steps=4;5", "--steps '4;5' is not a whole number"),
        ("--guidance=4;5", "--guidance '4;5' is not a number"),
    ],
)
def test_values_that_mean_nothing_are_refused(given, argument, said):
    given(argument)
    with pytest.raises(ConfigError, match=said):
        sampling_flags.stage_changes(2)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--guidance=1;2", "--guidance has weights for 2 prompts, and there are 3: give them once for all"),
        ("--guidance=1;2;3;", "--guidance has weights for 4 prompts, and there are 3"),
        ("--guidance=1;2,3,4;3", "--guidance has 3 values for 2 stages"),
        ("--guidance=1;much;3", "--guidance 'much' is not a number"),
        ("--guidance=1;;3", "--guidance '' is not a number"),
        ("--guidance=1;nan;3", "--guidance 'nan' is not a number"),
    ],
)
def test_weights_of_prompts_that_mean_nothing_are_refused(given, argument, said):
    given(argument)
    with pytest.raises(ConfigError, match=said):
        sampling_flags.prompt_weights(2, 3)


@pytest.mark.parametrize("fsdp, spatial", [(1, 1), (4, 1), (1, 2), (2, 2)])
def test_devices_that_share_no_picture_draw_some_of_their_own(given, fsdp, spatial):
    given(f"--fsdp={fsdp}", f"--spatial={spatial}")
    assert mesh_flags.sampling_mesh().shape == {"data": 8 // (fsdp * spatial), "fsdp": fsdp, "spatial": spatial}


def test_devices_that_cannot_be_shared_so_are_refused(given):
    given("--fsdp=3")
    with pytest.raises(ConfigError, match="mesh data=-1, fsdp=3 does not fit 8 devices"):
        mesh_flags.sampling_mesh()
