"""Measure how fast one core reads examples: `python -m benchmarks.input_speed --rate=50`. Nothing is trained.

For each kind of data source and each image size it decodes, resizes and crops images in one thread, and prints images
per second of CPU time, and the number of cores that a host needs whose 8 chips train on `--rate` images/s each. For
each preset of the paper it reads training examples and prints the bytes of images that devices receive in a step.

The image files are made in a temporary folder: smooth colors with grain, so that a JPEG has as many bytes per pixel as
a photograph (a third of a byte at quality 90). "fitted" files are a third larger than the size they are read at; the
others have 3 megapixels, the least of a camera.
"""

from __future__ import annotations

import math
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from benchmarks import app
from configs import folder_base, imagen_base_64, imagen_sr_256, imagen_sr_1024, shapes_base
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_buckets, make_examples

CHIPS = 8
SIZES = (64, 256, 1024)
CAMERA = (1536, 2048)
FILES = 4
QUALITY = 90  # of JPEG and WebP
HEADER = (
    "| source | size | images/s per core | cores for 8 chips |",
    "|---|---|---|---|",
)


PRESET_HEADER = ("| preset | MB of images per step | MB of full images |", "|---|---|---|")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_float("rate", 50.0, "Images per second that each chip trains on.", lower_bound=0.0, flag_values=values)
    flags.DEFINE_float("seconds", 2.0, "CPU seconds of each measurement.", lower_bound=0.1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Measures the sources and prints the table."""
    print(f"each chip trains on {args.rate:g} images/s")
    print("\n".join(HEADER), flush=True)
    for name, make in SOURCES.items():
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                rate = images_per_second(make(Path(folder), size), args.seconds)
            cores = math.ceil(CHIPS * args.rate / rate)
            print(f"| {name} | {size} | {rate:,.4g} | {cores} |", flush=True)
    print("\n".join(("", *PRESET_HEADER)))
    for module in (imagen_base_64, imagen_sr_256, imagen_sr_1024):
        config: StageConfig = load_config(module.get_config())
        full = config.with_changes({"data.crop_size": 0})
        sizes = " | ".join(f"{image_bytes(which) / 1e6:,.1f}" for which in (config, full))
        print(f"| {module.__name__.rpartition('.')[2]} | {sizes} |", flush=True)


def _shapes(_: Path, size: int) -> ImageTextDataset:
    """Returns examples that are rendered when they are read."""
    config: StageConfig = load_config(shapes_base.get_config())
    return make_examples(config.data, "train", size, config.channels)


def _files(extension: str, shape: tuple[int, int] | None) -> Callable[[Path, int], ImageTextDataset]:
    """Returns a function that writes image files and returns their examples.

    Args:
        extension: of the files, such as "jpg".
        shape: (height, width); None for a third more than the size they are read at.
    """

    def make(folder: Path, size: int) -> ImageTextDataset:
        fitted = (size * 4 // 3, size * 16 // 9)
        for number in range(FILES):
            synthetic_photo(shape or fitted, number).save(folder / f"{number}.{extension}", quality=QUALITY)
        config: StageConfig = load_config(folder_base.get_config(), {"data.path": str(folder)})
        return make_examples(config.data, "all", size, config.channels)

    return make


def _shards(folder: Path, size: int) -> ImageTextDataset:
    """Returns the examples of a tar shard with fitted JPEG files."""
    _files("jpg", None)(folder, size)
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(FILES):
            archive.add(folder / f"{number}.jpg", f"{number}.jpg")
    shards = {"data.source": "webdataset", "data.shards": {"all": str(folder / "0.tar")}}
    config: StageConfig = load_config(folder_base.get_config(), shards)
    return make_examples(config.data, "all", size, config.channels)


def synthetic_photo(shape: tuple[int, int], seed: int) -> Image.Image:
    """Returns an image of smooth colors with grain; `shape` is (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = shape
    colors = rng.integers(256, size=(height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def images_per_second(examples: ImageTextDataset, seconds: float) -> float:
    """Returns the images that one core reads per second of CPU time."""
    examples.fit(examples[0].image)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        examples.fit(examples[count % len(examples)].image)
        count += 1
    return count / (time.process_time() - start)


def image_bytes(config: StageConfig) -> int:
    """Returns the bytes of the images of a global batch, as training reads them."""
    datasets = make_buckets(config.data, config.data.split, config.image_hw, config.channels)
    count = config.training.batch_size
    batches = training_batches(datasets, lambda caption: {}, count, config.seed, threads=1, prefetch=1, rows=[0])
    return count * next(batches)["image"].nbytes


SOURCES: dict[str, Callable[[Path, int], ImageTextDataset]] = {
    "shapes": _shapes,
    "folder, fitted JPEG": _files("jpg", None),
    "folder, 3-megapixel JPEG": _files("jpg", CAMERA),
    "folder, fitted PNG": _files("png", None),
    "folder, fitted WebP": _files("webp", None),
    "webdataset, fitted JPEG": _shards,
}

if __name__ == "__main__":
    app.main(__name__)
