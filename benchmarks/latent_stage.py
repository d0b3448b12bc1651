"""Train a stage in latents and one in pixels for the same time, and compare: `python -m benchmarks.latent_stage`.

The table of docs/latents.md: alignment of samples to held-out captions, images a second in training, memory of the
training step, and how far decoded colors are from those of the images. The codec is trained first, or taken from
`--codec`; its time is given by itself. Rates are measured in a short run of each stage, which also compiles it, and
decide how many steps fill the time.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import EvaluationConfig, StageConfig
from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.evaluation.codec_previews import reconstruction_metrics
from imagen_jax.evaluation.evaluate import evaluate
from imagen_jax.images.array import to_float, to_uint
from imagen_jax.io.paths import as_path
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.planning.programs import train_program
from imagen_jax.stages.text import make_encoder
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics

_STAGES = {"pixels": "configs/shapes_base.py", "latents": "configs/shapes_latent.py"}
_RATE_STEPS, _LOG_EVERY = 75, 25


@dataclasses.dataclass(frozen=True)
class Row:
    """What is measured of a stage."""

    name: str
    parameters: int
    rate: float
    steps: int
    megabytes: float
    aligned: float


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "out", "runs/latent_stage", "A folder for the runs.")
    define_path(values, "codec", "", "The run of a trained codec; empty to train one.")
    flags.DEFINE_integer("codec_steps", 3000, "Steps of the codec.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 300, "Training time of each stage.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("samples", 256, "Captions to sample.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the table."""
    out, codec = as_path(args.out), as_path(args.codec) if args.codec else None
    if codec is None:
        codec, start = out / "codec", time.monotonic()
        config = load_config("configs/shapes_codec.py", {"training.steps": args.codec_steps})
        train(config.with_changes({"reconstruction.disc_start": args.codec_steps // 2}), codec)
        print(f"codec: {args.codec_steps} steps in {time.monotonic() - start:.0f} s")
    rows = []
    for name, file in _STAGES.items():
        config = load_config(file)
        if config.codec.has_latents:
            config = config.with_changes({"codec.path": str(codec)})
        rows.append(_measure(name, config, out / name, args.seconds, args.samples))
    for name, value in _reconstruction(out / "latents", args.samples).items():
        print(f"{name} {value:.3f}")
    print("| | parameters | images/s in training | steps | memory of a step, MB | fully correct |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        figures = f"{row.parameters:,} | {row.rate:.0f} | {row.steps} | {row.megabytes:.0f} | {row.aligned:.1%}"
        print(f"| {row.name} | {figures} |")


def _measure(name: str, config: StageConfig, folder: Path, seconds: float, samples: int) -> Row:
    """Trains a stage for a time, and returns its row."""
    short = {"training.steps": _RATE_STEPS, "training.log_every": _LOG_EVERY, "optimizer.warmup_steps": 1}
    train(config.with_changes(short), folder.with_name(f"{name}_rate"))
    logged = [line["images_per_second"] for line in read_metrics(folder.with_name(f"{name}_rate")) if "loss" in line]
    rate = statistics.median(logged[-2:])
    steps = max(1, int(seconds * rate / config.training.batch_size))
    train(config.with_changes({"training.steps": steps, "training.preview_every": steps}), folder)
    evaluation = load_config("configs/shapes_eval.py", {"num_samples": samples}, schema=EvaluationConfig)
    scores = evaluate(ImagenPipeline.from_pretrained(folder), evaluation)
    assert scores is not None
    assert scores.scores is not None
    aligned = scores.scores["all"]["rate"]
    program = train_program(config, make_mesh(config.mesh.axes), make_encoder(config.text))
    memory = program.lower().compile().memory_analysis()
    assert memory is not None
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return Row(name, program.num_params, rate, steps, total / 1e6, aligned)


def _reconstruction(folder: Path, count: int) -> dict[str, float]:
    """Returns how far held-out images are from what the codec of a stage makes of them."""
    trained = ImagenPipeline.from_pretrained(folder, text_encoder=False).stages[0]
    config, stage = trained.stage.config, trained.stage
    images, _ = first_examples(make_examples(config.data, "held_out", config.image_hw, config.channels), count)

    @jax.jit
    def through(params: object, batch: jax.Array) -> jax.Array:
        return to_uint(stage.decode(params, stage.encode(params, to_float(batch))), images.dtype)

    parts = [np.asarray(through(trained.params, images[first : first + 16])) for first in range(0, count, 16)]
    return reconstruction_metrics(images, np.concatenate(parts))


if __name__ == "__main__":
    app.main(__name__)
