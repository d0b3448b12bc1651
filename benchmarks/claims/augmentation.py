"""Noise conditioning augmentation makes super-resolution robust to the errors of the stage before it.

arXiv:2205.11487, Sections 2.3 and 4.4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from benchmarks.claims.experiment import SEED, Examples, Figures, Workspace, examples, load, sample_images
from benchmarks.claims.measures import downsample, evaluate_images
from benchmarks.claims.report import format_changes, format_rate, format_table, plot_rates

TITLE = "Noise conditioning augmentation"
CLAIM = "noise conditioning augmentation makes super-resolution robust to the errors of the stage before it"
STEPS = 500
IMAGES = 128
NO_NOISE = 40.0  # a shift of the augmentation schedule at which there is no noise at any level
TRAINED = {"with": {}, "without": {"diffusion.aug_schedule_shift": NO_NOISE}}
LEVELS = (0.0, 0.1, 0.2, 0.4)
NOISES = (8, 16, 32)  # standard deviations, of 0 … 255
BLURS = (0.5, 0.8, 1.2)  # standard deviations, in low-resolution pixels
TRUE = "true images"
SAMPLED = "samples of the base"


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """Returns uint8 images with Gaussian noise, which is the same for every deviation but for its scale."""
    noise = np.random.default_rng(SEED).standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images + deviation * noise), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """Returns uint8 images [N, h, w, C] with a Gaussian blur."""
    smooth = ndimage.gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


CORRUPTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"noise {deviation}": functools.partial(noisy, deviation=deviation) for deviation in NOISES},
    **{f"blur {deviation}": functools.partial(blurred, deviation=deviation) for deviation in BLURS},
}
SWEPT = (TRUE, SAMPLED, "noise 16")


def measure(work: Workspace) -> Figures:
    """Implements `Claim`."""
    return {
        "steps": work.steps(STEPS),
        "images": work.num_images(IMAGES),
        "trained": {training: measure_one(work, training) for training in TRAINED},
    }


def measure_one(work: Workspace, training: str) -> Figures:
    """Returns the scores by input of a stage trained "with" or "without" augmentation, and by sampling level."""

    def figures() -> Figures:
        folder = work.train(f"augmentation/{training}", work.config("sr", STEPS, TRAINED[training]))
        trained = load(folder)
        held_out = examples("held_out", trained.stage.config.image_hw[0], work.num_images(IMAGES))
        true = downsample(held_out.images, trained.stage.config.low_res_hw[0])
        small = Examples(held_out.captions, true)
        inputs = {TRUE: true, SAMPLED: sample_images(load(work.stages[0]), held_out.captions)[0]}
        inputs |= {name: corrupt(true) for name, corrupt in CORRUPTIONS.items()}
        usual = trained.stage.config.sampling.aug_level
        result: Figures = {"base": evaluate_images(inputs[SAMPLED], small), "level": usual, "inputs": {}, "levels": {}}
        for source in work.select(list(inputs)):
            result["inputs"][source] = evaluate_images(
                sample_images(trained, held_out.captions, inputs[source])[0], held_out
            )
        # a stage that was trained without noise does not know its level
        for level in work.select(LEVELS) if training == "with" else ():
            noised = load(folder, aug_level=level)
            result["levels"][str(level)] = {
                source: evaluate_images(sample_images(noised, held_out.captions, inputs[source])[0], held_out)
                for source in SWEPT
            }
        return result

    return work.cached(f"augmentation/{training}/figures", figures)


def summarize(figures: Figures) -> str:
    """Implements `Claim`."""
    without, augmented = (figures["trained"][name]["inputs"] for name in ("without", "with"))
    pairs = {source: (without[source]["scores"]["all"], augmented[source]["scores"]["all"]) for source in augmented}
    return f"fully correct images with augmentation compared to without, by input: {format_changes(pairs)}."


def describe(figures: Figures) -> str:
    """Implements `Claim`."""
    trained = figures["trained"]
    rows = []
    for source in trained["with"]["inputs"]:
        cells = [source]
        for name in TRAINED:
            row = trained[name]["inputs"][source]
            cells += [format_rate(row["scores"]["all"]), "" if source == SAMPLED else f"{row['psnr']:.1f}"]
        rows.append(cells)
    levels = trained["with"]["levels"]
    swept = [[source, *(format_rate(by[source]["scores"]["all"]) for by in levels.values())] for source in SWEPT]
    return "\n\n".join(
        [
            f"Two super-resolution stages of the demo's config are trained for {figures['steps']} steps each: with its "
            "augmentation, and without it (no noise at any level). Both enlarge the same "
            f"{figures['images']} images of held-out captions from 32×32 to 64×64, at augmentation level "
            f"{trained['with']['level']}: true images, samples of the demo's base "
            f"({format_rate(trained['with']['base']['scores']['all'])} fully correct at 32×32), and true images "
            "with Gaussian noise (standard deviation, of 255) or blur (standard deviation in 32×32 pixels). PSNR is "
            "against the true 64×64 image.",
            format_table(["input", "with: fully correct", "PSNR, dB", "without: fully correct", "PSNR, dB"], rows),
            "Fully correct images of the stage with augmentation, by the augmentation level of sampling:",
            format_table(["input", *(f"level {level}" for level in levels)], swept),
        ]
    )


def plot(figures: Figures) -> Figure:
    """Implements `Claim`."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, corruption, unit in ((panels[0], "noise", "of 255"), (panels[1], "blur", "pixels")):
        names = [TRUE, *(name for name in figures["trained"]["with"]["inputs"] if name.startswith(corruption))]
        strengths = [0.0, *(float(name.split()[1]) for name in names[1:])]
        for trained in TRAINED:
            inputs = figures["trained"][trained]["inputs"]
            plot_rates(axes, strengths, [inputs[name]["scores"]["all"] for name in names], f"{trained} augmentation")
        axes.set(xlabel=f"{corruption} of the input, {unit}", ylabel="fully correct, %")
    for source in SWEPT:
        levels = figures["trained"]["with"]["levels"]
        plot_rates(panels[2], list(map(float, levels)), [by[source]["scores"]["all"] for by in levels.values()], source)
    panels[2].set(xlabel="augmentation level of sampling", ylabel="fully correct, %")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
