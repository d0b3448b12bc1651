"""Which prediction and which weight of the loss each stage of the demo learns most from, at equal steps."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workplace, draw, examples, load
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, judged, mean_error, shrunk
from benchmarks.claims.report import interval, table

TITLE = "What a stage predicts, and how its loss is weighted"
CLAIM = "stages predict eps, under simple weights"
STEPS = {"base": 700, "sr": 250}
PREDICTIONS = ("x", "v", "eps")
WEIGHTS = ("sigmoid", "min_snr", "simple")
PICTURES = 128
HEADINGS = {"base": "The base stage, 32×32", "sr": "The super-resolution stage, 32×32 to 64×64"}
COLOURS = dict(zip(PREDICTIONS, ("tab:blue", "tab:green", "tab:red"), strict=True))
STYLES = dict(zip(WEIGHTS, ("-", "--", ":"), strict=True))


def measure(work: Workplace) -> Figures:
    """See ``Claim``."""
    objectives = work.some(list(itertools.product(PREDICTIONS, WEIGHTS)))
    return {
        "steps": {kind: work.steps(steps) for kind, steps in STEPS.items()},
        "pictures": work.pictures(PICTURES),
        "stages": {
            kind: [measure_one(work, kind, prediction, weight) for prediction, weight in objectives] for kind in STEPS
        },
    }


def measure_one(work: Workplace, kind: str, prediction: str, weight: str) -> Figures:
    """What one objective comes to."""
    name = f"objectives/{kind}_{prediction}_{weight}"

    def figures() -> Figures:
        changes = {"diffusion.prediction_type": prediction, "diffusion.loss_weighting": weight}
        config = work.config(kind, STEPS[kind], changes)
        trained = load(work.train(name, config))
        asked = examples("held_out", config.image_size, work.pictures(PICTURES))
        low_res = shrunk(asked.images, config.low_res_size) if config.low_res_size else None
        return {
            "prediction": prediction,
            "weight": weight,
            "bias": config.diffusion.loss_weighting_bias,
            "gamma": config.diffusion.min_snr_gamma,
            "errors": denoising_errors(trained, examples("validation", config.image_size, work.pictures(PICTURES))),
            **judged(draw(trained, asked.captions, low_res)[0], asked),
        }

    return work.remember(f"{name}/figures", figures)


def find(figures: Figures) -> str:
    """See ``Claim``."""
    sentences = []
    for kind, found in figures["stages"].items():
        best, second = ranked(found)[:2]
        times = mean_error(second["errors"]) / mean_error(best["errors"])
        sentences.append(
            f"{HEADINGS[kind]}: {named(best)} has the least error, {named(second)} {times:.2f} times as much"
        )
    return f"{'. '.join(sentences)}."


def ranked(found: list[Figures]) -> list[Figures]:
    """Objectives, the one of least error first."""
    return sorted(found, key=lambda one: mean_error(one["errors"]))


def tell(figures: Figures) -> str:
    """See ``Claim``."""
    one = figures["stages"]["base"][0]
    parts = [
        "Each stage of the demo is trained with each prediction under each weight, all else as in its config, for a "
        "part of its steps, at the end of which its learning rate has decayed to nothing as it does in the demo. That "
        "rate was found with `x` and `sigmoid`, and favours them if anything. What can be compared is the mean squared "
        "error of x̂, clipped as in sampling, on validation pictures at five noise levels, and, as one figure, their "
        f"geometric mean. `sigmoid` has its bias at {one['bias']}, `min_snr` its gamma at {one['gamma']}."
    ]
    for kind, found in figures["stages"].items():
        steps, pictures = figures["steps"][kind], figures["pictures"]
        drawn = "drawn from captions" if kind == "base" else "enlarged from true pictures made small"
        parts += [
            f"### {HEADINGS[kind]}",
            f"{steps} steps; {pictures} pictures of held-out captions, {drawn}.",
            stage_table(kind, found),
        ]
    return "\n\n".join(parts)


def named(one: Figures) -> str:
    """An objective's name."""
    return f"`{one['prediction']}` with `{one['weight']}`"


def stage_table(kind: str, found: list[Figures]) -> str:
    """A stage's objectives as a table."""
    last = ["colours right", "all right"] if kind == "base" else ["PSNR, dB", "all right"]
    rows = []
    for one in ranked(found):
        scores = one["scores"]
        cells = [one["prediction"], f"`{one['weight']}`", f"{mean_error(one['errors']):.5f}"]
        cells += [f"{error:.5f}" for error in one["errors"]]
        cells += [interval(scores["colour"]) if kind == "base" else f"{one['psnr']:.1f}", interval(scores["all"])]
        rows.append(cells)
    levels = [f"at {level}" for level in NOISE_LEVELS]
    return table(["prediction", "weight", "error", *levels, *last], rows)


def plot(figures: Figures) -> Figure:
    """See ``Claim``."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(figures["stages"]))
    for axes, (kind, found) in zip(panels, figures["stages"].items(), strict=True):
        for one in found:
            label = f"{one['prediction']}, {one['weight']}"
            axes.plot(NOISE_LEVELS, one["errors"], STYLES[one["weight"]], color=COLOURS[one["prediction"]], label=label)
        axes.set(xlabel="noise level", ylabel="mean squared error of x̂", yscale="log", title=HEADINGS[kind])
        axes.grid(alpha=0.3, which="both")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", title="prediction, weight")
    return figure
