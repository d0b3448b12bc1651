"""Measure editing on scenes that a program reads: `python -m benchmarks.editing --stages=shapes`.

Tables of inpainting, outpainting, image to image and inversion, as in docs/editing.md. Tasks are renders of `shapes`
scenes that training may show; what is asked for, such as a green ring, is a combination that it does not show.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import (
    CommandFlags,
    define_path,
    define_pipeline,
    load_pipeline,
)
from imagen_jax.datasets.shapes import captions, descriptions, detect, judge, render, scene_sampling
from imagen_jax.datasets.shapes.scenes import COLORS, HELD_OUT_APPEARANCES, Scene, SceneObject, scene_type
from imagen_jax.images.array import Size
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.pipelines.editor import ImagenEditor

SIZE = 64
NEW = ("green", "ring")  # a held-out appearance
MARGIN = 3 / 64  # of a mask around an object, in units of the image's width
NEAR = 0.12  # how far a detected object may be from where it should be, in units of the image's width
INPAINTING_COLUMNS = (
    "new object",
    "other object",
    "all of the prompt",
    "other pixels the same",
    "step at the border",
    "s",
)
STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Task:
    """An image to edit.

    Attributes:
        image: uint8 [H, W, 3].
        mask: bool [H, W], what is to be drawn anew.
        prompt: of the result.
        source: prompt of the image.
        expected: the scene that is asked for.
        changed: index of its object that is new.
    """

    image: np.ndarray
    mask: np.ndarray
    prompt: str
    source: str
    expected: Scene
    changed: int


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_pipeline(values)
    define_path(values, "out", "runs/editing", "A folder for pictures.")
    flags.DEFINE_integer("num_tasks", 512, "Tasks of each table.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_list("only", ["inpaint", "outpaint", "image", "invert"], "Tables.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the tables, and writes pictures."""
    pipeline = load_pipeline(args)
    pipeline.set_progress_bar_config(disable=True)
    editor, out = ImagenEditor(pipeline), args.output_folder("runs/editing")
    tables: dict[str, Callable[[ImagenEditor, int, int, Path], None]] = {
        "inpaint": _inpaint,
        "outpaint": _outpaint,
        "image": _image_to_image,
        "invert": _invert,
    }
    for name in args.only:
        tables[name](editor, args.num_tasks, args.batch_size, out)


def ring_tasks(count: int, size: int = SIZE) -> list[Task]:
    """Returns the tasks of inpainting: one of two objects becomes `NEW`. `size` is the side of the images."""
    return pair_tasks(count, lambda item, _: dataclasses.replace(item, color=NEW[0], shape=NEW[1]), seed=5, size=size)


def pair_tasks(
    count: int, change: Callable[[SceneObject, np.random.Generator], SceneObject], seed: int, size: int = SIZE
) -> list[Task]:
    """Returns tasks on scenes of two objects, of which one is changed; its mask is a box around it."""
    rng, tasks = np.random.default_rng(seed), list[Task]()
    while len(tasks) < count:
        scene = scene_sampling.sample_scene("train", rng)
        if scene_type(scene) != "pair":
            continue
        index = int(rng.integers(2))
        old, other = scene.objects[index], scene.objects[1 - index]
        new = change(old, rng)
        if (new.color, new.shape) in ((other.color, other.shape), (old.color, old.shape)):
            continue
        expected = dataclasses.replace(scene, objects=tuple([new, other] if index == 0 else [other, new]))
        mask = _box((size, size), old)
        prompt, source = (
            captions.sample_caption(descriptions.sample_description(one, rng), rng) for one in (expected, scene)
        )
        tasks.append(Task(render.render(scene, size), mask, prompt, source, expected, index))
    return tasks


