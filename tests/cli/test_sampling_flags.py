"""Every key of a config's sampling has a flag, and a flag's text becomes the value that a config would have."""

import math

import numpy as np
import pytest

from imagen_jax.cli import sample
from imagen_jax.cli.flags import SETTINGS, CommandFlags, mesh_axes, prompt_weights, stage_changes
from imagen_jax.errors import ConfigError
from imagen_jax.parallel.sharding import make_mesh
from tests.helpers.configs import base_config


def given(*arguments):
    """The flags of a command line."""
    args = CommandFlags(sample)
    args.parse(arguments)
    return args


def test_one_flag_per_sampling_key():
    assert set(SETTINGS) == set(base_config().sampling)


def as_text(value):
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("name, value", base_config().sampling.to_dict().items(), ids=str)
def test_flag_round_trip(name, value):
    args = given(f"--{name}={as_text(value)}")
    (change,) = stage_changes(args, 1)
    assert change == {name: value}
    assert type(change[name]) is type(value)


def test_no_flags_change_nothing():
    args = given()
    assert stage_changes(args, 2) == [{}, {}]
    assert prompt_weights(args, 2, 5) is None


def test_one_value_or_one_per_stage():
    args = given("--num_inference_steps=30, 20", "--guidance_scale=1.5", "--sampler=ddpm,heun", "--churn_range=0:inf,0.1:9")
    assert stage_changes(args, 2) == [
        {"steps": 30, "guidance": 1.5, "sampler": "ddpm", "churn_range": (0.0, math.inf)},
        {"steps": 20, "guidance": 1.5, "sampler": "heun", "churn_range": (0.1, 9.0)},
    ]
    assert prompt_weights(args, 2, 5) is None


def test_guidance_per_prompt():
    args = given("--guidance_scale=1.5,3; 2;7,1", "--eta=1")
    np.testing.assert_array_equal(prompt_weights(args, 2, 3), np.float32([[1.5, 2, 7], [3, 2, 1]]))
    assert stage_changes(args, 2, with_guidance=False) == [{"eta": 1.0}, {"eta": 1.0}]
    # they are no change of a config
    with pytest.raises(ConfigError, match="--guidance_scale has 3 values for 2 stages"):
        stage_changes(args, 2)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--num_inference_steps=1,2,3", "--num_inference_steps has 3 values for 2 stages: give one for all, or one for each"),
        ("--num_inference_steps=1.5", "--num_inference_steps '1.5' is not a whole number"),
        ("--num_inference_steps=", "--num_inference_steps '' is not a whole number"),
        ("--eta=much", "--eta 'much' is not a number"),
        ("--s_churn=nan", "--s_churn 'nan' is not a number"),
        ("--guidance_scale=inf,1", "--guidance_scale 'inf' is not a number"),
        ("--churn_range=0.05", "--churn_range '0.05' is not a range such as 0.05:50"),
        ("--churn_range=1:2:3", "--churn_range '1:2:3' is not a range"),
        ("--oscillating_guidance=1", "--oscillating_guidance '1' is not true or false"),
        ("--num_inference_steps=4;5", "--num_inference_steps '4;5' is not a whole number"),
        ("--guidance_scale=4;5", "--guidance_scale '4;5' is not a number"),
    ],
)
def test_invalid_values(argument, said):
    args = given(argument)
    with pytest.raises(ConfigError, match=said):
        stage_changes(args, 2)


@pytest.mark.parametrize(
    "argument, said",
    [
        ("--guidance_scale=1;2", "2 prompts, and there are 3"),
        ("--guidance_scale=1;2;3;", "4 prompts, and there are 3"),
        ("--guidance_scale=1;2,3,4;3", "--guidance_scale has 3 values for 2 stages"),
        ("--guidance_scale=1;much;3", "--guidance_scale 'much' is not a number"),
        ("--guidance_scale=1;;3", "--guidance_scale '' is not a number"),
        ("--guidance_scale=1;nan;3", "--guidance_scale 'nan' is not a number"),
    ],
)
def test_invalid_guidance_per_prompt(argument, said):
    args = given(argument)
    with pytest.raises(ConfigError, match=said):
        prompt_weights(args, 2, 3)


@pytest.mark.parametrize("fsdp, spatial", [(1, 1), (4, 1), (1, 2), (2, 2)])
def test_sampling_mesh(fsdp, spatial):
    args = given(f"--fsdp={fsdp}", f"--spatial={spatial}")
    assert make_mesh(mesh_axes(args)).shape == {"data": 8 // (fsdp * spatial), "fsdp": fsdp, "spatial": spatial}


def test_sampling_mesh_must_fit_devices():
    args = given("--fsdp=3")
    with pytest.raises(ConfigError, match="mesh data=-1, fsdp=3 does not fit 8 devices"):
        make_mesh(mesh_axes(args))
