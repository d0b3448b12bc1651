"""What compiling the presets' training steps takes, blocks repeated or not: ``python -m benchmarks.compile_time``.

For one device of this machine, of narrower networks with a small text encoder: time goes by operations, not by numbers.
Prints a table of operations of the program that XLA is given and of the CPU's seconds in tracing and in compiling it.
``--only=sr_256`` takes the presets with that in their names.
"""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags

from benchmarks.presets import configs
from imagen_jax.parallel import sharding
from imagen_jax.stages import stage as stages
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step

ONLY = flags.DEFINE_string("only", "", "Part of the names of the presets to take.")
CHANNELS = 64


def narrow(config: ml_collections.ConfigDict, scan_blocks: bool) -> ml_collections.ConfigDict:
    """A preset with fewer channels, for one image and without its text encoder."""
    config.model.head_channels = config.model.head_channels * CHANNELS // config.model.channels
    config.model.update(channels=CHANNELS, scan_blocks=scan_blocks)
    config.text.model = "random"
    config.training.batch_size = 1
    return config


def lowered(config: ml_collections.ConfigDict) -> jax.stages.Lowered:
    """The training step of a config for one device; nothing is allocated."""
    stage, mesh = stages.build(config), sharding.make_mesh({"data": 1, "fsdp": 1, "spatial": 1}, jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer)
    abstract, _ = abstract_state(stage.init, optimizer, config.seed, mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((1, *stage.image_shape), jnp.uint8),
        "tokens": jax.ShapeDtypeStruct((1, config.text.length), jnp.int32),
        "mask": jax.ShapeDtypeStruct((1, config.text.length), bool),
    }
    encoder_params = sharding.abstract_sharded(stage.encoder.shapes, mesh)
    step: Any = make_train_step(stage, optimizer, abstract, mesh)
    return step.lower(abstract, encoder_params, batch)


def row(name: str, config: ml_collections.ConfigDict, scan_blocks: bool) -> str:
    """A program's line of the table. Time is the CPU's, which hardly depends on what else the machine does."""
    start = time.process_time()
    program = lowered(narrow(config, scan_blocks))
    traced = time.process_time()
    program.compile()
    operations = len(re.findall(r" = \S*stablehlo\.", program.as_text()))
    seconds = f"{traced - start:.0f} | {time.process_time() - traced:.0f}"
    return f"| `{name}` | {'yes' if scan_blocks else 'no'} | {operations:,} | {seconds} |"


def main(_: list[str]) -> None:
    """Prints the table."""
    jax.config.update("jax_enable_compilation_cache", False)
    print("| config | blocks repeated | operations | tracing, s | compiling, s |", "|---|---|---|---|---|", sep="\n")
    for name in configs():
        if ":" not in name and ONLY.value in name:
            for scan_blocks in (True, False):
                print(row(name, configs()[name], scan_blocks), flush=True)


if __name__ == "__main__":
    app.run(main)
