"""A better text encoder improves the alignment of images with their captions (arXiv:2205.11487, Section 4.4)."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from matplotlib.figure import Figure

from benchmarks.claims.experiment import Figures, Workspace, examples, load, sample_images
from benchmarks.claims.measures import NOISE_LEVELS, denoising_errors, evaluate_images, mean_error
from benchmarks.claims.report import format_changes, format_rate, format_table, plot_rates
from configs import pretrain_text
from imagen_jax.stages.text import make_encoder
from imagen_jax.text.encoder import SHAPES_ENCODER

TITLE = "The text encoder"
CLAIM = "a better text encoder improves the alignment of images with their captions"
STEPS = 1000
PRETRAINING_STEPS = 500
IMAGES = 192
VALIDATION_IMAGES = 128
UNTRAINED = "2 layers, untrained"
PACKAGED = "3 layers, trained longer"
# changes of configs/pretrain_text.py that keep the width, so that all networks are alike
PRETRAINED: dict[str, dict[str, Any]] = {
    "1 layer": {"encoder.num_layers": 1, "encoder.num_heads": 2, "encoder.d_ff": 64},
    "3 layers": {},
}
# rows of the scores: their names in tables
COLUMNS = {
    "colour": "color",
    "shape": "shape",
    "size": "size",
    "position": "position",
    "relation": "relation",
    "all": "all",
}


def measure(work: Workspace) -> Figures:
    """Implements `Claim`."""
    encoders = {UNTRAINED: measure_one(work, UNTRAINED, "random", {})}
    for name, fields in PRETRAINED.items():
        folder = _pretrain(work, name, fields)
        probes = json.loads((folder / "probe.json").read_text())["pretrained"]
        encoders[name] = measure_one(work, name, str(folder), probes)
    probes = json.loads((SHAPES_ENCODER / "probe.json").read_text())["pretrained"]
    encoders[PACKAGED] = measure_one(work, PACKAGED, "shapes", probes)
    return {
        "steps": work.steps(STEPS),
        "pretraining_steps": work.steps(PRETRAINING_STEPS),
        "packaged_steps": pretrain_text.get_config().steps,
        "images": work.num_images(IMAGES),
        "encoders": encoders,
    }


def _pretrain(work: Workspace, name: str, fields: dict[str, Any]) -> Path:
    """Pretrains a text encoder by `imagen pretrain_text`, unless that is done; returns its folder."""
    folder = work.out / "text_encoders" / f"encoder_{name.replace(' ', '_')}"
    config = f"{pretrain_text.__file__}{':tiny' if work.quick else ''}"
    settings = {"steps": work.steps(PRETRAINING_STEPS)} | ({} if work.quick else fields)
    if not (folder / "probe.json").exists():
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        command = ["-m", "imagen_jax", "pretrain_text", f"--config={config}", f"--out={folder}", *flags]
        subprocess.run([sys.executable, *command], check=True)
    return folder


def measure_one(work: Workspace, name: str, model: str, probes: dict[str, float]) -> Figures:
    """Returns the figures of a base that is trained with a text encoder."""
    folder = f"text_encoders/base_{name.replace(', ', '_').replace(' ', '_')}"

    def figures() -> Figures:
        trained = load(work.train(folder, work.config("base", STEPS, {"text.model": model})))
        size = trained.stage.config.image_hw[0]
        held_out = examples("held_out", size, work.num_images(IMAGES))
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(make_encoder(trained.stage.config.text).params)),
            "probes": probes,
            "errors": denoising_errors(trained, examples("validation", size, work.num_images(VALIDATION_IMAGES))),
            **evaluate_images(sample_images(trained, held_out.captions)[0], held_out),
        }

    return work.cached(f"{folder}/figures", figures)


def summarize(figures: Figures) -> str:
    """Implements `Claim`."""
    encoders = figures["encoders"]
    sentences = [
        f"{better} compared to {worse}: "
        + format_changes(
            {label: (encoders[worse]["scores"][row], encoders[better]["scores"][row]) for row, label in COLUMNS.items()}
        )
        for worse, better in itertools.pairwise(encoders)
    ]
    return f"{'. '.join(sentences)}."


def describe(figures: Figures) -> str:
    """Implements `Claim`."""
    encoders = figures["encoders"]
    sizes = [
        [
            name,
            f"{row['parameters']:,}",
            f"{min(row['probes'].values()):.1%}" if row["probes"] else "",
            f"{mean_error(row['errors']):.5f}",
        ]
        for name, row in encoders.items()
    ]
    rates = [[name, *(format_rate(row["scores"][column]) for column in COLUMNS)] for name, row in encoders.items()]
    return "\n\n".join(
        [
            "Four encoders of the same width: one untrained, two pretrained for "
            f"{figures['pretraining_steps']} steps, and the package's own, pretrained for {figures['packaged_steps']} "
            f"steps. A base of the demo's config is trained on each for {figures['steps']} steps, fewer than in the "
            "demo, and samples the same captions. *Probe* is the lowest accuracy of the linear probes of an encoder's "
            "embeddings for the attributes of an object; *error* is the mean squared error of x̂ on validation images, "
            f"the geometric mean over noise levels {', '.join(map(str, NOISE_LEVELS))}.",
            format_table(["encoder", "parameters", "probe", "error"], sizes),
            f"Correct images for {figures['images']} held-out captions, by attribute:",
            format_table(["encoder", *COLUMNS.values()], rates),
        ]
    )


def plot(figures: Figures) -> Figure:
    """Implements `Claim`."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, row) in enumerate(figures["encoders"].items()):
        positions = [position + 0.1 * (index - 1) for position in range(len(COLUMNS))]
        plot_rates(axes, positions, [row["scores"][column] for column in COLUMNS], name, linestyle="none")
    axes.set_xticks(range(len(COLUMNS)), COLUMNS.values())
    axes.set(ylabel="correct, % of captions with the attribute", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(title="text encoder")
    return figure
