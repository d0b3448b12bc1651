"""Measure the peak memory of metrics of a folder: `python -m benchmarks.metric_memory`.

Each number of images is written to a folder and measured against itself in a fresh process, as `imagen evaluate
--images=DIR` does. By default a projection with as many features as EfficientNet-Lite0 stands in the place of the
network, as the memory of what is kept of images does not depend on it; `--lite0=FILE` takes the network. Linux only.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path

SIDE = 28  # of what the projection sees
METRICS = ("fd_lite0", "kid_lite0")
HEADER = ("| images | size | metrics | peak memory | seconds | states on disk |", "|---|---|---|---|---|---|")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_list("num_images", ["512", "30000"], "Numbers of images to measure.", flag_values=values)
    flags.DEFINE_integer("size", 64, "Side of the images.", lower_bound=8, flag_values=values)
    flags.DEFINE_integer(
        "distinct",
        None,
        "Different images; the others are links to them, as large ones take long to draw.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_list("metrics", list(METRICS), "Metrics to measure, of FD-lite0's network.", flag_values=values)
    define_path(values, "lite0", None, "The weights of EfficientNet-Lite0.")


def run(args: CommandFlags) -> None:
    """Measures, and prints the table."""
    print("\n".join(HEADER), flush=True)
    for count in map(int, args.num_images):
        with tempfile.TemporaryDirectory() as folder:
            _write_images(Path(folder) / "images", count, args.size, args.distinct or count)
            # a fresh process: nothing has been allocated before the measurement
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                peak, seconds, written = pool.submit(_measure, folder, args.metrics, args.lite0 or "").result()
        memory, states = (f"{size / 2**20:,.0f} MiB" for size in (peak, written))
        shape, names = f"{args.size}×{args.size}", ", ".join(args.metrics)
        print(f"| {count:,} | {shape} | {names} | {memory} | {seconds:.0f} | {states} |", flush=True)


def _write_images(folder: Path, count: int, size: int, distinct: int) -> None:
    from imagen_jax.datasets.shapes.source import ShapesSource
    from imagen_jax.images.grid import save_png

    source = ShapesSource(0, "train", size, count)
    for index in range(min(count, distinct)):
        save_png(np.asarray(source[index].image), folder / f"{index:06d}.png")
    for index in range(distinct, count):
        (folder / f"{index:06d}.png").hardlink_to(folder / f"{index % distinct:06d}.png")


def _measure(folder: str, names: Sequence[str], lite0: str) -> tuple[int, float, int]:
    """Returns the peak memory of the process in bytes, seconds, and the bytes of the states."""
    from imagen_jax.config.metrics_schema import MetricsConfig
    from imagen_jax.evaluation.evaluate_images import evaluate_images

    images, out = f"{folder}/images", Path(folder) / "out"
    if not lite0:
        _stand_in()
    start = time.perf_counter()
    evaluate_images(images, MetricsConfig(names=tuple(names), reference=images, lite0=lite0), out)
    written = sum(path.stat().st_size for path in out.glob("*.npz"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - start, written


def _stand_in() -> None:
    """Puts a projection of resized images in the place of the network."""
    from imagen_jax.evaluation import metric_set
    from imagen_jax.evaluation.encoder import FeatureEncoder, Features
    from imagen_jax.evaluation.networks import LITE0
    from imagen_jax.images.measured_inputs import lite0_inputs

    class Projection(FeatureEncoder):
        def __init__(self) -> None:
            self.network, self.resizing, self.suffix, self.width = "projection/0", "clean", LITE0.suffix, LITE0.width
            self._weights = np.random.default_rng(0).standard_normal((SIDE * SIDE * 3, self.width), np.float32) / 50

        def __call__(self, images: object, batch_size: int = 64) -> Features:
            inputs = lite0_inputs(images, self.resizing, (SIDE, SIDE))
            features = np.tanh(inputs.reshape(-1, len(self._weights)) @ self._weights)
            return Features(features, features[:, : LITE0.classes])

        @classmethod
        def from_pretrained(cls, *arguments: object, **options: object) -> Projection:
            return cls()

    metric_set.FeatureEncoder = Projection  # type: ignore[misc, assignment]
    metric_set.find_weights = lambda network, given: Path()


if __name__ == "__main__":
    app.main(__name__)
