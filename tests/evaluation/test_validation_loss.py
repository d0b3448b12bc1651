"""The validation loss: at the given noise levels, and of each image alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.evaluation.validation_loss import NOISE_LEVELS, make_validation_loss, validation_metrics
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import PromptEncoder, make_encoder
from tests.helpers.configs import FunctionNetwork, base_config, one_device, perturbed_params, sr_config

pytest_plugins = ("tests.helpers.fixtures",)
CAPTIONS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]


def with_network(config, predict):
    """Returns a stage whose network is a function of z, the noise level and the aug. level, both [B, 1, 1, 1]."""

    def apply(params, z, level, text, mask, low_res, aug_level, dropout_keys, known, control, positions):
        assert dropout_keys is None
        assert known is None
        aug_level = None if aug_level is None else aug_level[:, None, None, None]
        return jnp.broadcast_to(predict(z, level[:, None, None, None], aug_level), z.shape)

    return dataclasses.replace(stages.build(config), network=FunctionNetwork(apply))


def validation_loss(stage, images, mesh=None, batch_size=2, params=None):
    mesh = mesh or one_device()
    loss = make_validation_loss(stage, mesh, batch_size)
    encoder = PromptEncoder(make_encoder(stage.config.text), mesh)
    return loss(params, images, encoder.on_host(CAPTIONS[: len(images)], len(images)))


WHITE = np.full((3, 8, 8, 3), 255, np.uint8)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_network_gets_noise_levels(schedule):
    config = base_config(
        **{"diffusion.schedule": schedule, "diffusion.prediction_type": "x", "diffusion.loss_weighting": "simple"}
    )
    losses = validation_loss(with_network(config, lambda z, level, aug_level: level), WHITE)
    np.testing.assert_allclose(losses, np.tile((1 - np.array(NOISE_LEVELS)) ** 2, (3, 1)), rtol=1e-3)


def test_noise_matches_level_and_is_shared():
    """With a known image, eps follows from z exactly; the same eps is used at each level."""
    config = base_config(**{"diffusion.prediction_type": "eps", "diffusion.loss_weighting": "simple"})

    def eps(z, level, aug_level):
        return (z - jnp.cos(level * jnp.pi / 2)) / jnp.sin(level * jnp.pi / 2)

    np.testing.assert_allclose(validation_loss(with_network(config, eps), WHITE), 0, atol=1e-8)
    losses = validation_loss(with_network(config, lambda z, level, aug_level: 0.0), WHITE)
    np.testing.assert_allclose(losses, np.tile(losses[:, :1], len(NOISE_LEVELS)), rtol=1e-5)
    assert len(set(losses[:, 0].tolist())) == 3
    assert losses.mean() == pytest.approx(1, abs=0.15)


def test_aug_level_per_image():
    config = sr_config(**{"diffusion.prediction_type": "x", "diffusion.loss_weighting": "simple"})
    stage = with_network(config, lambda z, level, aug_level: aug_level)
    images = np.full((5, 16, 16, 3), 255, np.uint8)
    losses = validation_loss(stage, images)
    np.testing.assert_allclose(losses, np.tile(losses[:, :1], len(NOISE_LEVELS)), rtol=1e-5)
    levels = 1 - np.sqrt(losses[:, 0])
    assert (levels > 0).all() and (levels < 1).all() and np.ptp(levels) > 0.3
    np.testing.assert_allclose(validation_loss(stage, images[:3], batch_size=64), losses[:3], rtol=1e-5)


def test_independent_of_batch_and_mesh(base_stage):
    params = perturbed_params(base_stage)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    losses = validation_loss(base_stage, images, params=params)
    assert losses.shape == (5, len(NOISE_LEVELS))
    mesh = make_mesh({"data": 2, "fsdp": 2, "spatial": 2})
    np.testing.assert_allclose(validation_loss(base_stage, images, mesh, 16, params), losses, rtol=1e-4)


def test_metrics_are_means_over_images():
    losses = np.stack([np.arange(10.0), np.arange(10.0) + 2])
    metrics = validation_metrics(losses)
    assert list(metrics)[:2] == ["validation_loss_at_noise/0.05", "validation_loss_at_noise/0.15"]
    assert list(metrics.values()) == list(np.arange(10.0) + 1)
