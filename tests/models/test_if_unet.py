"""DeepFloyd IF's network and process against those of diffusers, in golden.npz, and as a network like any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config.schema import StageConfig
from imagen_jax.diffusion.schedules import discrete_cosine, discrete_index
from imagen_jax.errors import ConfigError
from imagen_jax.models.if_unet import _TextNorm
from imagen_jax.stages.stage import make_network, network_arguments
from tests.goldens.deepfloyd_if import cases

FAST = {"one block a level", "odd widths", "second stage, odd", "fast27", "second stage, fast27"}


@functools.cache
def goldens():
    with np.load(cases.GOLDEN) as arrays:
        return dict(arrays)


def each(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", each(cases.UNETS))
def test_networks_match_diffusers(name):
    golden = goldens()[name]
    assert golden.shape[-1] == 6 and np.abs(golden).max() > 0.5
    np.testing.assert_allclose(cases.unet(name), golden, rtol=0, atol=cases.UNET_TOLERANCE)


@pytest.mark.parametrize("name", each(cases.WALKS))
def test_pipelines_match_diffusers(name):
    golden = goldens()[f"walk {name}"]
    assert golden.std() > 0.3
    ours = cases.walk(name, goldens()["tokens"], goldens()["mask"])
    np.testing.assert_allclose(ours, golden, rtol=0, atol=cases.WALK_TOLERANCE)


def test_noise_levels_match_diffusers():
    alphas_cumprod = goldens()["alphas_cumprod"].astype(np.float64)
    schedule, times = discrete_cosine(), np.arange(1, 1001) / np.float32(1000)
    ours = np.asarray(schedule.alpha(times), np.float64) ** 2
    np.testing.assert_allclose(ours, alphas_cumprod, rtol=2e-5)
    np.testing.assert_array_equal(discrete_index(schedule.logsnr(times)), np.arange(1000))
    np.testing.assert_array_equal(schedule.round_up(jnp.float32([0, 0.0004, 0.5, 0.99999])) * 1000, [1, 1, 500, 1000])


def shapes_of(**changes):
    sizes = {"image_size": 256, "low_res_size": 64} if changes.pop("second", False) else {"image_size": 64}
    model = {"network": "if_unet", **changes}
    config = StageConfig().with_changes(
        {"model": model, "text.length": 77, "text.padding": "encoded", "diffusion.variance_type": "learned", **sizes}
    )
    arguments = network_arguments(config, 4096, config.image_hw)
    return jax.eval_shape(make_network(config).init, jax.random.key(0), *arguments)["params"]


@pytest.mark.parametrize(
    "changes, millions",
    [
        ({"widths": (192, 384, 576, 768), "text_dim": 768}, 371.6),
        ({"widths": (320, 640, 960, 1280), "text_dim": 1280}, 935.4),
        ({}, 4304.7),
        (
            {
                "widths": (160, 320, 640, 960, 1280),
                "num_res_blocks": (2, 2, 3, 5, 5),
                "attention": (False, False, False, True, True),
                "text_dim": 1280,
                "cond_dim": 1280,
                "second": True,
            },
            1243.3,
        ),
    ],
    ids=["I-M", "I-L", "I-XL", "II-L"],
)
def test_parameter_counts_are_those_of_the_public_weights(changes, millions):
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes_of(**changes))) / 1e6, 1) == millions


def test_short_text_is_normalized_exactly():
    """Padding is nearly constant: a variance that is a difference of squares would be noise."""
    padding = 10 + cases.random("padding", (1, 1, 32)).repeat(2, axis=-1)
    text = padding + 1e-2 * cases.random("text", (2, cases.LENGTH, 64))
    norm = _TextNorm()
    ours = norm.apply(norm.init(jax.random.key(0), text), text)
    groups = text.astype(np.float64).reshape(2, cases.LENGTH, 32, 2)
    mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
    np.testing.assert_allclose(ours, ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(text.shape), atol=2e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.num_res_blocks": (1,)}, "model.num_res_blocks has 1 entries for the 2 levels of model.widths"),
        ({"model.attention": (True,)}, "model.attention has 1 entries for the 2 levels of model.widths"),
        ({"model.head_channels": 12}, "model.head_channels 12 does not divide the 32 channels of a level"),
        ({"image_size": 15}, "image_size 15 is not a multiple of 2, as the 2 levels of model.widths need"),
        ({"model.text_dim": 40}, "model.text_dim"),
        ({"model.num_groups": 3}, "model.num_groups 3 does not divide the 16 channels of a level"),
        ({"text.padding": "zero"}, "text.padding 'zero'"),
    ],
)
def test_wrong_fields_are_refused(changes, message):
    config = cases.stage_of(cases.TINY, (16, 16), False).config
    with pytest.raises(ConfigError, match=message):
        config.with_changes(changes)
