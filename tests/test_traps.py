"""The traps that public implementations of Imagen fell into, and the tests that keep this one out of each."""

import ast
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import prediction_target
from imagen_jax.evaluation.cascade_metrics import color_drift
from imagen_jax.stages import stage as stages
from imagen_jax.stages.sampling import StageSampler
from imagen_jax.stages.stage import load_encoder_params
from tests.helpers.configs import ROOT, FunctionNetwork, one_device, sr_config

TRAPS = {
    "uniform instead of Gaussian noise": [
        "tests/diffusion/test_samplers.py::test_noise_is_gaussian",
        "tests/training/test_step.py::test_the_noise_of_the_condition_is_not_that_of_the_image",
        "tests/test_cascade.py::test_aug_noise_at_sampling",
    ],
    "a percentile of 0.95 taken as 0.95%": [
        "tests/diffusion/test_guidance.py::test_dynamic_threshold_divides_by_the_percentile",
        "tests/diffusion/test_guidance.py::test_invalid_percentile_raises",
        "tests/test_configs.py::test_a_percentile_is_in_per_cent",
    ],
    "an augmentation level of always 0 at sampling": [
        "tests/test_cascade.py::test_aug_noise_at_sampling",
        "tests/test_cascade.py::test_sr_depends_on_low_res_and_its_noise",
        "tests/test_cascade.py::test_sampling_settings_per_stage",
        "tests/test_configs.py::test_super_resolution_adds_the_noise_at_sampling_that_it_learned_to_see_through",
        "tests/training/test_step.py::test_augmentation_levels_are_spread_over_all_that_the_config_says",
    ],
    "the same noise for the image and for its low-resolution condition": [
        "tests/training/test_step.py::test_the_noise_of_the_condition_is_not_that_of_the_image",
        "tests/test_cascade.py::test_aug_noise_at_sampling",
    ],
    "EMA weights swapped into the raw ones by the checkpoint loader": [
        "tests/test_checkpoints.py::test_the_raw_parameters_are_not_the_average",
        "tests/test_checkpoints.py::test_sampling_reads_the_average_and_nothing_else",
        "tests/training/test_resume.py::test_training_moved_parameters_and_the_average_apart",
        "tests/test_cascade.py::test_sampling_leaves_stage_folders_unchanged",
    ],
    "half of all captions dropped by default": [
        "tests/test_configs.py::test_captions_are_dropped_often_enough_to_guide_and_seldom_enough_to_matter",
        "tests/training/test_step.py::test_a_dropped_caption_is_replaced_in_text_and_mask",
    ],
    "colour tints from predictions of eps in super-resolution, and checkerboards": [
        "tests/test_traps.py::test_a_network_that_is_off_tints_pictures_no_more_than_that_if_it_predicts_v",
        "tests/test_configs.py::test_super_resolution_does_not_predict_the_noise",
        "tests/test_measures.py::test_a_tint_is_measured_by_picture_and_channel",
        "tests/models/test_unets.py::test_constant_image_has_no_checkerboard",
    ],
    "T5's padding leaking into the pooled vector": [
        "tests/models/test_layers.py::test_padding_has_no_effect",
        "tests/models/test_unets.py::test_depends_on_text_but_not_on_padding",
        "tests/models/test_t5.py::test_padding_has_no_effect",
        "tests/text/test_encoder.py::test_padding_has_no_effect",
    ],
    "NaN at batches of more than one": [
        "tests/training/test_step.py::test_a_whole_batch_in_bfloat16_is_finite",
        "tests/models/test_unets.py::test_dropped_text_is_finite_at_any_length",
        "tests/models/test_unets.py::test_examples_are_independent",
    ],
    "float16 that overflows in attention": [
        "tests/models/test_layers.py::test_bfloat16_attention_is_finite",
        "tests/models/test_layers.py::test_softmax_is_float32",
        "tests/test_stage.py::test_a_config_that_cannot_work_is_refused",
    ],
}


@functools.cache
def functions_of(file):
    """The names of all functions of a file, in classes too."""
    return {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("named", TRAPS.values(), ids=TRAPS)
def test_every_trap_has_its_tests(named):
    for place in named:
        file, name = place.split("::")
        assert name in functions_of(file), f"{place} is gone: name what has taken its place"


DEVIATION, OFF = 0.3, 0.02


def tint(kind):
    """How much a red error OFF of all predictions of a kind tints super-resolved pictures, by channel.

    But for this error the network is right, of pictures whose pixels are Gaussians by themselves: it takes colours from
    what it sees, so that an error made in much noise stays.
    """

    def apply(params, z, level, *inputs, **settings):
        alpha, sigma = (f(level * jnp.pi / 2)[:, None, None, None] for f in (jnp.cos, jnp.sin))
        x = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * z
        return prediction_target(x, (z - alpha * x) / sigma, alpha, sigma, kind) + params["params"]

    config = sr_config(**{"diffusion.prediction_type": kind, "sampling.sampler": "ddim", "sampling.num_inference_steps": 16})
    stage = dataclasses.replace(stages.build(config), network=FunctionNetwork(apply))
    sampler, encoder = StageSampler(stage, one_device(), stage_index=1), load_encoder_params(stage, one_device())
    low_res = np.full((4, 8, 8, 3), 128, np.uint8)
    off, right = (sampler.sample(jnp.array([red, 0.0, 0.0]), encoder, [""] * 4, 0, 0, low_res) for red in (OFF, 0.0))
    return np.abs(color_drift(off, right).mean(axis=0)) / 127.5


def test_a_network_that_is_off_tints_pictures_no_more_than_that_if_it_predicts_v():
    """Predictions of eps tint them several times as much: divided by alpha, in much noise an error becomes large."""
    (of_v, *others), (of_eps, *others_of_eps) = tint("v"), tint("eps")
    assert OFF / 2 < of_v < OFF
    assert of_eps > 2 * OFF
    assert others == others_of_eps == [0, 0]
