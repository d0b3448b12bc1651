"""Measure try-on on people that a program reads: `python -m benchmarks.try_on --stages=DIR,DIR`.

The table of docs/try_on.md, and a picture of the first tasks. A task is the render of a person that training may show;
one garment becomes another of its place, of another color, by the prompt.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy import ndimage

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path, define_pipeline, load_pipeline
from imagen_jax.datasets.figures import captions, judge, render
from imagen_jax.datasets.figures.figure_sampling import sample_figure, sample_garment
from imagen_jax.datasets.figures.scenes import Figure, Garment
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.pipelines.editor import ImagenEditor

SIZE = 64
MARGIN = 2  # pixels of a mask around the area of a garment
SHOWN = 12  # tasks in the picture


@dataclasses.dataclass(frozen=True)
class Task:
    """A garment to try on.

    Attributes:
        image: uint8 [H, W, 3].
        mask: bool [H, W], what is to be drawn anew.
        expected: the figure that is asked for.
        changed: index of its garment that is new.
        prompt: of the result: all garments and the background.
    """

    image: np.ndarray
    mask: np.ndarray
    expected: Figure
    changed: int
    prompt: str


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_pipeline(values)
    define_path(values, "out", "runs/try_on", "A folder for a picture.")
    flags.DEFINE_integer("num_tasks", 512, "Tasks of each row.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Images at once.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the table, and writes a picture."""
    pipeline = load_pipeline(args)
    pipeline.set_progress_bar_config(disable=True)
    editor, out = ImagenEditor(pipeline), args.output_folder("runs/try_on")
    print(f"{args.num_tasks} tasks of each row")
    print(
        "| mask | new garment | all of it right | noun | color | pattern | all else right | pixels outside same | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row, (box, held_out) in enumerate(((False, True), (True, True), (False, False))):
        tasks = sample_tasks(args.num_tasks, box, held_out, seed=11)
        if row == 0:
            # the first call compiles
            _try_on(editor, tasks[: args.batch_size], args.batch_size)
        start = time.monotonic()
        images = _try_on(editor, tasks, args.batch_size)
        seconds = time.monotonic() - start
        names = "bounding box" if box else "area", "held out" if held_out else "shown in training"
        print(f"| {' | '.join(names)} | {' | '.join(rates(tasks, images))} | {seconds:.0f} |", flush=True)
        if row == 0:
            _picture(out / "try_on.png", tasks, images)
    truth = np.stack([render.render(task.expected, SIZE) for task in tasks])
    print(f"| – | true pictures | {' | '.join(rates(tasks, truth))} | – |")
    given = np.stack([task.image for task in tasks])
    print(f"| – | as it was | {' | '.join(rates(tasks, given))} | – |")


def sample_tasks(count: int, box: bool, held_out: bool, seed: int) -> list[Task]:
    """Returns tasks.

    Args:
        count: how many.
        box: whether masks are bounding boxes; else they are what garments of the place may cover, with a margin.
        held_out: whether the new garments are held out of training.
        seed: of the tasks; the figures do not depend on `box`.
    """
    rng, tasks = np.random.default_rng(seed), list[Task]()
    while len(tasks) < count:
        figure = sample_figure("validation", rng)
        changed = int(rng.integers(len(figure.garments)))
        worn = [garment.color for garment in figure.garments]
        new = sample_garment(figure.garments[changed].place, rng, held_out, worn)
        expected = dataclasses.replace(figure, garments=_replaced(figure.garments, changed, new))
        prompt = captions.sample_caption(captions.Description(expected.garments, expected.background), rng)
        mask = garment_mask(render.object_map(figure, SIZE) == changed + 1, box)
        tasks.append(Task(render.render(figure, SIZE), mask, expected, changed, prompt))
    return tasks


def _replaced(garments: tuple[Garment, ...], index: int, new: Garment) -> tuple[Garment, ...]:
    return (*garments[:index], new, *garments[index + 1 :])


def garment_mask(area: np.ndarray, box: bool) -> np.ndarray:
    """Returns the mask of a garment, bool [H, W], with a margin: its area or its bounding box."""
    if box:
        rows, columns = (np.flatnonzero(area.any(axis)) for axis in (1, 0))
        area = np.zeros_like(area)
        area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return ndimage.binary_dilation(area, np.ones((3, 3)), iterations=MARGIN)


def rates(tasks: Sequence[Task], images: np.ndarray) -> list[str]:
    """Returns columns of the table: the new garment, its attributes, all else, pixels that are kept."""
    new, attributes, others, kept = [], [], [], []
    for task, image in zip(tasks, images, strict=True):
        judgment = judge.judge(image, captions.Description(task.expected.garments, task.expected.background))
        matches = list(judgment.garments)
        attributes.append(matches.pop(task.changed))
        new.append(all(attributes[-1]))
        others.append(all(map(all, matches)) and bool(judgment.background))
        kept.append(np.array_equal(image[~task.mask], task.image[~task.mask]))
    means = [np.mean(new), *np.mean(attributes, axis=0), np.mean(others), np.mean(kept)]
    return [f"{100 * mean:.1f}%" for mean in means]


def _try_on(editor: ImagenEditor, tasks: Sequence[Task], batch: int) -> np.ndarray:
    images, masks, prompts = zip(*((task.image, task.mask, task.prompt) for task in tasks), strict=True)
    return editor.inpaint(np.stack(images), list(masks), list(prompts), seed=1, batch_size=batch).images


def _picture(path: Path, tasks: Sequence[Task], images: np.ndarray) -> None:
    """Writes a grid of the first tasks, two in a row: the image, its mask in white, and the result."""
    shown, texts = [], []
    for task, image in zip(tasks[:SHOWN], images[:SHOWN], strict=True):
        shown += [task.image, np.where(task.mask[..., None], np.uint8(255), task.image), image]
        texts += ["given", "mask", captions.garment_words(task.expected.garments[task.changed])]
    save_png(image_grid(np.stack(shown), texts, 6, cell=128), path)


if __name__ == "__main__":
    app.main(__name__)