def _box(size: Size, item: SceneObject) -> np.ndarray:
    """Returns the mask of a box around an object, bool [H, W]."""
    rows, columns = size
    x, y, radius = item.x * columns, item.y * rows, item.radius * min(size) + MARGIN * min(size)
    mask = np.zeros(size, bool)
    mask[max(0, int(y - radius)) : int(np.ceil(y + radius)), max(0, int(x - radius)) : int(np.ceil(x + radius))] = True
    return mask


def objects_right(image: np.ndarray, expected: Scene, sizes: bool = False) -> list[bool]:
    """Returns for each object of a scene whether the image has one of its color and shape at its place."""
    found = detect.detect(image).objects
    return [
        any(
            (one.color, one.shape) == (item.color, item.shape)
            and (not sizes or one.size == item.size)
            and np.hypot(one.x - item.x, one.y - item.y) <= NEAR
            for one in found
        )
        for item in expected.objects
    ]


def border_step(images: np.ndarray, masks: np.ndarray) -> float:
    """Returns the mean absolute difference of pixels on either side of the masks' borders, in units of 1/255."""
    values = images.astype(np.float32)
    steps = []
    for axis in (1, 2):
        differs = np.diff(masks.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(values, axis=axis))[differs])
    return float(np.concatenate(steps).mean())


def inpainting_figures(tasks: Sequence[Task], images: np.ndarray) -> list[str]:
    """Returns `INPAINTING_COLUMNS` of images for the tasks, but for the seconds."""
    new, other, all_right, kept = [], [], [], []
    for task, image in zip(tasks, images, strict=True):
        right = objects_right(image, task.expected)
        new.append(right[task.changed])
        other += [one for index, one in enumerate(right) if index != task.changed]
        all_right.append(judge.judge(image, captions.parse_caption(task.prompt)).all)
        kept.append(np.array_equal(image[~task.mask], task.image[~task.mask]))
    masks = np.stack([task.mask for task in tasks])
    rates = [f"{100 * np.mean(values):.1f}%" for values in (new, other, all_right, kept)]
    return [*rates, f"{border_step(images, masks):.2f}"]


def _inpaint(editor: ImagenEditor, count: int, batch: int, out: Path) -> None:
    tasks = ring_tasks(count)
    prompts = [task.prompt for task in tasks]
    images, masks = np.stack([task.image for task in tasks]), [task.mask for task in tasks]
    print(f"inpainting: one of two objects becomes a {' '.join(NEW)}; {count} tasks")
    print(f"| way | {' | '.join(INPAINTING_COLUMNS)} |\n|---|---|---|---|---|---|---|")
    shown = [("given", images)]

    def drawn() -> np.ndarray:
        return editor.pipeline(prompts, seed=1, batch_size=batch).images

    def pasted() -> np.ndarray:
        return np.where(np.stack(masks)[..., None], drawn(), images)

    def inpainted(repeats: int) -> np.ndarray:
        return editor.inpaint(images, masks, prompts, resample=repeats, seed=1, batch_size=batch).images

    ways: dict[str, Callable[[], np.ndarray]] = {
        "drawn without the image": drawn,
        "drawn without the image, and pasted": pasted,
    }
    for repeats in (1, 2, 4, 10):
        ways[f"known pixels in each step, resample={repeats}"] = functools.partial(inpainted, repeats)
    for way, draw in ways.items():
        draw_once = time.monotonic()
        result = draw()
        seconds = time.monotonic() - draw_once
        print(f"| {way} | {' | '.join(inpainting_figures(tasks, result))} | {seconds:.0f} |", flush=True)
        shown.append((way, result))
    truth = np.stack([render.render(task.expected, SIZE) for task in tasks])
    print(f"| true pictures | {' | '.join(inpainting_figures(tasks, truth))} | – |")
    save_grid(out / "inpaint.png", shown, prompts)


