"""Noise conditioning augmentation makes super-resolution robust to the errors of the stage before it.

arXiv:2205.11487, Sections 2.3 and 4.4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from benchmarks.claims.experiment import SEED, Examples, Figures, Workplace, draw, examples, load
from benchmarks.claims.measures import judged, shrunk
from benchmarks.claims.report import changes, interval, lines, table

TITLE = "Noise conditioning augmentation"
CLAIM = "noise conditioning augmentation makes super-resolution robust to the errors of the stage before it"
STEPS = 500
PICTURES = 128
NO_NOISE = 40.0  # a shift of the schedule of augmentation beyond which there is no noise at any level
TRAINED = {"with": {}, "without": {"diffusion.aug_schedule_shift": NO_NOISE}}
LEVELS = (0.0, 0.1, 0.2, 0.4)
NOISES = (8, 16, 32)  # standard deviations, of 0 … 255
BLURS = (0.5, 0.8, 1.2)  # standard deviations, in low-resolution pixels
TRUE = "true pictures"
DRAWN = "the base's"


def noisy(images: np.ndarray, deviation: float) -> np.ndarray:
    """uint8 pictures with Gaussian noise, the same for every deviation."""
    noise = np.random.default_rng(SEED).standard_normal(images.shape, np.float32)
    return np.clip(np.rint(images + deviation * noise), 0, 255).astype(np.uint8)


def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """uint8 pictures [N, h, w, C] under a Gaussian blur."""
    smooth = ndimage.gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


HARMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"noise {deviation}": functools.partial(noisy, deviation=deviation) for deviation in NOISES},
    **{f"blur {deviation}": functools.partial(blurred, deviation=deviation) for deviation in BLURS},
}
SWEPT = (TRUE, DRAWN, "noise 16")


def measure(work: Workplace) -> Figures:
    """See ``Claim``."""
    return {
        "steps": work.steps(STEPS),
        "pictures": work.pictures(PICTURES),
        "trained": {name: measure_one(work, name) for name in TRAINED},
    }


def measure_one(work: Workplace, name: str) -> Figures:
    """By sampling level, by input, what a stage that was trained with or without augmentation draws."""

    def figures() -> Figures:
        folder = work.train(f"augmentation/{name}", work.config("sr", STEPS, TRAINED[name]))
        trained = load(folder)
        asked = examples("held_out", trained.stage.config.image_size, work.pictures(PICTURES))
        true = shrunk(asked.images, trained.stage.config.low_res_size)
        small = Examples(asked.captions, true)
        inputs = {TRUE: true, DRAWN: draw(load(work.stages[0]), asked.captions)[0]}
        inputs |= {harm: done(true) for harm, done in HARMS.items()}
        usual = trained.stage.config.sampling.aug_level
        found: Figures = {"base": judged(inputs[DRAWN], small), "level": usual, "inputs": {}, "levels": {}}
        for given in work.some(list(inputs)):
            found["inputs"][given] = judged(draw(trained, asked.captions, inputs[given])[0], asked)
        # a stage that never saw the noise has nothing to be told of it
        for level in work.some(LEVELS) if name == "with" else ():
            noised = load(folder, aug_level=level)
            found["levels"][str(level)] = {
                given: judged(draw(noised, asked.captions, inputs[given])[0], asked) for given in SWEPT
            }
        return found

    return work.remember(f"augmentation/{name}/figures", figures)


def find(figures: Figures) -> str:
    """See ``Claim``."""
    without, augmented = (figures["trained"][name]["inputs"] for name in ("without", "with"))
    pairs = {given: (without[given]["scores"]["all"], augmented[given]["scores"]["all"]) for given in augmented}
    return f"with augmentation against without, right in all by what is enlarged: {changes(pairs)}."


def tell(figures: Figures) -> str:
    """See ``Claim``."""
    found = figures["trained"]
    rows = []
    for given in found["with"]["inputs"]:
        cells = [given]
        for name in TRAINED:
            seen = found[name]["inputs"][given]
            cells += [interval(seen["scores"]["all"]), "" if given == DRAWN else f"{seen['psnr']:.1f}"]
        rows.append(cells)
    levels = found["with"]["levels"]
    swept = [[given, *(interval(by[given]["scores"]["all"]) for by in levels.values())] for given in SWEPT]
    return "\n\n".join(
        [
            f"Two super-resolution stages of the demo's config are trained for {figures['steps']} steps each: with its "
            "augmentation, and without (at every level no noise). Both enlarge the same "
            f"{figures['pictures']} pictures of held-out captions from 32×32 to 64×64, sampling at augmentation level "
            f"{found['with']['level']}: true ones, those that the demo's base drew "
            f"({interval(found['with']['base']['scores']['all'])} right before they are enlarged), and true ones "
            "harmed by Gaussian noise (standard deviation of 0 … 255) or blur (standard deviation in pixels of 32×32). "
            "PSNR is against the true picture of 64×64.",
            table(["input", "with: all right", "PSNR, dB", "without: all right", "PSNR, dB"], rows),
            "All right by the level at which the one with augmentation samples:",
            table(["input", *(f"level {level}" for level in levels)], swept),
        ]
    )


def plot(figures: Figures) -> Figure:
    """See ``Claim``."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, harm, unit in ((panels[0], "noise", "of 0 … 255"), (panels[1], "blur", "pixels")):
        names = [TRUE, *(name for name in figures["trained"]["with"]["inputs"] if name.startswith(harm))]
        strengths = [0.0, *(float(name.split()[1]) for name in names[1:])]
        for trained in TRAINED:
            inputs = figures["trained"][trained]["inputs"]
            lines(axes, strengths, [inputs[name]["scores"]["all"] for name in names], f"{trained} augmentation")
        axes.set(xlabel=f"{harm} in the input, {unit}", ylabel="captions obeyed, %")
    for given in SWEPT:
        levels = figures["trained"]["with"]["levels"]
        lines(panels[2], list(map(float, levels)), [by[given]["scores"]["all"] for by in levels.values()], given)
    panels[2].set(xlabel="augmentation level of sampling", ylabel="captions obeyed, %")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
