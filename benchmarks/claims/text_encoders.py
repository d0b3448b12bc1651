"""A better text encoder makes pictures obey their captions better (arXiv:2205.11487, Section 4.4)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workplace, draw, examples, load
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, judged, mean_error
from benchmarks.claims.report import changes, interval, lines, table
from configs import pretrain_text
from imagen_jax.text.encoder import SHAPES_ENCODER

TITLE = "The text encoder"
CLAIM = "a better text encoder makes pictures obey their captions better"
STEPS = 1000
PRETRAINING_STEPS = 500
PICTURES = 192
VALIDATION_PICTURES = 128
UNTRAINED = "2 layers, untrained"
PACKAGED = "3 layers, for longer"
# as configs/pretrain_text.py, of the width that it has, so that the networks that read them are alike
PRETRAINED: dict[str, dict[str, Any]] = {
    "1 layer": {"encoder.num_layers": 1, "encoder.num_heads": 2, "encoder.d_ff": 64},
    "3 layers": {},
}
COLUMNS = ("colour", "shape", "size", "position", "relation", "all")


def measure(work: Workplace) -> Figures:
    """See ``Claim``."""
    found = {UNTRAINED: measure_one(work, UNTRAINED, "random", {})}
    for name, fields in PRETRAINED.items():
        folder = pretrain(work, name, fields)
        probes = json.loads((folder / "probe.json").read_text())["pretrained"]
        found[name] = measure_one(work, name, str(folder), probes)
    probes = json.loads((SHAPES_ENCODER / "probe.json").read_text())["pretrained"]
    found[PACKAGED] = measure_one(work, PACKAGED, "shapes", probes)
    return {
        "steps": work.steps(STEPS),
        "pretraining_steps": work.steps(PRETRAINING_STEPS),
        "packaged_steps": pretrain_text.get_config().steps,
        "pictures": work.pictures(PICTURES),
        "encoders": found,
    }


def pretrain(work: Workplace, name: str, fields: dict[str, Any]) -> Path:
    """The folder of a text encoder, pretrained by the command of the one that comes with the package."""
    folder = work.out / "text_encoders" / f"encoder_{name.replace(' ', '_')}"
    config = f"{pretrain_text.__file__}{':tiny' if work.quick else ''}"
    settings = {"steps": work.steps(PRETRAINING_STEPS)} | ({} if work.quick else fields)
    if not (folder / "probe.json").exists():
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        command = ["-m", "imagen_jax.pretrain_text", f"--config={config}", f"--out={folder}", *flags]
        subprocess.run([sys.executable, *command], check=True)
    return folder


def measure_one(work: Workplace, name: str, model: str, probes: dict[str, float]) -> Figures:
    """What a base comes to that reads by an encoder."""
    folder = f"text_encoders/base_{name.replace(', ', '_').replace(' ', '_')}"

    def figures() -> Figures:
        trained = load(work.train(folder, work.config("base", STEPS, {"text.model": model})))
        size = trained.stage.config.image_size
        asked = examples("held_out", size, work.pictures(PICTURES))
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.stage.encoder.params)),
            "probes": probes,
            "errors": denoising_errors(trained, examples("validation", size, work.pictures(VALIDATION_PICTURES))),
            **judged(draw(trained, asked.captions)[0], asked),
        }

    return work.remember(f"{folder}/figures", figures)


def find(figures: Figures) -> str:
    """See ``Claim``."""
    found = figures["encoders"]
    sentences = [
        f"{better} against {worse}: "
        + changes({row: (found[worse]["scores"][row], found[better]["scores"][row]) for row in COLUMNS})
        for worse, better in itertools.pairwise(found)
    ]
    return f"{'. '.join(sentences)}."


def tell(figures: Figures) -> str:
    """See ``Claim``."""
    found = figures["encoders"]
    sizes = [
        [
            name,
            f"{seen['parameters']:,}",
            f"{min(seen['probes'].values()):.1%}" if seen["probes"] else "",
            f"{mean_error(seen['errors']):.5f}",
        ]
        for name, seen in found.items()
    ]
    rates = [[name, *(interval(seen["scores"][row]) for row in COLUMNS)] for name, seen in found.items()]
    return "\n\n".join(
        [
            "Encoders of one width: one untrained, two pretrained in the same way for "
            f"{figures['pretraining_steps']} steps, and the package's own, pretrained for {figures['packaged_steps']}. "
            f"A base of the demo's config is trained on each for {figures['steps']} steps, few against the demo's, and "
            "draws the same captions. *Probe* is the least accuracy of a linear probe of an encoder's embeddings for "
            "what the caption says of a thing; *error* the mean squared error of x̂ on validation pictures, the "
            f"geometric mean of noise levels {', '.join(map(str, NOISE_LEVELS))}.",
            table(["encoder", "parameters", "probe", "error"], sizes),
            f"Right, of {figures['pictures']} held-out captions, by what they claim:",
            table(["encoder", *COLUMNS], rates),
        ]
    )


def plot(figures: Figures) -> Figure:
    """See ``Claim``."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, seen) in enumerate(figures["encoders"].items()):
        places = [place + 0.1 * (index - 1) for place in range(len(COLUMNS))]
        lines(axes, places, [seen["scores"][row] for row in COLUMNS], name, linestyle="none")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS)
    axes.set(ylabel="right, % of captions that claim it", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(title="text encoder")
    return figure
