"""The traps that public implementations of Imagen fell into, each with tests that keep this one out of it.

A test carries the marker `trap("NAME")` for each trap that it guards against.
"""

import ast
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion.process import prediction_target
from imagen_jax.evaluation.cascade_metrics import color_drift
from imagen_jax.stages import stage as stages
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request
from imagen_jax.stages.text import PromptEncoder, make_encoder
from tests.helpers.configs import ROOT, FunctionNetwork, one_device, sr_config

TRAPS = {
    "uniform noise": "uniform instead of Gaussian noise",
    "percentile as a fraction": "a percentile of 0.95 taken as 0.95%",
    "augmentation level 0": "an augmentation level of always 0 in sampling",
    "shared noise": "the same noise for the image and for its low-resolution condition",
    "EMA swapped into parameters": "EMA weights that the checkpoint loader swaps into the raw ones",
    "half of the captions dropped": "a text dropout of 0.5 by default",
    "color tint": "color tints and checkerboards in super-resolution, from predictions of eps",
    "text padding": "padding of the text that reaches the pooled embedding",
    "NaN in batches": "NaN in batches of more than one",
    "float16 overflow": "float16 that overflows in attention",
}


def marked_traps():
    """Returns the trap names of the markers of all tests."""
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for marker in function.decorator_list:
                    if isinstance(marker, ast.Call) and getattr(marker.func, "attr", "") == "trap":
                        names |= {argument.value for argument in marker.args}
    return names


def test_every_trap_has_tests():
    assert marked_traps() == set(TRAPS)


DEVIATION, ERROR = 0.3, 0.02


def tint(prediction_type):
    """Returns the tint by channel of super-resolved images, for a red error ERROR in all predictions of a type.

    Apart from this error the network is exact, for images with independent Gaussian pixels: it estimates colors from
    z_t, so that errors made at high noise persist.
    """

    def apply(params, z, level, *inputs, **settings):
        alpha, sigma = (f(level * jnp.pi / 2)[:, None, None, None] for f in (jnp.cos, jnp.sin))
        x = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * z
        return prediction_target(x, (z - alpha * x) / sigma, alpha, sigma, prediction_type) + params["params"]

    config = sr_config(
        **{
            "diffusion.prediction_type": prediction_type,
            "sampling.sampler": "ddim",
            "sampling.num_inference_steps": 16,
        }
    )
    stage = dataclasses.replace(stages.build(config), network=FunctionNetwork(apply))
    sampler, encoder = StageSampler(stage, one_device()), PromptEncoder(make_encoder(config.text), one_device())
    low_res = np.full((4, 8, 8, 3), 128, np.uint8)
    request = make_request(stage, encoder, [""] * 4, NoiseSource(stage_index=1), low_res)
    tinted, exact = (sampler.sample_uint(jnp.array([red, 0.0, 0.0]), request, 4) for red in (ERROR, 0.0))
    return np.abs(color_drift(tinted, exact).mean(axis=0)) / 127.5


@pytest.mark.trap("color tint")
def test_v_prediction_does_not_amplify_tint():
    """Predictions of eps amplify an error several times: it is divided by alpha, which is small at high noise."""
    (red_v, *others_v), (red_eps, *others_eps) = tint("v"), tint("eps")
    assert ERROR / 2 < red_v < ERROR
    assert red_eps > 2 * ERROR
    assert others_v == others_eps == [0, 0]
