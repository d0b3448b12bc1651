"""How fast one core reads examples: ``python -m benchmarks.input_speed --rate=50``. Nothing is trained.

Of each kind of source it reads pictures for a size, through decoding, resizing and cropping, in one thread, and prints
images per second of the processor's time; and how many cores a host needs whose 8 chips take ``--rate`` images/s each.

The image files are made here, in a temporary folder that is removed again: smooth colours with grain, so that a JPEG
has the bytes a pixel that a photograph has (a third of one, at quality 90). "fitted" files are a third larger than the
size they are read at; the others have 3 megapixels, as a camera's have at least.
"""

from __future__ import annotations

import math
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np
from absl import flags
from PIL import Image

from configs import folder_base, shapes_base
from imagen_jax import commands
from imagen_jax.data.dataset import Examples
from imagen_jax.datasets.from_config import make_examples

RATE = flags.DEFINE_float("rate", 50.0, "Images per second that each chip is trained on.", lower_bound=0.0)
SECONDS = flags.DEFINE_float("seconds", 2.0, "Of processor time for each figure.", lower_bound=0.1)

CHIPS = 8
SIZES = (64, 256, 1024)
CAMERA = (1536, 2048)
FILES = 4
QUALITY = 90  # of JPEG and WebP
HEADER = (
    "| source | read at | images/s of a core | cores that feed 8 chips |",
    "|---|---|---|---|",
)


def main() -> None:
    """Measures and prints the table."""
    print(f"each chip takes {RATE.value:g} images/s")
    print("\n".join(HEADER), flush=True)
    for name, make in SOURCES.items():
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                rate = images_per_second(make(Path(folder), size), SECONDS.value)
            cores = math.ceil(CHIPS * RATE.value / rate)
            print(f"| {name} | {size} | {rate:,.4g} | {cores} |", flush=True)


def shapes(_: Path, size: int) -> Examples:
    """Pictures that are drawn when they are read."""
    config = shapes_base.get_config()
    return make_examples(config.data, "train", size, config.channels)


def files(kind: str, shape: tuple[int, int] | None) -> Callable[[Path, int], Examples]:
    """Image files of a kind and (height, width), of a third more than the size they are read at if None is given."""

    def make(folder: Path, size: int) -> Examples:
        fitted = (size * 4 // 3, size * 16 // 9)
        for number in range(FILES):
            photograph(shape or fitted, number).save(folder / f"{number}.{kind}", quality=QUALITY)
        config = folder_base.get_config()
        config.data.path = str(folder)
        return make_examples(config.data, "all", size, config.channels)

    return make


def shards(folder: Path, size: int) -> Examples:
    """The same files, fitted JPEG, in a tar shard."""
    files("jpg", None)(folder, size)
    with tarfile.open(folder / "0.tar", "w") as archive:
        for number in range(FILES):
            archive.add(folder / f"{number}.jpg", f"{number}.jpg")
    config = folder_base.get_config()
    config.data.source = "webdataset"
    config.data.shards = ml_collections.ConfigDict({"all": str(folder / "0.tar")})
    return make_examples(config.data, "all", size, config.channels)


def photograph(shape: tuple[int, int], seed: int) -> Image.Image:
    """Smooth colours with grain, of (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = shape
    colours = rng.integers(256, size=(height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def images_per_second(examples: Examples, seconds: float) -> float:
    """Of one core: by processor time, so that what else runs on the machine takes none of it."""
    examples.fit(examples[0].image)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        examples.fit(examples[count % len(examples)].image)
        count += 1
    return count / (time.process_time() - start)


SOURCES: dict[str, Callable[[Path, int], Examples]] = {
    "shapes": shapes,
    "folder, fitted JPEG": files("jpg", None),
    "folder, JPEG of 3 megapixels": files("jpg", CAMERA),
    "folder, fitted PNG": files("png", None),
    "folder, fitted WebP": files("webp", None),
    "webdataset, fitted JPEG": shards,
}

if __name__ == "__main__":
    commands.run(main)
