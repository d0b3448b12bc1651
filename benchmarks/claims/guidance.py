"""Guidance improves alignment with captions; at high scales thresholding determines how much is clipped.

arXiv:2205.11487, Sections 2.2, 2.3 and 4.4.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workspace, examples, load, sample_images
from benchmarks.claims.measures import clipped_fraction, evaluate_images
from benchmarks.claims.report import format_change, format_rate, format_table, plot_rates

TITLE = "Guidance and thresholding"
CLAIM = (
    "guidance improves the alignment of images with their captions; at high scales dynamic thresholding prevents "
    "saturation, static thresholding does not"
)
SCALES = (1.0, 1.5, 3.0, 6.0, 12.0)
THRESHOLDS = ("none", "static", "dynamic")
IMAGES = 192
EARLY_STEPS = 700  # few enough that guidance can still improve the images
BASES = {"trained": "The demo's base", "early": "The demo's base after {steps} steps"}
ROWS = ("all", "colour")
LABELS = {"all": "fully", "colour": "color"}


def measure(work: Workspace) -> Figures:
    """Implements `Claim`."""
    return {
        "images": work.num_images(IMAGES),
        "early_steps": work.steps(EARLY_STEPS),
        "bases": {
            base: {threshold: measure_one(work, base, threshold) for threshold in work.select(THRESHOLDS)}
            for base in BASES
        },
    }


def measure_one(work: Workspace, base: str, threshold: str) -> Figures:
    """Returns, for each guidance scale, the scores of a base's samples with a threshold."""

    def figures() -> Figures:
        early = base == "early"
        folder = work.train("guidance/early", work.config("base", EARLY_STEPS, {})) if early else work.stages[0]
        trained = load(folder, threshold=threshold)
        held_out = examples("held_out", trained.stage.config.image_hw[0], work.num_images(IMAGES))
        scales = work.select(SCALES)
        samples = sample_images(trained, held_out.captions, guidance_scales=scales)
        return {
            str(scale): evaluate_images(images, held_out) | {"clipped": clipped_fraction(images, held_out.images)}
            for scale, images in zip(scales, samples, strict=True)
        }

    return work.cached(f"guidance/{base}_{threshold}", figures)


def summarize(figures: Figures) -> str:
    """Implements `Claim`."""
    early, demo = (figures["bases"][base] for base in ("early", "trained"))
    last = list(demo["static"])[-1]
    clipped = [
        f"{threshold} {by_scale[last]['clipped']:.1%} (fully correct {by_scale[last]['scores']['all']['rate']:.1%})"
        for threshold, by_scale in demo.items()
    ]
    return (
        "correct colors with static thresholding, without guidance and at the best scale: the early "
        f"base {_best_colors(early['static'])}, the demo's {_best_colors(demo['static'])}. Clipped channel values "
        f"of the demo's base at scale {last}, by threshold: {', '.join(clipped)}."
    )


def _best_colors(by_scale: Figures) -> str:
    """Returns the change of the rate of correct colors from no guidance to the best scale, as text."""
    rates = {scale: row["scores"]["colour"] for scale, row in by_scale.items()}
    first, best = list(rates)[0], max(rates, key=lambda scale: rates[scale]["rate"])
    return f"{format_change(rates[first], rates[best])} at scale {best}"


def describe(figures: Figures) -> str:
    """Implements `Claim`."""
    parts = [
        f"A base samples {figures['images']} held-out captions at 32×32, with the same noise at every scale. "
        "*Clipped* is the fraction of channel values at 0 or 255, among those that are at neither in the true image of "
        "the same caption: flat images have many such values themselves, such as those of a white background."
    ]
    for base, by_threshold in figures["bases"].items():
        rows = [
            [threshold, scale, *(format_rate(at["scores"][row]) for row in ROWS), f"{at['clipped']:.2%}"]
            for threshold, by_scale in by_threshold.items()
            for scale, at in by_scale.items()
        ]
        header = ["threshold", "guidance scale", *(f"{LABELS[row]} correct" for row in ROWS), "clipped"]
        parts += [f"### {BASES[base].format(steps=figures['early_steps'])}", format_table(header, rows)]
    return "\n\n".join(parts)


def plot(figures: Figures) -> Figure:
    """Implements `Claim`."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for (base, by_threshold), panels in zip(figures["bases"].items(), figure.subplots(2, 3), strict=True):
        for threshold, by_scale in by_threshold.items():
            scales = [float(scale) for scale in by_scale]
            for axes, row in zip(panels, ROWS, strict=False):
                plot_rates(axes, scales, [at["scores"][row] for at in by_scale.values()], threshold)
            panels[-1].plot(scales, [100 * at["clipped"] for at in by_scale.values()], marker="o", label=threshold)
        labels = [*(f"{LABELS[row]} correct, % of captions" for row in ROWS), "clipped, % of channel values"]
        for axes, label in zip(panels, labels, strict=True):
            axes.set(xlabel="guidance scale", ylabel=label, xscale="log", ylim=(0, None))
            axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        panels[1].set_title(BASES[base].format(steps=figures["early_steps"]))
        panels[-1].legend(title="threshold")
    return figure
