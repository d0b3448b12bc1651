"""Measure edits by a changed prompt: `python -m benchmarks.editing_inversion --stages=shapes`.

Tasks are renders of `shapes` scenes of two objects, of which one is asked for in another color, by prompts that differ
in that word and its article. Prints a table of ways to edit: how often the color is right, how often all else is (the
other object, the background, and shape, size and place of both), how often both are, how many pixels that need no
change are the same to the bit, and the seconds that it took.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import (
    CommandFlags,
    define_path,
    define_pipeline,
    load_pipeline,
)
from imagen_jax.datasets.shapes.captions import article
from imagen_jax.datasets.shapes.detect import Detection, detect
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scene_sampling import sample_scene
from imagen_jax.datasets.shapes.scenes import (
    COLORS,
    HELD_OUT_APPEARANCES,
    Scene,
    SceneObject,
    scene_type,
    spatial_relation,
)
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.pipelines.editor import ImagenEditor

HEADER = (
    "| way | color, % | all else, % | both, % | pixels kept, % | s |",
    "|---|---|---|---|---|---|",
)
_NEAR = 0.1  # how far a detected object may be from its place, in x and y together, in units of the image's width
_SHOWN = 8  # tasks in the picture

_DEFAULT_STRENGTH = 0.5
_ABLATIONS: dict[str, dict[str, Any]] = {
    "no blending": {"blend": False},
    "no attention taken over": {"cross_steps": 0.0, "self_steps": 0.0},
    "neither": {"cross_steps": 0.0, "self_steps": 0.0, "blend": False},
    "guidance from no text": {"negative_prompt": ""},
}

_Edit = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
    """A scene, the scene that is asked for, and the index of the object in which they differ."""

    scene: Scene
    expected: Scene
    changed: int


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_pipeline(values)
    define_path(values, "out", "runs/editing_inversion", "A folder for a picture.")
    flags.DEFINE_integer("num_tasks", 128, "Images to edit.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_list("strengths", ["0.5", "0.6", "0.7", "0.8"], "Strengths of edits.", flag_values=values)
    flags.DEFINE_bool("sizes", False, "Whether prompts say which object is large or small.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Edits by all ways, prints the table, and writes a picture."""
    pipeline = load_pipeline(args)
    pipeline.set_progress_bar_config(disable=True)
    tasks = recoloring_tasks(args.num_tasks)
    images = np.stack([render(task.scene, pipeline.image_size) for task in tasks])
    print(f"{len(tasks)} tasks", *HEADER, sep="\n", flush=True)
    shown = [("given", images)]
    for way, edit in _ways(ImagenEditor(pipeline), tasks, images, args).items():
        start = time.monotonic()
        result = edit()
        print(f"| {way} | {' | '.join(figures(tasks, images, result))} | {time.monotonic() - start:.0f} |", flush=True)
        shown.append((way, result))
    rows = min(_SHOWN, len(tasks))
    texts = [
        way if column else prompt_of(task.expected, args.sizes)
        for task in tasks[:rows]
        for column, (way, _) in enumerate(shown)
    ]
    grid = image_grid(np.stack([images[row] for row in range(rows) for _, images in shown]), texts, len(shown), cell=96)
    save_png(grid, args.output_folder("runs/editing_inversion") / "edits.png")


def recoloring_tasks(count: int, seed: int = 5) -> list[Task]:
    """Returns tasks on validation scenes of two objects, none of which ask for a held-out combination."""
    rng, tasks = np.random.default_rng(seed), list[Task]()
    while len(tasks) < count:
        scene = sample_scene("validation", rng)
        if scene_type(scene) != "pair":
            continue
        changed = int(rng.integers(2))
        old, other = scene.objects[changed], scene.objects[1 - changed]
        taken = ((old.color, old.shape), (other.color, other.shape), *HELD_OUT_APPEARANCES)
        colors = [color for color in COLORS if (color, old.shape) not in taken]
        new = dataclasses.replace(old, color=colors[int(rng.integers(len(colors)))])
        objects = (new, other) if changed == 0 else (other, new)
        tasks.append(Task(scene, Scene(objects, scene.background), changed))
    return tasks


