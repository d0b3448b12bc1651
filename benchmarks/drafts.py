"""Measure what a VAE's draft saves: `python -m benchmarks.drafts --base=DIR --vae=DIR`, after `make metrics`.

Samples of a base stage of `shapes` by the number of calls of its network: alone, from drafts of a VAE at some
strengths, and with `--refiner=DIR` those of a stage that refines the VAE's images (docs/vae.md). All methods call the
diffusion network equally often; with a VAE its network is called once more. Prints a table of alignment, as the judge
of `shapes` reads images of captions, and of the distance to real images; writes OUT/drafts.json and OUT/drafts.png.

`--distance=pixels` needs no weights: the Frechet distance of images that are reduced to 8×8.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.config.data_schema import ShapesData
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.frechet import Gaussian, frechet_distance
from imagen_jax.evaluation.image_sets import DataImages, iter_batches
from imagen_jax.evaluation.judges import ScoreCounts, get_judge
from imagen_jax.evaluation.metric_set import MetricSet
from imagen_jax.evaluation.references import measure_reference
from imagen_jax.images.plots import finish_axes, make_figure, save_figure
from imagen_jax.io.atomic import write_json
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.stage_sampler import strength_steps

METRIC, SEED, REDUCED = "fd_lite0", 1, 8
ALL = "all"  # the judge's row: everything that a caption claims is right

DistanceFn = Callable[[list[np.ndarray]], float]


class Method(NamedTuple):
    """A way to sample.

    Attributes:
        name: for the table.
        pipeline: the cascade that samples.
        calls: of the diffusion network for an image, twice as many with guidance; 0 for the VAE alone.
        strength: of the draft; None without one.
    """

    name: str
    pipeline: ImagenPipeline
    calls: int
    strength: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What is measured of a method's samples: rates in [0, 1], and seconds for an image, compilation apart."""

    method: str
    calls: int
    strength: float | None
    correct: float
    low: float
    high: float
    distance: float
    seconds: float


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "base", None, "The folder of a base stage.")
    define_path(values, "vae", None, "The folder of a VAE of the same size.")
    define_path(values, "refiner", "", "The folder of a stage that refines that VAE's images; empty for none.")
    define_path(values, "out", "runs/drafts", "A folder for the results.")
    flags.DEFINE_list("calls", ["1", "2", "4", "8"], "Calls of the diffusion network.", flag_values=values)
    flags.DEFINE_list("strengths", ["0.4", "0.6", "0.8"], "Strengths of drafts.", flag_values=values)
    flags.DEFINE_integer("samples", 1024, "Images of each row.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("split", "validation", ["validation", "held_out"], "Captions.", flag_values=values)
    flags.DEFINE_enum("distance", METRIC, [METRIC, "pixels"], "The distance to real images.", flag_values=values)
    define_path(values, "lite0", "", "The weights of EfficientNet-Lite0.")


def run(args: CommandFlags) -> None:
    """Samples, prints the table row by row, and writes the files."""
    folders = args.required("base", "runs/base"), args.required("vae", "runs/shapes_vae")
    out = args.output_folder("runs/drafts")
    base, vae = (ImagenPipeline.from_pretrained([folder]) for folder in folders)
    refined = ImagenPipeline.from_pretrained([args.vae, args.refiner]) if args.refiner else None
    calls, strengths = _numbers(args.calls, "calls", int), _numbers(args.strengths, "strengths", float)
    methods = list(iter_methods(base, vae, str(args.vae), refined, calls, strengths))
    source = ShapesSource(SEED, args.split, base.image_size, 10**9)
    captions = [source.captions(index)[0] for index in range(args.samples)]
    distance = make_distance(args, base.image_size)
    print(f"| sampled | calls | correct (95%) | {args.distance} | s an image |\n|---|---|---|---|---|", flush=True)
    results = []
    for method in methods:
        results.append(measure(method, captions, args.batch_size, distance))
        print(format_row(results[-1]), flush=True)
    about = {
        "stages": {name: stages_manifest(pipe.stages) for name, pipe in _named(base, vae, refined).items()},
        "split": args.split,
        "samples": args.samples,
        "distance": args.distance,
    }
    write_json(out / "drafts.json", {**about, "results": [dataclasses.asdict(result) for result in results]})
    plot(results, args.distance, args.samples, out / "drafts.png")


def _named(base: ImagenPipeline, vae: ImagenPipeline, refined: ImagenPipeline | None) -> dict[str, ImagenPipeline]:
    return {"base": base, "vae": vae} | ({} if refined is None else {"refined": refined})


def _numbers(texts: Sequence[str], flag: str, kind: Callable[[str], Any]) -> list[Any]:
    """Returns the positive numbers of a flag. Raises ConfigError for others."""
    try:
        numbers = [kind(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"--{flag}={','.join(texts)} is not a list of numbers: give some, such as 4,8") from error
    if any(number <= 0 for number in numbers):
        raise ConfigError(f"--{flag}={','.join(texts)} has a number that is not above 0: leave it out")
    return numbers


def iter_methods(
    base: ImagenPipeline,
    vae: ImagenPipeline,
    draft: str,
    refined: ImagenPipeline | None,
    calls: Sequence[int],
    strengths: Sequence[float],
) -> Iterator[Method]:
    """Yields the methods to compare.

    Args:
        base: a base stage.
        vae: a VAE.
        draft: the VAE's folder.
        refined: the VAE and a stage that refines its images; None for none.
        calls: of the diffusion network.
        strengths: of drafts; one that no number of steps turns into the calls is left out for them.

    Raises:
        ConfigError: the stages do not fit.
    """
    yield Method("the VAE alone", vae, 0)
    for count in calls:
        yield Method("base alone", base.with_settings([{"num_inference_steps": count}]), count)
        for strength in strengths:
            steps = steps_of(count, strength)
            if steps is not None:
                settings = {"draft": draft, "draft_strength": strength, "num_inference_steps": steps}
                yield Method(f"draft, strength {strength:g}", base.with_settings([settings]), count, strength)
        if refined is not None:
            settings = {"num_inference_steps": count}
            yield Method("refined", refined.with_settings([{}, settings]), count)


def steps_of(calls: int, strength: float) -> int | None:
    """Returns of how many steps a strength takes so many, the nearest to calls / strength; None if none does."""
    nearest = calls / strength
    steps = [count for count in range(1, 2 * calls + round(2 * nearest)) if strength_steps(count, strength) == calls]
    return min(steps, key=lambda count: abs(count - nearest), default=None)


def measure(method: Method, captions: Sequence[str], batch_size: int, distance: DistanceFn) -> Result:
    """Returns the result of a method for captions of `shapes`."""
    pipeline, counts, images = method.pipeline, ScoreCounts(get_judge("shapes")), []
    pipeline.set_progress_bar_config(disable=True)
    for _ in pipeline.iter_batches(SampleRequest(Texts(list(captions[:batch_size])), SEED, batch_size)):
        pass  # compiles
    start = time.monotonic()
    for _, by_stage in pipeline.iter_batches(SampleRequest(Texts(list(captions)), SEED, batch_size)):
        images.append(by_stage[-1])
    seconds = (time.monotonic() - start) / len(captions)
    for first, batch in zip(range(0, len(captions), batch_size), images, strict=True):
        counts.update(batch, captions[first : first + batch_size])
    row = counts.result()[ALL]
    rates = float(row["rate"]), float(row["low"]), float(row["high"])
    return Result(method.name, method.calls, method.strength, *rates, distance(images), seconds)


def make_distance(args: CommandFlags, size: tuple[int, int]) -> DistanceFn:
    """Returns the distance of batches of images uint8 [B, H, W, C] to as many images of the training data.

    Raises:
        ConfigError: the weights are missing.
    """
    real = DataImages(ShapesData(), "train", size, 3, args.samples)
    if args.distance == METRIC:
        metrics = MetricSet.load(MetricsConfig(names=(METRIC,), lite0=args.lite0 or ""))
        reference = measure_reference(metrics, real)

        def distance(batches: list[np.ndarray]) -> float:
            stream, first = metrics.stream(args.samples), 0
            for batch in batches:
                stream.update(first, batch)
                first += len(batch)
            return float(metrics.result(stream, reference)[METRIC].value)

        return distance
    statistics = reduced_statistics([np.stack(batch.images) for batch in iter_batches(real, 0, args.batch_size)])
    return lambda batches: frechet_distance(reduced_statistics(batches), statistics)


def reduced_statistics(batches: Sequence[np.ndarray]) -> Gaussian:
    """Returns the statistics of images uint8 [B, H, W, C] whose pixels are averaged to 8×8, in [0, 1]."""
    images = np.concatenate(batches).astype(np.float64) / 255
    count, height, width, channels = images.shape
    if height % REDUCED or width % REDUCED:
        raise ConfigError(f"images of {height}×{width} cannot be reduced to 8×8: give --distance={METRIC}")
    squares = images.reshape(count, REDUCED, height // REDUCED, REDUCED, width // REDUCED, channels)
    features = squares.mean(axis=(2, 4)).reshape(count, -1)
    return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False))


def format_row(result: Result) -> str:
    """Returns a row of the table."""
    rates = f"{result.correct:.1%} ({result.low:.1%}–{result.high:.1%})"
    return f"| {result.method} | {result.calls} | {rates} | {result.distance:.4g} | {result.seconds:.4f} |"


def plot(results: Sequence[Result], distance: str, samples: int, path: Path) -> None:
    """Plots alignment and distance over calls, a curve for each method."""
    figure, (left, right) = make_figure(2, f"drafts of a VAE, {samples:,} images of shapes each")
    alone = [result for result in results if not result.calls]
    for axes, value in ((left, "correct"), (right, "distance")):
        read = functools.partial(lambda name, result: getattr(result, name), value)
        for method in dict.fromkeys(result.method for result in results if result.calls):
            points = [(result.calls, read(result)) for result in results if result.method == method]
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        for result in alone:
            axes.axhline(read(result), color="gray", linestyle=":", label=result.method)
    finish_axes(left, xlabel="calls of the diffusion network", ylabel="fully correct images", xscale="log")
    finish_axes(right, xlabel="calls of the diffusion network", ylabel=distance, xscale="log", yscale="log")
    save_figure(figure, path)


if __name__ == "__main__":
    app.main(__name__)
