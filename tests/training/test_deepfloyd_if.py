"""A stage with DeepFloyd IF's network is trained, resumed and fine-tuned like any other."""

import jax
import numpy as np
import pytest

from imagen_jax.stages import stage as stages
from imagen_jax.text.encoder import random_encoder
from imagen_jax.training.diffusion import make_diffusion_batch
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from tests.helpers.configs import if_config, one_device, restored

STEPS = 4


def config_for(**changes):
    return if_config(**{"training.steps": STEPS, "training.save_every": 2, "training.preview_every": 99, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("if") / "second"
    train(config_for(), folder)
    return folder


def state_of(folder):
    return restored(folder, config_for(), one_device())[0]


def test_times_are_those_of_the_discrete_process():
    """Both losses are taken at noise levels that IF knows, and its low-resolution images have such levels too."""
    stage = stages.build(config_for())
    encoder = random_encoder(0, 24, padding="encoded")
    tokens, mask = encoder.tokenize(["a red circle"] * 64)
    batch = {"image": np.zeros((64, 16, 16, 3), np.uint8), "tokens": tokens, "mask": mask}
    examples = jax.jit(lambda key: make_diffusion_batch(stage, encoder, encoder.params, batch, key))(jax.random.key(0))
    for indices in (np.asarray(examples.t) * 1000 - 1, np.asarray(examples.condition["aug_level"])):
        np.testing.assert_allclose(indices, np.round(indices), atol=1e-3)
        assert -0.001 <= indices.min() < 100 and 900 < indices.max() <= 999.001
    assert examples.condition["low_res"].shape == (64, 16, 16, 3)
    # the noise of augmentation is not enlarged: neighbors are independent
    noise = np.asarray(examples.condition["low_res"])[indices > 900][..., 0]
    noise -= noise.mean(axis=(1, 2), keepdims=True)
    assert abs(np.mean(noise[:, :, 1:] * noise[:, :, :-1])) < 0.05 * noise.var()


def test_it_trains(folder):
    losses = [line for line in read_metrics(folder) if "loss" in line]
    assert len(losses) == STEPS and all(np.isfinite(line["loss"]) for line in losses)
    assert all(line["bound_bits"] > 0 for line in losses)


@pytest.mark.slow  # two more runs, and the loop does not know the network
def test_resumed_run_is_the_unbroken_run(folder, tmp_path):
    train(config_for(**{"training.steps": 2}), tmp_path / "second")
    train(config_for(), tmp_path / "second")
    for leaf, other in zip(
        jax.tree.leaves(state_of(folder)), jax.tree.leaves(state_of(tmp_path / "second")), strict=True
    ):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.slow
def test_one_device_trains_what_eight_train(folder, tmp_path):
    """Up to the rounding of sums, which Adam's first steps amplify where gradients are nearly zero."""
    train(config_for(**{"mesh.data": 2, "mesh.fsdp": 4}), tmp_path / "split")
    losses = [[line["loss"] for line in read_metrics(path) if "loss" in line] for path in (folder, tmp_path / "split")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
