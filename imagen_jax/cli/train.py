"""Train one stage: `imagen train --config=configs/shapes_base.py --workdir=DIR [--config.key=value …]`.

Run again with the same workdir, it resumes from the last checkpoint. SIGTERM or Ctrl-C save the current step and end
the run with exit code 0; a second signal ends it at once.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_path

SEVERAL_PROCESSES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_config(values, "The stage to train, such as configs/shapes_base.py.")
    define_path(values, "workdir", None, "The stage's folder: checkpoints, config, metrics, previews.")


def run(args: CommandFlags) -> None:
    """Trains the stage, and prints what was done."""
    from imagen_jax.training.goodput import Clock
    from imagen_jax.training.loop import train
    from imagen_jax.training.preemption import stop_on_signals

    config = args.load_config()
    workdir = args.required("workdir", "runs/base")
    with stop_on_signals() as stop:
        result = train(config, workdir, stop=stop, clock=Clock.of_process())
    print(result.summary())
