"""Train one stage: ``python -m imagen_jax.train --config=configs/shapes_base.py --workdir=DIR [--config.key=value]``.

Run again with the same workdir, it goes on from the last checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands, processes, sharding
from imagen_jax import stage as stages
from imagen_jax.cascade import place_encoder
from imagen_jax.checkpoints import Checkpoints, open_workdir
from imagen_jax.data.pipeline import training_batches
from imagen_jax.data.sources import make_source
from imagen_jax.grids import save_png
from imagen_jax.training.checks import check_training
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.previews import make_preview
from imagen_jax.training.progress import Progress
from imagen_jax.training.records import NoRecords, Records
from imagen_jax.training.state import abstract_state
from imagen_jax.training.step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", None, "The stage to train, such as configs/shapes_base.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "The stage's folder: checkpoints, config, metrics, previews.")


def main() -> None:
    """Trains the stage of the flags."""
    config = commands.required_config(CONFIG.value)
    train(config, Path(commands.required(WORKDIR.value, "workdir", "runs/base")))


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Trains a stage, from its last checkpoint or from nothing, to its last step. Raises UsageError at the start."""
    training = config.training
    check_training(config)
    mesh = sharding.make_mesh(config.mesh)
    stage = stages.build(config)

    source = make_source(config.data, config.data.split, config.image_size)
    batches = training_batches(
        source,
        tokenize=stage.encoder.tokenize.one,
        channels=config.channels,
        batch_size=training.batch_size,
        seed=config.seed,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        rows=sharding.own_rows(training.batch_size, mesh),
    )

    optimizer = make_optimizer(config.optimizer)
    abstract, init_state = abstract_state(stage.init, optimizer, config.seed, mesh, config.sharding_rules)
    encoder_params = place_encoder(stage, mesh)
    train_step = make_train_step(stage, optimizer, abstract, mesh)
    preview = make_preview(stage, mesh)

    open_workdir(workdir, config)
    checkpoints = Checkpoints(workdir, keep=training.keep_checkpoints)
    if checkpoints.latest_step is None:
        state = init_state()
    else:
        state, position = checkpoints.restore(abstract)
        batches.set_state(position)

    first = int(state.step)
    records = Records(workdir, first) if processes.writes() else NoRecords()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    records.log(
        f"{'resumed' if first else 'started'} at step {first}: {count:,} parameters, {mesh.size} device(s) of "
        f"{jax.process_count()} process(es)"
    )
    progress = Progress(workdir.name, first, training.steps, training.batch_size, training.log_every, records)

    for step in range(first + 1, training.steps + 1):
        batch = sharding.put_batch(next(batches), mesh)
        state, metrics = train_step(state, encoder_params, batch)
        progress.step(step, metrics)
        if step % training.preview_every == 0 or step == training.steps:
            grid, measured = preview(state.ema_params, encoder_params)
            records.scalars(step, measured)
            if processes.writes():
                save_png(grid, workdir / "previews" / f"{step:08d}.png")
                records.image(step, "preview", np.asarray(grid))
        if step % training.save_every == 0:
            checkpoints.save(state, batches.get_state(), config)

    progress.close()
    checkpoints.save(state, batches.get_state(), config)
    checkpoints.close()
    records.log(f"done at step {int(state.step)}")
    records.close()
    print(f"{workdir}: trained to step {int(state.step)}; previews, loss.png, diagnostics.png and log.txt are there")


if __name__ == "__main__":
    commands.run(main, several_processes=True)
