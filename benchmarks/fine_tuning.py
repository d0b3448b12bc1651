"""Teach the shipped cascade a star or a heart from five images, and measure: `python -m benchmarks.fine_tuning`.

The table of docs/fine_tuning.md: how often new combinations of the new shape are right in everything their captions
claim, and how much of the rest is lost. `--rows=NAME,NAME` makes some rows. `star` is made first, as the others take
the images of the class that it drew, and those that train the base alone its super-resolution. `both` draws a star and
a heart in one image by two adapters, which `star` and `heart` made before; `--rows=names` shows what a name does to the
rest of a caption.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.datasets.shapes.captions import parse_caption, sample_caption
from imagen_jax.datasets.shapes.descriptions import Description, sample_description
from imagen_jax.datasets.shapes.judge import judge
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import INVERSE_RELATION, Scene, SceneObject, scene_type
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.io.paths import as_path, file_sizes
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.published import is_published_stage
from imagen_jax.stages.stage import build
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.training.finetune import Finetuned, FinetuneSettings, finetune
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_parts

CASCADE = "shapes"
RARE = "sks"
SHOWN = 24
_PRIOR_SEED, _NEW_SEED, _OLD_SEED = 77, 78, 79
STEPS, PRIOR_IMAGES, SCALE = 1200, 1000, 1.1
_STARTS_AS = "circle"  # the word that the token starts as

# what a row changes of `FinetuneSettings`
ROWS: dict[str, dict[str, Any]] = {
    "star": {},
    "heart": {},
    "rank 2": {"rank": 2, "only": (0,)},
    "rank 32": {"rank": 32, "only": (0,)},
    "without class images": {"class_name": "", "prior_prompts": (), "class_images": "", "only": (0,)},
    "without learning the token": {"initializer": "", "only": (0,)},
    "every kernel": {"targets": (".",), "only": (0,)},
    "textual inversion": {"method": "textual_inversion"},
    "without varied copies": {"varied": 0},
    "dreambooth": {"method": "dreambooth", "initializer": ""},
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "out", "runs/fine_tuning", "A folder for the runs and pictures.")
    flags.DEFINE_string("rows", ",".join(ROWS), "Rows to make, separated by commas.", flag_values=values)
    flags.DEFINE_integer("num_prompts", 256, "Prompts of new combinations.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("num_old", 512, "Captions without the new shape.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", STEPS, "Steps of each stage.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("prior_images", PRIOR_IMAGES, "Images of the class.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("scale", SCALE, "Of adapters, in sampling.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the rows."""
    out = as_path(args.out)
    before = ImagenPipeline.from_pretrained(CASCADE)
    before.set_progress_bar_config(disable=True)
    if args.rows == "names":
        _names(before, args.num_prompts)
        return
    old = [ShapesSource(_OLD_SEED, "held_out", 64, 10**6).captions(index)[0] for index in range(args.num_old)]
    kept = _correct(before, old)[-1]
    print(f"without fine-tuning: {kept.mean():.1%} of {len(old)} other captions are right\n")
    print("| row | new combinations | base alone | other captions | change | seconds | trained | bytes | optimizer |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.rows.split(","):
        if name == "both":
            _both(out, args.num_prompts)
        else:
            _row(name, out, args, old, kept.mean())


def _row(name: str, out: Path, args: CommandFlags, old: Sequence[str], kept: float) -> None:
    """Makes a row: trains, samples, judges and prints."""
    shape = "heart" if name == "heart" else "star"
    images = write_images(shape, out / f"images_{shape}")
    prior = _prior_prompts(args.prior_images, old)
    settings = FinetuneSettings(
        token=f"{RARE} {shape}",
        class_name="shape",
        initializer=_STARTS_AS,
        prior_prompts=prior,
        prior_images=args.prior_images,
        steps=args.steps,
        batch_size=16,
    )
    drawn = out / "star" / "prior" / "images"
    if name != "star" and drawn.is_dir():
        settings = dataclasses.replace(settings, class_images=str(drawn), prior_prompts=())
    settings = dataclasses.replace(settings, **ROWS[name])
    start = time.perf_counter()
    folder = out / name.replace(" ", "_")
    result = finetune(CASCADE, images, folder, settings, log=lambda _: None)
    seconds = time.perf_counter() - start
    tuned = _tuned(result, args.scale)
    enlarging = out / "star" / "adapter" / "stage_1"
    if result.adapter is not None and not (result.adapter / "stage_1").is_dir() and enlarging.is_dir():
        tuned.load_lora(enlarging, args.scale, name="super-resolution of the star")
    prompts = new_prompts(shape, args.num_prompts)
    alone, right = _correct(tuned, prompts, folder / "new.png")
    rate = _correct(tuned, old, folder / "old.png")[-1].mean()
    trained, optimizer = _trained(result.stages)
    adapter = result.adapter and sum(size for file, size in file_sizes(result.adapter).items() if file.endswith("rs"))
    sizes = adapter or sum(leaf.nbytes for stage in tuned.stages for leaf in jax.tree.leaves(stage.params))
    figures = f"{right.mean():.1%} | {alone.mean():.1%} | {rate:.1%} | {100 * (rate - kept):+.1f} | {seconds:.0f}"
    print(f"| {name} | {figures} | {trained:,} | {sizes:,} | {optimizer:,} |", flush=True)


def _prior_prompts(count: int, asked: Sequence[str]) -> list[str]:
    """Returns captions of the class: half with combinations that the cascade was trained on, half with others.

    It draws those by what it has learned of their parts, which is lost first; those that are judged are not among them.
    """
    sources = [ShapesSource(_PRIOR_SEED, split, 64, 10**6) for split in ("train", "held_out")]
    captions = (source.captions(index)[0] for index in range(10 * count) for source in sources)
    others = set(asked)
    return list(itertools.islice((caption for caption in captions if caption not in others), count))


def _tuned(result: Finetuned, scale: float) -> ImagenPipeline:
    """Returns the cascade as it was fine-tuned; with adapters, at a scale."""
    if result.adapter is not None and any(result.adapter.glob("stage_*")):
        pipeline = ImagenPipeline.from_pretrained(CASCADE).load_lora(result.adapter, scale)
    else:
        pipeline = ImagenPipeline.from_pretrained([str(path) for path in result.stages])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _trained(folders: Sequence[Path]) -> tuple[int, int]:
    """Returns the number of parameters that runs train, and the bytes of their optimizers' states."""
    trained = optimizer_bytes = 0
    for folder in folders:
        if is_published_stage(folder):
            continue
        config = read_config(folder)
        stage, optimizer = build(config), make_optimizer(config.optimizer, config.training.steps)
        mesh = make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
        state, _ = abstract_parts(stage.init, optimizer, mesh, (), trained_patterns(config))
        trained += sum(leaf.size for leaf in jax.tree.leaves(state.params))
        optimizer_bytes += sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
    return trained, optimizer_bytes


def _names(pipeline: ImagenPipeline, num_prompts: int) -> None:
    """Prints how often all but the shape is right, with names that the text encoder has and has not seen."""
    prompts = new_prompts("star", num_prompts)
    claims = [parse_caption(prompt.replace(f"{RARE} star", "shape")) for prompt in prompts]
    for name in ("square", "shape", "star", "sks", "sks shape", "sks star"):
        images = pipeline([prompt.replace(f"{RARE} star", name) for prompt in prompts], batch_size=64).images
        right = np.mean([judge(image, claim).all for image, claim in zip(images, claims, strict=True)])
        print(f"| {name} | {right:.1%} |", flush=True)


def _both(out: Path, num_prompts: int) -> None:
    """Prints how often a star and a heart are in one image by their two adapters, at some scales; and draws scales."""
    pipeline = ImagenPipeline.from_pretrained(CASCADE)
    pipeline.set_progress_bar_config(disable=True)
    for shape in ("star", "heart"):
        pipeline.load_lora(out / shape / "adapter", name=shape)
    prompts = new_prompts("star", num_prompts, other="heart")
    for scale in (0.6, 0.8, 1.0):
        for shape in ("star", "heart"):
            pipeline.set_lora_scale(shape, scale)
        right = _correct(pipeline, prompts, out / f"both_{scale}.png")[-1]
        print(f"| star and heart, scales {scale} | {right.mean():.1%} | | | | | | | |", flush=True)
    pipeline.unload_lora("heart")
    images, scales = [], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    for scale in scales:
        pipeline.set_lora_scale("star", scale)
        images.append(pipeline([f"a large red {RARE} star", f"a large green {RARE} star left of a blue ring"]).images)
    rows = np.concatenate([np.stack([both[row] for both in images]) for row in range(2)])
    save_png(image_grid(rows, [f"scale {scale}" for scale in scales] * 2, columns=len(scales)), out / "scales.png")


def write_images(shape: str, folder: Path) -> Path:
    """Writes five images of a new shape with captions, and returns their folder.

    Each has two, and all together the eight colors: where some have one, or four alike, or colors are missing, fewer
    new combinations are right (docs/fine_tuning.md). None has the shape alone, or beside another.
    """

    def thing(shape: str, color: str, size: str, x: float, y: float) -> SceneObject:
        return SceneObject(shape, color, size, x, y, {"small": 0.152, "large": 0.21}[size])

    def pair(
        colors: tuple[str, str], sizes: tuple[str, str], relation: str, background: str
    ) -> tuple[list[SceneObject], str, list[str]]:
        """Two of the new shape, with captions that say all of them."""
        ends = ((0.25, 0.5), (0.75, 0.5)) if relation == "left of" else ((0.5, 0.25), (0.5, 0.75))
        objects = [thing(shape, color, size, *place) for color, size, place in zip(colors, sizes, ends, strict=True)]
        where = "" if background == "white" else f" on a {background} background"
        (one, other), (small, large), inverse = colors, sizes, INVERSE_RELATION[relation]
        return (
            objects,
            background,
            [
                f"a {small} {one} {new} {relation} a {large} {other} {new}{where}",
                f"a {large} {other} {new} {inverse} a {small} {one} {new}{where}",
                f"a {small} {one} {new} is {relation} a {large} {other} {new}{where}",
                f"a {large} {other} {new} is {inverse} a {small} {one} {new}{where}",
            ],
        )

    new = f"{RARE} {shape}"
    scenes = [
        pair(("red", "blue"), ("large", "small"), "left of", "white"),
        pair(("purple", "yellow"), ("small", "large"), "above", "gray"),
        pair(("green", "pink"), ("large", "small"), "above", "black"),
        pair(("orange", "cyan"), ("small", "large"), "left of", "tan"),
        pair(("purple", "green"), ("large", "small"), "left of", "black"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for index, (objects, background, captions) in enumerate(scenes):
        save_png(render(Scene(tuple(objects), background), 64), folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("\n".join(captions))
    return folder


def new_prompts(shape: str, count: int, other: str = "") -> list[str]:
    """Returns captions of scenes with a new shape, alone or beside one that is not new, as in none of the five images.

    Pairs without a relation are left out: of 17 such captions with a circle, the base alone draws none.

    Args:
        shape: of the first object.
        count: number of captions.
        other: of the second object; "" for that of the data set, or none.
    """
    source, rng = ShapesSource(_NEW_SEED, "train", 64, 10**6), np.random.default_rng(_NEW_SEED)
    prompts: list[str] = []
    for index in range(100 * count):
        scene = source.scene(index)
        kind = scene_type(scene)
        first, *others = scene.objects
        if kind == "count" or (other and kind != "pair"):
            continue
        first = dataclasses.replace(first, shape=shape)
        if other:
            others = [dataclasses.replace(others[0], shape=other)]
        scene = Scene((first, *others), scene.background)
        description: Description = sample_description(scene, rng)
        names = {claim.shape for claim in description.claims}
        if not {shape, other or shape} <= names or (others and not description.relation):
            continue
        text = sample_caption(description, rng)
        text = re.sub(rf"\b({shape}{'|' + other if other else ''})\b", rf"{RARE} \1", text)
        if len(text) < 96:
            prompts.append(text)
        if len(prompts) == count:
            return prompts
    raise AssertionError("too few scenes fit")


def _correct(pipeline: ImagenPipeline, prompts: Sequence[str], grid: Path | None = None) -> np.ndarray:
    """Returns whether the image of each prompt is right in everything it claims, of each stage, bool [stages, N]."""
    stages = pipeline(list(prompts), batch_size=64).stages
    claims = [parse_caption(prompt.replace(f"{RARE} ", "")) for prompt in prompts]
    right = np.array(
        [[judge(image, claim).all for image, claim in zip(images, claims, strict=True)] for images in stages]
    )
    if grid is not None:
        labels = [
            f"{'' if good else 'wrong: '}{text}" for good, text in zip(right[-1][:SHOWN], prompts[:SHOWN], strict=True)
        ]
        save_png(image_grid(stages[-1][:SHOWN], labels, columns=8), grid)
    return right


if __name__ == "__main__":
    app.main(__name__)
