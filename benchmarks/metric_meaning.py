"""Measure what distances mean: `python -m benchmarks.metric_meaning`, after `make metrics`.

Images of `shapes` are compared with others of the same distribution: as they are, blurred, with noise, with some of
them replaced by noise alone, and with shapes that are missing. Prints a table and draws `--plot`.

`--stages=DIR,DIR --steps=1000,2000,6000` compares samples of a cascade at growing numbers of updates in their place,
each stage at its newest checkpoint that has no more: `--config.training.keep_checkpoints=100` keeps them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image, ImageFilter

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path, define_stages
from imagen_jax.config.data_schema import ShapesData
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.datasets.shapes.scenes import SHAPES
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.evaluation.image_sets import DataImages
from imagen_jax.evaluation.metric_set import MetricSet, Reference
from imagen_jax.evaluation.references import measure_reference
from imagen_jax.images.plots import plot_curves
from imagen_jax.io.paths import as_path

METRIC, SIDE, BATCH_SIZE, SEED = "fd_lite0", 64, 64, 1
HEADER = ("| images | level | fd_lite0 |", "|---|---|---|")


class Damage(NamedTuple):
    """A way to make images worse.

    Attributes:
        name: of the way.
        unit: of its levels.
        levels: from none on.
        images: returns image `index` of the damaged ones at a level, uint8 [H, W, 3].
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    images: Callable[[float], Iterator[np.ndarray]]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "lite0", None, "The weights of EfficientNet-Lite0.")
    flags.DEFINE_integer("num_images", 1500, "Images of each set.", lower_bound=2, flag_values=values)
    define_path(values, "plot", "docs/images/metric_meaning.png", "The plot to write.")
    define_stages(values)
    flags.DEFINE_list("steps", [], "With --stages: steps of checkpoints.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Measures, prints the table and draws the plot."""
    metrics = MetricSet.load(MetricsConfig(names=(METRIC,), lite0=args.lite0 or ""))
    count = args.num_images
    real = DataImages(ShapesData(), "train", (SIDE, SIDE), 3, count)
    reference = measure_reference(metrics, real)
    print("\n".join(HEADER), flush=True)
    if args.stages:
        _steps(args, metrics, reference)
        return
    floor = _distance(metrics, reference, _true(), count)
    print(f"| of the same distribution | – | {floor:.1f} |", flush=True)
    curves = {}
    for damage in _damages():
        points = [(0.0, floor)]
        for level in damage.levels:
            points.append((level, _distance(metrics, reference, damage.images(level), count)))
            print(f"| {damage.name} | {level:g} {damage.unit} | {points[-1][1]:.1f} |", flush=True)
        curves[f"{damage.name} ({damage.unit})"] = points
    plot_curves(curves, f"FD-lite0 of {count:,} images of shapes", METRIC, Path(args.plot))


def _damages() -> list[Damage]:
    return [
        Damage("blur", "pixels", (0.5, 1.0, 2.0), lambda level: map(_blurred(level), _true())),
        Damage("noise", "of 255", (4.0, 16.0, 64.0), lambda level: map(_noisy(level), _true())),
        Damage("noise images mixed in", "%", (2.0, 10.0, 50.0), _mixed),
        Damage("missing shapes", f"of {len(SHAPES)}", (1.0, 2.0, 4.0), lambda level: _without(SHAPES[: int(level)])),
    ]


def _source() -> ShapesSource:
    return ShapesSource(SEED, "train", SIDE, 10**9)


def _true() -> Iterator[np.ndarray]:
    """Yields images of the same distribution as the reference, and of another seed."""
    source = _source()
    return (np.asarray(source[index].image) for index in itertools.count())


def _without(shapes: tuple[str, ...]) -> Iterator[np.ndarray]:
    """Yields images in which no object has some of the shapes."""
    source = _source()
    for index in itertools.count():
        if not {item.shape for item in source.scene(index).objects} & set(shapes):
            yield np.asarray(source[index].image)


def _blurred(radius: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _noisy(deviation: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(SEED)
    return lambda image: (image + rng.normal(0, deviation, image.shape)).round().clip(0, 255).astype(np.uint8)


def _mixed(percent: float) -> Iterator[np.ndarray]:
    """Yields images of which some are noise alone, evenly spread."""
    rng, share = np.random.default_rng(SEED), percent / 100
    for index, image in enumerate(_true()):
        is_noise = int((index + 1) * share) > int(index * share)
        yield rng.integers(0, 256, image.shape, np.uint8) if is_noise else image


def _distance(metrics: MetricSet, reference: Reference, images: Iterator[np.ndarray], count: int) -> float:
    """Returns the distance of the first images."""
    stream = metrics.stream(count)
    for first in range(0, count, BATCH_SIZE):
        stream.update(first, list(itertools.islice(images, min(BATCH_SIZE, count - first))))
    return metrics.result(stream, reference)[METRIC].value


def _steps(args: CommandFlags, metrics: MetricSet, reference: Reference) -> None:
    """Measures samples of a cascade at steps of its checkpoints, for captions that it was not trained on."""
    from imagen_jax import ImagenPipeline
    from imagen_jax.pipelines.request import SampleRequest
    from imagen_jax.pipelines.texts import Texts
    from imagen_jax.stages.checkpoint_folder import checkpoint_folder
    from imagen_jax.stages.checkpoints import CHECKPOINTS

    points, source = [], ShapesSource(SEED, "validation", SIDE, 10**9)
    captions = [source.captions(index)[0] for index in range(args.num_images)]
    folders = args.stage_names()
    kept = [checkpoint_folder(as_path(folder) / CHECKPOINTS).steps() for folder in folders]
    for step in map(int, args.steps):
        steps = [max((saved for saved in stage if saved <= step), default=step) for stage in kept]
        pipeline = ImagenPipeline.from_pretrained(folders, weights=[{"step": saved} for saved in steps])
        stream = metrics.stream(args.num_images)
        for first, by_stage in pipeline.iter_batches(SampleRequest(Texts(captions), SEED, BATCH_SIZE)):
            stream.update(first, by_stage[-1])
        points.append((float(step), metrics.result(stream, reference)[METRIC].value))
        print(f"| samples | {', '.join(f'{saved:,}' for saved in steps)} updates | {points[-1][1]:.1f} |", flush=True)
    plot_curves({"samples": points}, f"FD-lite0 of {args.num_images:,} samples", METRIC, Path(args.plot), "step")


if __name__ == "__main__":
    app.main(__name__)
