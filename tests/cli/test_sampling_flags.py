"""Every key of a config's sampling has a flag, and a flag's text becomes the value that a config would have."""

import math

import numpy as np
import pytest

from imagen_jax.cli import sample, train
from imagen_jax.cli.flags import CommandFlags, mesh_axes, prompt_guidance, stage_changes, weights_choices
from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import make_mesh
from tests.helpers.configs import base_config


def given(*arguments):
    """The flags of a command line."""
    args = CommandFlags(sample)
    args.parse(arguments)
    return args


def test_one_flag_per_sampling_key():
    args, without = CommandFlags(sample), CommandFlags(train)
    names = set(base_config().sampling.to_dict())
    assert {name for name in names if hasattr(args, name)} == names
    assert not {name for name in names if hasattr(without, name)}


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
    assert prompt_guidance(args, 2, 5) is None


def test_one_value_or_one_per_stage():
    args = given(
        "--num_inference_steps=30, 20",
        "--guidance_scale=1.5",
        "--sampler=ddpm,heun",
        "--guidance_interval=0:1,0.1:0.9",
        "--s_tmax=inf,9",
    )
    shared = {"guidance_scale": 1.5}
    assert stage_changes(args, 2) == [
        {
            "num_inference_steps": 30,
            "sampler": "ddpm",
            "guidance_interval": (0.0, 1.0),
            "s_tmax": math.inf,
            **shared,
        },
        {"num_inference_steps": 20, "sampler": "heun", "guidance_interval": (0.1, 0.9), "s_tmax": 9.0, **shared},
    ]
    assert prompt_guidance(args, 2, 5) is None


def test_weights_for_all_stages_or_for_each():
    assert weights_choices(given(), 2) == [{"step": None, "kind": None}] * 2
    assert weights_choices(given("--step=30", "--weights=raw"), 2) == [{"step": 30, "kind": "raw"}] * 2
    args = given("--step=30, latest", "--weights=ema,raw")
    assert weights_choices(args, 2) == [{"step": 30, "kind": "ema"}, {"step": None, "kind": "raw"}]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--step=1.5", "--step '1.5'"),
        ("--step=last", "--step 'last'"),
        ("--step=1,2,3", "--step has 3 values for 2 stages"),
        ("--weights=best", "--weights 'best'"),
        ("--weights=raw,", "--weights ''"),
    ],
)
def test_invalid_weights(argument, message):
    with pytest.raises(ConfigError, match=message):
        weights_choices(given(argument), 2)


def test_guidance_per_prompt():
    args = given("--guidance_scale=1.5,3; 2;7,1", "--eta=1")
    np.testing.assert_array_equal(prompt_guidance(args, 2, 3), np.float32([[1.5, 2, 7], [3, 2, 1]]))
    assert stage_changes(args, 2, with_guidance=False) == [{"eta": 1.0}, {"eta": 1.0}]
    # they are no change of a config
    with pytest.raises(ConfigError, match="--guidance_scale has 3 values for 2 stages"):
        stage_changes(args, 2)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--num_inference_steps=1,2,3", "--num_inference_steps has 3 values for 2 stages"),
        ("--num_inference_steps=1.5", "--num_inference_steps '1.5'"),
        ("--num_inference_steps=", "--num_inference_steps ''"),
        ("--eta=much", "--eta 'much'"),
        ("--s_churn=nan", "--s_churn 'nan'"),
        ("--guidance_scale=inf,1", "--guidance_scale 'inf'"),
        ("--guidance_interval=0.05", "--guidance_interval '0.05'"),
        ("--guidance_interval=1:2:3", "--guidance_interval '1:2:3'"),
        ("--oscillating_guidance=1", "--oscillating_guidance '1'"),
        ("--num_inference_steps=4;5", "--num_inference_steps '4;5'"),
        ("--guidance_scale=4;5", "--guidance_scale '4;5'"),
    ],
)
def test_invalid_values(argument, message):
    args = given(argument)
    with pytest.raises(ConfigError, match=message):
        stage_changes(args, 2)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--guidance_scale=1;2", "2 prompts, and there are 3"),
        ("--guidance_scale=1;2;3;", "4 prompts, and there are 3"),
        ("--guidance_scale=1;2,3,4;3", "--guidance_scale has 3 values for 2 stages"),
        ("--guidance_scale=1;much;3", "--guidance_scale 'much'"),
        ("--guidance_scale=1;;3", "--guidance_scale ''"),
        ("--guidance_scale=1;nan;3", "--guidance_scale 'nan'"),
    ],
)
def test_invalid_guidance_per_prompt(argument, message):
    args = given(argument)
    with pytest.raises(ConfigError, match=message):
        prompt_guidance(args, 2, 3)


@pytest.mark.parametrize("fsdp, spatial", [(1, 1), (4, 1), (1, 2), (2, 2)])
def test_sampling_mesh(fsdp, spatial):
    args = given(f"--fsdp={fsdp}", f"--spatial={spatial}")
    assert make_mesh(mesh_axes(args)).shape == {"data": 8 // (fsdp * spatial), "fsdp": fsdp, "spatial": spatial}


def test_sampling_mesh_must_fit_devices():
    args = given("--fsdp=3")
    with pytest.raises(ConfigError, match="mesh data=-1, fsdp=3 does not fit 8 devices"):
        make_mesh(mesh_axes(args))