def prompt_of(scene: Scene, sizes: bool) -> str:
    """Returns a caption with the colors, shapes and background of two objects, their relation and, if asked, sizes."""
    first, second = scene.objects
    relation = spatial_relation((first.x, first.y), (second.x, second.y))
    words = [f"{item.size} {item.color}" if sizes else item.color for item in scene.objects]
    objects = [f"{article(word)} {word} {item.shape}" for word, item in zip(words, scene.objects, strict=True)]
    return f"{objects[0]} {relation} {objects[1]} on {article(scene.background)} {scene.background} background"


def judge(image: np.ndarray, task: Task) -> tuple[bool, bool]:
    """Returns whether the changed object has the color that is asked for, and whether all else is as it was."""
    detected = detect(image)
    new, other = (_detection_at(detected.objects, item) for item in _objects(task))
    asked, kept = _objects(task)
    color = new is not None and new.color == asked.color
    others = (
        len(detected.objects) == 2
        and detected.background == task.scene.background
        and new is not None
        and other is not None
        and new is not other
        and (new.shape, new.size) == (asked.shape, asked.size)
        and (other.shape, other.size, other.color) == (kept.shape, kept.size, kept.color)
    )
    return color, others


def _objects(task: Task) -> tuple[SceneObject, SceneObject]:
    """Returns the changed object of the scene that is asked for, and the other one."""
    return task.expected.objects[task.changed], task.expected.objects[1 - task.changed]


def _detection_at(objects: tuple[Detection, ...], item: SceneObject) -> Detection | None:
    """Returns the detected object that is nearest to an object, if it is near."""
    distances = [abs(one.x - item.x) + abs(one.y - item.y) for one in objects]
    return objects[int(np.argmin(distances))] if distances and min(distances) <= _NEAR else None


def figures(tasks: list[Task], images: np.ndarray, edited: np.ndarray) -> list[str]:
    """Returns columns of the table: color, all else, both, pixels kept."""
    color, others = np.array([judge(image, task) for image, task in zip(edited, tasks, strict=True)]).T
    expected = np.stack([render(task.expected, images.shape[1:3]) for task in tasks])
    same = (expected == images).all(axis=-1)
    kept = (edited == images).all(axis=-1)[same]
    return [f"{100 * np.mean(values):.1f}" for values in (color, others, color & others, kept)]


def _ways(editor: ImagenEditor, tasks: list[Task], images: np.ndarray, args: CommandFlags) -> dict[str, _Edit]:
    """Returns the ways to edit, by their names."""
    sources = [prompt_of(task.scene, args.sizes) for task in tasks]
    prompts = [prompt_of(task.expected, args.sizes) for task in tasks]
    batch = {"batch_size": args.batch_size}

    def image_to_image(strength: float) -> np.ndarray:
        return editor.image_to_image(images, prompts, strength, **batch).images

    def inversion() -> np.ndarray:
        return editor.from_inversion(editor.invert(images, sources, **batch), prompts).images

    def edit(strength: float, **settings: Any) -> np.ndarray:
        return editor.edit(images, sources, prompts, strength, **settings, **batch).images

    strengths = [float(strength) for strength in args.strengths]
    ways: dict[str, _Edit] = {}
    for strength in strengths:
        ways[f"`image_to_image`, strength {strength}"] = functools.partial(image_to_image, strength)
    ways["`invert`, then the new prompt"] = inversion
    for strength in strengths:
        ways[f"`edit`, strength {strength}"] = functools.partial(edit, strength)
    for name, settings in _ABLATIONS.items():
        ways[f"`edit`, {name}"] = functools.partial(edit, _DEFAULT_STRENGTH, **settings)
    return ways


if __name__ == "__main__":
    app.main(__name__)
