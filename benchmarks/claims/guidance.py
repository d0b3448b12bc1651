"""Guidance makes pictures obey their captions better; at high weights thresholding decides whether they burn out.

arXiv:2205.11487, Sections 2.2, 2.3 and 4.4.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workplace, draw, examples, load
from benchmarks.claims.measures import burnt_share, judged
from benchmarks.claims.report import change, interval, lines, table

TITLE = "Guidance and thresholding"
CLAIM = (
    "guidance makes pictures obey their captions better; at high weights dynamic thresholding keeps them from "
    "saturating, static thresholding does not"
)
WEIGHTS = (1.0, 1.5, 3.0, 6.0, 12.0)
THRESHOLDS = ("none", "static", "dynamic")
PICTURES = 192
EARLY_STEPS = 700  # while there is something left for guidance to mend
BASES = {"trained": "The demo's base", "early": "A base of the demo's config after {steps} steps"}
ROWS = ("all", "colour")


def measure(work: Workplace) -> Figures:
    """See ``Claim``."""
    return {
        "pictures": work.pictures(PICTURES),
        "early_steps": work.steps(EARLY_STEPS),
        "bases": {
            base: {threshold: measure_one(work, base, threshold) for threshold in work.some(THRESHOLDS)}
            for base in BASES
        },
    }


def measure_one(work: Workplace, base: str, threshold: str) -> Figures:
    """For each weight what pictures that a base draws with a threshold are like."""

    def figures() -> Figures:
        early = base == "early"
        folder = work.train("guidance/early", work.config("base", EARLY_STEPS, {})) if early else work.stages[0]
        trained = load(folder, threshold=threshold)
        asked = examples("held_out", trained.stage.config.image_size, work.pictures(PICTURES))
        weights = work.some(WEIGHTS)
        drawn = draw(trained, asked.captions, guidance=weights)
        return {
            str(weight): judged(images, asked) | {"burnt": burnt_share(images, asked.images)}
            for weight, images in zip(weights, drawn, strict=True)
        }

    return work.remember(f"guidance/{base}_{threshold}", figures)


def find(figures: Figures) -> str:
    """See ``Claim``."""
    early, demo = (figures["bases"][base] for base in ("early", "trained"))
    last = list(demo["static"])[-1]
    burnt = [
        f"{threshold} {by_weight[last]['burnt']:.1%} (right in all {by_weight[last]['scores']['all']['rate']:.1%})"
        for threshold, by_weight in demo.items()
    ]
    return (
        "colours right with static thresholding, without guidance and at the weight that is best for them: the early "
        f"base's {best_colours(early['static'])}, the demo's {best_colours(demo['static'])}. Of the demo's channel "
        f"values burnt out at weight {last}, by threshold: {', '.join(burnt)}."
    )


def best_colours(by_weight: Figures) -> str:
    """How often colours are right without guidance and at the weight that is best for them."""
    rates = {weight: at["scores"]["colour"] for weight, at in by_weight.items()}
    first, best = list(rates)[0], max(rates, key=lambda weight: rates[weight]["rate"])
    return f"{change(rates[first], rates[best])} at weight {best}"


def tell(figures: Figures) -> str:
    """See ``Claim``."""
    parts = [
        f"A base draws {figures['pictures']} held-out captions at 32×32, with the same noise at every weight. *Burnt "
        "out* is the share of channel values at 0 or 255, of those that are at neither in the true picture of the same "
        "caption: flat pictures have many such values of their own, all those of a white background, so that a share "
        "of all values would say little."
    ]
    for base, found in figures["bases"].items():
        rows = [
            [threshold, weight, *(interval(at["scores"][row]) for row in ROWS), f"{at['burnt']:.2%}"]
            for threshold, by_weight in found.items()
            for weight, at in by_weight.items()
        ]
        header = ["threshold", "weight", *(f"{row} right" for row in ROWS), "burnt out"]
        parts += [f"### {BASES[base].format(steps=figures['early_steps'])}", table(header, rows)]
    return "\n\n".join(parts)


def plot(figures: Figures) -> Figure:
    """See ``Claim``."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for (base, found), panels in zip(figures["bases"].items(), figure.subplots(2, 3), strict=True):
        for threshold, by_weight in found.items():
            weights = [float(weight) for weight in by_weight]
            for axes, row in zip(panels, ROWS, strict=False):
                lines(axes, weights, [at["scores"][row] for at in by_weight.values()], threshold)
            panels[-1].plot(weights, [100 * at["burnt"] for at in by_weight.values()], marker="o", label=threshold)
        labels = [*(f"{row} right, % of captions" for row in ROWS), "burnt out, % of channel values"]
        for axes, label in zip(panels, labels, strict=True):
            axes.set(xlabel="guidance weight", ylabel=label, xscale="log", ylim=(0, None))
            axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        panels[1].set_title(BASES[base].format(steps=figures["early_steps"]))
        panels[-1].legend(title="threshold")
    return figure
