"""Runs our network of DeepFloyd IF with adapters from files that PEFT and diffusers wrote, and writes one of ours.

Weights of the network are functions of their names, see `deepfloyd_if/cases.py`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.pipelines.adapters import Adapters
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.adapter import split_adapter
from imagen_jax.stages.lora_files import write_lora
from imagen_jax.stages.stage import build
from tests.goldens.deepfloyd_if.cases import LENGTH, UNETS, params_of, random, stage_of, unet_inputs

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.npz"
NAMES = ("odd widths", "second stage")
SCALE = 0.7
RANK, ALPHA = 2, 3.0
TOLERANCE = 1e-4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")  # as diffusers' scripts name them


def folder(name):
    """Returns the folder of the adapter that diffusers wrote for a network."""
    return HERE / name.replace(" ", "_")


def stage_with(name, path, scale=SCALE):
    """Returns the stage of a network, with the adapter in a file or folder."""
    fields, size, _, second = UNETS[name]
    stage = stage_of(fields, size, second)
    params = params_of(jax.eval_shape(stage.init, jax.random.key(0)))
    return Adapters([TrainedStage(stage, params, 0)]).load(path, scale, "adapter", None).apply(0)


def output(name, path, scale=SCALE):
    """Returns the output of our network with an adapter [B, H, W, 6]."""
    trained = stage_with(name, path, scale)
    z, level, text, low_res, aug_level = unet_inputs(name)
    mask = jnp.ones((len(z), LENGTH), bool)
    levels = [None if values is None else jnp.asarray(values, jnp.float32) for values in (level, aug_level)]
    apply = jax.jit(trained.stage.network.apply)
    return np.asarray(apply({"params": trained.params}, z, levels[0], text, mask, low_res, levels[1]))


def write_ours(name, out):
    """Writes an adapter of ours with random factors, of attention, a convolution and a dense layer."""
    fields, size, _, second = UNETS[name]
    stage = stage_of(fields, size, second)
    targets = ("to_[qkv]$", "to_out_0", "add_[kv]_proj", "resnets_0/conv1$", "resnets_0/time_emb_proj$")
    adapter = {"kind": "lora", "rank": RANK, "alpha": ALPHA, "targets": targets}
    changes = {"training.init_from": "base", **{f"adapter.{key}": value for key, value in adapter.items()}}
    config = stage.config.with_changes(changes)
    shapes = jax.eval_shape(build(config, stage.text_width).init, jax.random.key(0))

    def draw(path, leaf):
        return 0.3 * random(jax.tree_util.keystr(path), leaf.shape)

    factors = jax.tree_util.tree_map_with_path(draw, split_adapter(shapes)[0])
    return write_lora(out, factors, config, "", 1)