def _outpaint(editor: ImagenEditor, count: int, batch: int, out: Path) -> None:
    rng, tasks = np.random.default_rng(6), list[Task]()
    canvas = (SIZE, 2 * SIZE)
    while len(tasks) < count:
        scene = scene_sampling.sample_scene("train", rng)
        appearance = HELD_OUT_APPEARANCES[int(rng.integers(len(HELD_OUT_APPEARANCES)))]
        if scene_type(scene) != "single" or (scene.objects[0].color, scene.objects[0].shape) == appearance:
            continue
        (item,) = scene.objects
        image = render.render(scene, SIZE)
        mask = np.ones(canvas, bool)
        mask[:, :SIZE] = False
        left = dataclasses.replace(item, x=item.x / 2)
        right = SceneObject(appearance[1], appearance[0], "large", 0.75, 0.5, 0.21)
        on = "" if scene.background == "white" else f" on a {scene.background} background"
        prompt = f"a {item.color} {item.shape} left of a {right.color} {right.shape}{on}"
        expected = Scene((left, right), scene.background)
        tasks.append(Task(np.pad(image, ((0, 0), (0, SIZE), (0, 0))), mask, prompt, "", expected, 1))
    print(f"outpainting: 64×64 to 64×128, an object is added; {count} tasks")
    print("| way | added object | and no third | given object | given pixels the same | step at the border | s |")
    print("|---|---|---|---|---|---|---|")
    prompts, given = [task.prompt for task in tasks], np.stack([task.image[:, :SIZE] for task in tasks])
    shown = [("given", np.stack([task.image for task in tasks]))]

    def evenly() -> np.ndarray:
        extended = np.pad(given, ((0, 0), (0, 0), (0, SIZE), (0, 0)), mode="edge")
        size = {"height": canvas[0], "width": canvas[1]}
        return editor.inpaint(extended, tasks[0].mask, prompts, seed=1, batch_size=batch, **size).images

    def outpainted(repeats: int) -> np.ndarray:
        return editor.outpaint(given, canvas, prompts, (0, 0), repeats, seed=1, batch_size=batch).images

    ways: dict[str, Callable[[], np.ndarray]] = {"`inpaint`, positions spread evenly": evenly}
    for repeats in (1, 4):
        ways[f"`outpaint`, resample={repeats}"] = functools.partial(outpainted, repeats)
    for way, draw in ways.items():
        start = time.monotonic()
        result = draw()
        seconds = time.monotonic() - start
        print(f"| {way} | {' | '.join(_outpaint_figures(tasks, given, result))} | {seconds:.0f} |", flush=True)
        shown.append((way, result))
    save_grid(out / "outpaint.png", shown, prompts)


def _outpaint_figures(tasks: Sequence[Task], given: np.ndarray, images: np.ndarray) -> list[str]:
    """Returns columns of a table: added object, no third one, given object, given pixels, step at the border."""
    added, alone, kept = [], [], []
    for task, image in zip(tasks, images, strict=True):
        found = detect.detect(image).objects
        old, new = task.expected.objects
        added.append(any((one.color, one.shape) == (new.color, new.shape) and one.x > 0.5 for one in found))
        alone.append(added[-1] and len(found) == 2)
        kept.append(any((one.color, one.shape) == (old.color, old.shape) and one.x < 0.5 for one in found))
    same = [np.array_equal(image[:, :SIZE], one) for image, one in zip(images, given, strict=True)]
    rates = [f"{100 * np.mean(values):.1f}%" for values in (added, alone, kept, same)]
    return [*rates, f"{border_step(images, np.stack([task.mask for task in tasks])):.2f}"]


def recolored(item: SceneObject, rng: np.random.Generator) -> SceneObject:
    """Returns an object in another color."""
    return dataclasses.replace(item, color=str(rng.choice([color for color in COLORS if color != item.color])))


