"""Train a stage on shapes that are red 90% of the time, and balance it: `python -m benchmarks.fairness`.

The table of docs/fairness.md: how often a shape is red when its prompt names no color. Both runs read the same folder
of images; one draws its records as they come, the other evenly by their column `color` (`data.balance`).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import flags

from benchmarks import app
from configs import shapes_base
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.config.load import default_config, load_config
from imagen_jax.datasets.shapes.captions import sample_caption
from imagen_jax.datasets.shapes.descriptions import Claim, Description
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import DEFAULT_BACKGROUND, SIZES, Scene, SceneObject
from imagen_jax.evaluation.fairness.data_shares import data_shares
from imagen_jax.evaluation.fairness.groups import parse_groups, parse_target
from imagen_jax.evaluation.fairness.judges import shapes_judge
from imagen_jax.evaluation.fairness.measure import measure, open_prompts
from imagen_jax.evaluation.prompts.benchmark import benchmark_texts, read_benchmark, sample_benchmark
from imagen_jax.images.grid import save_png
from imagen_jax.io.json_lines import write_json_lines
from imagen_jax.io.paths import as_path
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import make_texts
from imagen_jax.training.loop import train

COLORS = {"red": 0.9, "blue": 0.1}  # shares of the data
SHAPES = ("circle", "square", "cross")
IMAGES = 20_000
STEPS = 4000
# few steps draw what is frequent too often, and so does guidance: the first row has neither
SAMPLING: dict[str, dict[str, Any]] = {
    "24 of ddim, 1": {"sampler": "ddim", "num_inference_steps": 24, "guidance_scale": 1.0},
    "8 of ddpm, 1.5": {},  # those of the config
}
_NAMED = 0.5  # share of captions that name the color
_RESOLUTION = 32
_SEED = 5
_COLUMN = "color"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "out", "runs/fairness", "A folder for data, runs and results.")
    flags.DEFINE_string("rows", "as_it_is,balanced", "Stages to train, separated by commas.", flag_values=values)
    flags.DEFINE_integer("steps", STEPS, "Steps of each run.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("images", 400, "Images of each of six prompts.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Trains both stages, and prints the table."""
    out = as_path(args.out)
    data = write_data(out / "data")
    print("| stage | steps, guidance | images | red | 95% interval | training draws | neither |")
    print("|---|---|---|---|---|---|---|")
    for name in args.rows.split(","):
        start = time.perf_counter()
        config = make_config(data, name == "balanced", args.steps)
        train(config, out / name)
        seconds = time.perf_counter() - start
        print(f"{name} is trained: {seconds:.0f} s", file=sys.stderr)
        for number, (settings, sampling) in enumerate(SAMPLING.items()):
            result = _measure(config, out / name, out / f"{name}_images_{number}", sampling, args.images)
            red, none = result["groups"]["red"], result["none"]
            share = result["data"]["training"]["shares"]["red"]
            interval = f"{red['low']:.1%} – {red['high']:.1%}"
            figures = f"{none['of']} | {red['rate']:.1%} | {interval} | {share:.1%} | {none['images']}"
            print(f"| {name} | {settings} | {figures} |", flush=True)


def _measure(
    config: ml_collections.ConfigDict, stage: Path, out: Path, sampling: dict[str, Any], images: int
) -> dict[str, Any]:
    """Returns the shares of colors among images of prompts that name none, see `fairness.measure`."""
    groups = parse_groups(",".join(COLORS))
    pipeline = ImagenPipeline.from_pretrained([stage], sampling=[sampling])
    pipeline.set_progress_bar_config(disable=True)
    prompts = open_prompts([f"a {size} {shape}" for shape in SHAPES for size in SIZES], groups)
    request = SampleRequest(make_texts(benchmark_texts(prompts, images)), batch_size=64)
    sample_benchmark(pipeline, prompts, request, out, images)
    data = data_shares(load_config(config), groups, _COLUMN)
    judge = shapes_judge(groups)
    return measure(read_benchmark(out), groups, judge, "shapes", parse_target(None, groups), data)


def write_data(folder: Path) -> Path:
    """Writes images of one shape in the middle, with captions and the color as a column; returns the folder."""
    if (folder / "metadata.jsonl").exists():
        return folder
    rng = np.random.default_rng(_SEED)
    # exact shares, in random order
    counts = [round(share * IMAGES) for share in COLORS.values()]
    colors = rng.permutation(np.repeat(list(COLORS), counts))
    rows = []
    for index, color in enumerate(colors.tolist()):
        shape, size = str(rng.choice(SHAPES)), str(rng.choice(list(SIZES)))
        scene = Scene((SceneObject(shape, color, size, 0.5, 0.5, rng.uniform(*SIZES[size])),), DEFAULT_BACKGROUND)
        claim = Claim(color=color if rng.random() < _NAMED else "", shape=shape, size=size)
        name = f"{index:05d}.png"
        save_png(render(scene, _RESOLUTION), folder / name)
        rows.append({"file_name": name, "text": sample_caption(Description((claim,)), rng), _COLUMN: color})
    write_json_lines(folder / "metadata.jsonl", rows)
    return folder


def make_config(data: Path, balanced: bool, steps: int) -> ml_collections.ConfigDict:
    """Returns the config of a base stage like that of the demo."""
    config = shapes_base.get_config()
    config.data = default_config(source="folder").data
    config.data.update(path=str(data), validation_fraction=0.01, threads=2, prefetch=512)
    if balanced:
        config.data.balance = {"column": _COLUMN, "weights": ()}
    config.training.update(steps=steps, save_every=1000, preview_every=steps)
    return config


if __name__ == "__main__":
    app.main(__name__)
