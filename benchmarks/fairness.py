"""Train a stage on shapes that are red 90% of the time, and balance it: `python -m benchmarks.fairness`.

The table of docs/fairness.md: how often a shape is red when its prompt names no color. Both runs read the same folder
of images; one draws its records as they come, the other evenly by their column `color` (`data.balance`).
"""

from __future__ import annotations

import time
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags

from benchmarks import app
from configs import shapes_base
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.config.load import default_config
from imagen_jax.datasets.shapes.captions import sample_caption
from imagen_jax.datasets.shapes.descriptions import Claim, Description
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import DEFAULT_BACKGROUND, SIZES, Scene, SceneObject
from imagen_jax.images.grid import save_png
from imagen_jax.io.json_lines import write_json_lines
from imagen_jax.io.paths import as_path
from imagen_jax.training.loop import train

COLORS = {"red": 0.9, "blue": 0.1}  # shares of the data
SHAPES = ("circle", "square", "cross")
IMAGES = 20_000
_NAMED = 0.5  # share of captions that name the color
_RESOLUTION = 32
_SEED = 5
_COLUMN = "color"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "out", "runs/fairness", "A folder for data, runs and results.")
    flags.DEFINE_integer("steps", 6000, "Steps of each run.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Trains both stages, and prints the table."""
    out = as_path(args.out)
    data = write_data(out / "data")
    for name, balanced in (("as_it_is", False), ("balanced", True)):
        start = time.perf_counter()
        train(make_config(data, balanced, args.steps), out / name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


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