def _image_to_image(editor: ImagenEditor, count: int, batch: int, out: Path) -> None:
    tasks = pair_tasks(count, recolored, seed=7)
    prompts, images = [task.prompt for task in tasks], np.stack([task.image for task in tasks])
    print(f"image to image: one of two objects gets another color; {count} tasks")
    print(
        "| strength | asked object | other object | all of the prompt | PSNR to the image, dB |\n|---|---|---|---|---|"
    )
    rows, shown = [], [("given", images)]
    for strength in STRENGTHS:
        result = editor.image_to_image(images, prompts, strength, seed=1, batch_size=batch).images
        right = [objects_right(image, task.expected) for image, task in zip(result, tasks, strict=True)]
        asked = np.mean([one[task.changed] for one, task in zip(right, tasks, strict=True)])
        other = np.mean([one[1 - task.changed] for one, task in zip(right, tasks, strict=True)])
        every = np.mean(
            [
                judge.judge(image, captions.parse_caption(prompt)).all
                for image, prompt in zip(result, prompts, strict=True)
            ]
        )
        rows.append((strength, float(asked), float(every), psnr(result, images)))
        print(
            f"| {strength} | {100 * asked:.1f}% | {100 * other:.1f}% | {100 * every:.1f}% | {rows[-1][-1]:.1f} |",
            flush=True,
        )
        if strength in (0.2, 0.4, 0.6, 0.8, 1.0):
            shown.append((f"strength {strength}", result))
    save_grid(out / "image_to_image.png", shown, prompts)
    _plot(out / "image_to_image_curve.png", rows)


def _invert(editor: ImagenEditor, count: int, batch: int, out: Path) -> None:
    tasks = pair_tasks(min(count, 64), recolored, seed=8)
    images, sources = np.stack([task.image for task in tasks]), [task.source for task in tasks]
    print(f"inversion: 50 steps up and down, all stages; {len(tasks)} images")
    print("| way | guidance | PSNR, dB | worst | s |\n|---|---|---|---|---|")
    configured = [float(trained.stage.config.sampling.guidance_scale) for trained in editor.pipeline.stages]
    for exact in (True, False):
        for guidance in ([1.0] * len(configured), configured):
            start = time.monotonic()
            inversion = editor.invert(images, sources, exact, guidance_scale=guidance, batch_size=batch)
            again = editor.from_inversion(inversion).images
            seconds = time.monotonic() - start
            worst = min(psnr(one[None], image[None]) for one, image in zip(again, images, strict=True))
            way = "`bdia`" if exact else "`ddim`, 5 evaluations a step up"
            scales = ", ".join(f"{scale:g}" for scale in guidance)
            print(f"| {way} | {scales} | {psnr(again, images):.1f} | {worst:.1f} | {seconds:.0f} |", flush=True)


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Returns the PSNR in dB of uint8 images, of their mean squared error; 99 at most."""
    error = float(np.mean(np.square(images.astype(np.float32) - others)))
    return min(99.0, 10 * float(np.log10(255**2 / max(error, 1e-9))))


def save_grid(path: Path, shown: Sequence[tuple[str, np.ndarray]], prompts: Sequence[str]) -> None:
    """Writes a grid with a row for each of the first tasks, and a column for each way."""
    rows = min(4, len(prompts))
    images = [images[row] for row in range(rows) for _, images in shown]
    texts = [way if column else prompts[row] for row in range(rows) for column, (way, _) in enumerate(shown)]
    save_png(image_grid(np.stack(images), texts, len(shown), cell=128), path)


def _plot(path: Path, rows: Sequence[tuple[float, float, float, float]]) -> None:
    """Writes the curve of image to image."""
    strengths, asked, every, psnrs = zip(*rows, strict=True)
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(strengths, [100 * value for value in asked], "o-", label="asked object right, %")
    axes.plot(strengths, [100 * value for value in every], "s-", label="all of the prompt right, %")
    axes.plot(strengths, psnrs, "^--", label="PSNR to the image, dB")
    axes.set_xlabel("strength")
    axes.set_ylim(0, 103)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app.main(__name__)
