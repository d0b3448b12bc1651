"""Measure the compile time of the presets' training steps with and without scanned blocks.

`python -m benchmarks.compile_time` compiles for one local device, with narrow networks and a small text encoder:
compile time depends on the number of operations, not on their sizes. Prints a table with the operations of the
StableHLO program and the CPU seconds of tracing and compiling. `--only=sr_256` selects presets by part of their names.
"""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import app
from benchmarks.presets import configs
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.schema import NetworkKeys, StageConfig
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import make_encoder
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import Frozen, abstract_state
from imagen_jax.training.step import make_train_step

CHANNELS = 64


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_string("only", "", "Part of the names of the presets to compile.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Compiles the presets and prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    print("| config | scanned blocks | operations | tracing, s | compiling, s |", "|---|---|---|---|---|", sep="\n")
    for name in configs():
        if ":" not in name and args.only in name:
            for scan_blocks in (True, False):
                print(_row(name, configs()[name], scan_blocks), flush=True)


def _narrow(config: StageConfig, scan_blocks: bool) -> StageConfig:
    """Returns a preset with fewer channels, a batch of one image and a small text encoder."""
    assert isinstance(config.model, NetworkKeys)
    changes = {
        "model.head_channels": config.model.head_channels * CHANNELS // config.model.channels,
        "model.channels": CHANNELS,
        "model.scan_blocks": scan_blocks,
        "text.model": "random",
        "training.batch_size": 1,
    }
    return config.with_changes(changes)


def _lower_train_step(config: StageConfig) -> jax.stages.Lowered:
    """Lowers the training step of a config for one device, without allocating arrays."""
    encoder, mesh = make_encoder(config.text), make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])
    stage, optimizer = stages.build(config, encoder.width), make_optimizer(config.optimizer, config.training.steps)
    abstract, _ = abstract_state(stage.init, optimizer, config.seed, mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *config.training_hw, config.channels), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((1, config.text.length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, config.text.length), bool),
    }
    encoder_params = sharding.with_shardings(encoder.shapes, mesh)
    step: Any = make_train_step(DiffusionObjective(stage, encoder), config, optimizer, abstract, mesh)
    return step.lower(abstract, Frozen(encoder_params), batch)


def _row(name: str, config: StageConfig, scan_blocks: bool) -> str:
    """Returns a row of the table, with CPU times, which hardly depend on the load of the machine."""
    start = time.process_time()
    lowered = _lower_train_step(_narrow(config, scan_blocks))
    traced = time.process_time()
    lowered.compile()
    operations = len(re.findall(r" = \S*stablehlo\.", lowered.as_text()))
    seconds = f"{traced - start:.0f} | {time.process_time() - traced:.0f}"
    return f"| `{name}` | {'yes' if scan_blocks else 'no'} | {operations:,} | {seconds} |"


if __name__ == "__main__":
    app.main(__name__)
