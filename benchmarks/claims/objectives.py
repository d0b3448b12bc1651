"""Prediction types and loss weightings compared at equal steps, for each stage of the demo."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workspace, examples, load, sample_images
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, downsample, evaluate_images, mean_error
from benchmarks.claims.report import format_rate, format_table

TITLE = "Prediction type and loss weighting"
CLAIM = "stages predict eps with the simple weighting"
STEPS = {"base": 700, "sr": 250}
PREDICTION_TYPES = ("x", "v", "eps")
WEIGHTINGS = ("sigmoid", "min_snr", "simple")
IMAGES = 128
HEADINGS = {"base": "The base stage, 32×32", "sr": "The super-resolution stage, 32×32 to 64×64"}
COLORS = dict(zip(PREDICTION_TYPES, ("tab:blue", "tab:green", "tab:red"), strict=True))
STYLES = dict(zip(WEIGHTINGS, ("-", "--", ":"), strict=True))


def measure(work: Workspace) -> Figures:
    """Implements `Claim`."""
    objectives = work.select(list(itertools.product(PREDICTION_TYPES, WEIGHTINGS)))
    return {
        "steps": {kind: work.steps(steps) for kind, steps in STEPS.items()},
        "images": work.num_images(IMAGES),
        "stages": {
            kind: [measure_one(work, kind, prediction, weight) for prediction, weight in objectives] for kind in STEPS
        },
    }


def measure_one(work: Workspace, kind: str, prediction: str, weight: str) -> Figures:
    """Returns the figures of one objective."""
    name = f"objectives/{kind}_{prediction}_{weight}"

    def figures() -> Figures:
        changes = {"diffusion.prediction_type": prediction, "diffusion.loss_weighting": weight}
        config = work.config(kind, STEPS[kind], changes)
        trained = load(work.train(name, config))
        held_out = examples("held_out", config.image_hw[0], work.num_images(IMAGES))
        low_res = downsample(held_out.images, config.low_res_hw[0]) if config.low_res_size else None
        return {
            "prediction": prediction,
            "weight": weight,
            "bias": config.diffusion.loss_weighting_bias,
            "gamma": config.diffusion.min_snr_gamma,
            "errors": denoising_errors(trained, examples("validation", config.image_hw[0], work.num_images(IMAGES))),
            **evaluate_images(sample_images(trained, held_out.captions, low_res)[0], held_out),
        }

    return work.cached(f"{name}/figures", figures)


def summarize(figures: Figures) -> str:
    """Implements `Claim`."""
    sentences = []
    for kind, objectives in figures["stages"].items():
        best, second = _rank(objectives)[:2]
        ratio = mean_error(second["errors"]) / mean_error(best["errors"])
        sentences.append(
            f"{HEADINGS[kind]}: {_name(best)} has the lowest error, {_name(second)} {ratio:.2f} times as much"
        )
    return f"{'. '.join(sentences)}."


def _rank(objectives: list[Figures]) -> list[Figures]:
    """Returns objectives by increasing error."""
    return sorted(objectives, key=lambda objective: mean_error(objective["errors"]))


def describe(figures: Figures) -> str:
    """Implements `Claim`."""
    first = figures["stages"]["base"][0]
    parts = [
        "Each stage of the demo is trained with each prediction type and each loss weighting for a part of its steps, "
        "with everything else as in its config; the learning rate decays to zero, as in the demo. It was tuned for `x` "
        "with `sigmoid`, and favors these if any. The comparable figure is the mean squared error of x̂, clipped as in "
        "sampling, on validation images at five noise levels, and the geometric mean of these errors. The bias of "
        f"`sigmoid` is {first['bias']}, the gamma of `min_snr` is {first['gamma']}."
    ]
    for kind, objectives in figures["stages"].items():
        steps, num_images = figures["steps"][kind], figures["images"]
        source = "sampled from captions" if kind == "base" else "enlarged from downsampled true images"
        parts += [
            f"### {HEADINGS[kind]}",
            f"{steps} steps; {num_images} images of held-out captions, {source}.",
            _stage_table(kind, objectives),
        ]
    return "\n\n".join(parts)


def _name(objective: Figures) -> str:
    """Returns an objective's name."""
    return f"`{objective['prediction']}` with `{objective['weight']}`"


def _stage_table(kind: str, objectives: list[Figures]) -> str:
    """Returns the table of a stage's objectives."""
    last = ["color correct", "fully correct"] if kind == "base" else ["PSNR, dB", "fully correct"]
    rows = []
    for objective in _rank(objectives):
        scores = objective["scores"]
        cells = [objective["prediction"], f"`{objective['weight']}`", f"{mean_error(objective['errors']):.5f}"]
        cells += [f"{error:.5f}" for error in objective["errors"]]
        cells += [
            format_rate(scores["colour"]) if kind == "base" else f"{objective['psnr']:.1f}",
            format_rate(scores["all"]),
        ]
        rows.append(cells)
    levels = [f"at {level}" for level in NOISE_LEVELS]
    return format_table(["prediction type", "weighting", "error", *levels, *last], rows)


def plot(figures: Figures) -> Figure:
    """Implements `Claim`."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(figures["stages"]))
    for axes, (kind, objectives) in zip(panels, figures["stages"].items(), strict=True):
        for objective in objectives:
            label = f"{objective['prediction']}, {objective['weight']}"
            axes.plot(
                NOISE_LEVELS,
                objective["errors"],
                STYLES[objective["weight"]],
                color=COLORS[objective["prediction"]],
                label=label,
            )
        axes.set(xlabel="noise level", ylabel="mean squared error of x̂", yscale="log", title=HEADINGS[kind])
        axes.grid(alpha=0.3, which="both")
    figure.legend(
        *panels[-1].get_legend_handles_labels(), loc="outside right center", title="prediction type, weighting"
    )
    return figure
