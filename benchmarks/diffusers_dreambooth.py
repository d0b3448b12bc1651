"""Teach a tiny DeepFloyd IF a star by diffusers' own script and by ours: `python -m benchmarks.diffusers_dreambooth`.

The table and the curves of docs/fine_tuning.md. A pipeline that diffusers makes learns by our loop to draw single
objects of `shapes`, and is written as a pipeline again. From that one, diffusers' `train_dreambooth_lora.py` and our
loop each train an adapter: the same five images and prompt, targets, rank, optimizer, learning rate, batch and steps.
One and the same code then measures both: errors on stars that neither has seen, and samples that the judge reads.

`--script` is the file of diffusers' repository; `--python` runs it, and has torch, diffusers, peft, accelerate,
tensorboardX and a torchvision of torch's build. Called again with the same `--out`, it continues.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tensorboardX.proto.event_pb2 import Event

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.config.load import default_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.datasets.shapes.captions import article, parse_caption
from imagen_jax.datasets.shapes.descriptions import Description
from imagen_jax.datasets.shapes.judge import judge
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import COLORS, DEFAULT_BACKGROUND, SHAPES, Scene, SceneObject
from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.images.array import to_float
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.images.plots import finish_axes, make_figure, save_figure
from imagen_jax.io.paths import as_path
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.loss import DiffusionBatch, diffusion_loss
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.stages.text import make_encoder
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.to_lora import to_lora

SIZE = 16  # the judge reads objects as large as these at it, too
PROMPT = "a sks star"
NEW = "star"
SHOWN_COLORS = ("red", "blue", "yellow", "green", "cyan")  # of the five images
RANK, BATCH = 4, len(SHOWN_COLORS)  # every step sees all images, in both programs
# those of the script
TARGETS = ("to_[qkv]", "to_out_0", "add_[kv]_proj")
WEIGHT_DECAY, CLIP_NORM, BETAS, EPS = 1e-2, 1.0, (0.9, 0.999), 1e-8
_COPIES = 10  # of each combination of color and shape in the images that the network learns first
_RADIUS, _MOVED = 0.36, 0.03  # of objects, and how far they are from the middle at most, of the width
_TIMES, _SEED = 10, 3  # noise levels at which errors are measured
_WINDOW = 25  # steps that curves are averaged over
_SAMPLING = {"num_inference_steps": 25, "guidance_scale": 2.0}
_AT_ONCE = 16  # images that are sampled; previews have as many, so that one program is compiled
_EXAMPLES = 8  # samples of each row in the picture


class Example(NamedTuple):
    """An image uint8 [H, W, 3] and its caption."""

    image: np.ndarray
    caption: str


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A program's result.

    Attributes:
        adapter: its file or folder.
        losses: mean squared error of the noise at each step [N].
        seconds: of the whole program; 0 if it ran before.
    """

    adapter: Path
    losses: np.ndarray
    seconds: float


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "out", "runs/diffusers_dreambooth", "A folder for the runs and pictures.")
    define_path(values, "script", None, "train_dreambooth_lora.py of diffusers' repository.")
    define_path(values, "python", sys.executable, "The Python that runs it, and makes the pipeline.")
    flags.DEFINE_integer("pretrain_steps", 800, "Steps before either program.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 400, "Steps of either program.", lower_bound=_WINDOW, flag_values=values)
    flags.DEFINE_float("learning_rate", 2e-3, "Of either program.", flag_values=values)
    flags.DEFINE_integer("num_samples", 64, "Samples of each kind.", lower_bound=_EXAMPLES, flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the table, and writes the curves and samples."""
    script, out = as_path(args.required("script", "train_dreambooth_lora.py")), args.output_folder("runs/dreambooth")
    if not script.is_file():
        raise ConfigError(f"--script {str(script)!r} is no file: give examples/dreambooth/{script.name} of diffusers")
    pretrained = _pretrain(out, args.python, args.pretrain_steps)
    images = _write_subject(out)
    tuned = {
        "diffusers": _tune_theirs(out, script, args),
        "imagen_jax": _tune_ours(out, images, pretrained, args),
    }
    plot(out / "losses.png", {name: one.losses for name, one in tuned.items()})
    pipeline = ImagenPipeline.from_pretrained(str(pretrained), sampling=[_SAMPLING])
    pipeline.set_progress_bar_config(disable=True)
    print(f"error of the noise, and bound in bits, of 5 images and of {len(COLORS)} new stars; samples that are right")
    print("| adapter | 5 images | new stars | bound | others | star | color: shape, all | others: shape, all | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, one in {"none": None, **tuned}.items():
        if one is not None:
            pipeline.load_lora(one.adapter, name=name)
        cells = measure(pipeline, args.num_samples, out / f"{name}.png")
        print(f"| {name} | {' | '.join(cells)} | {f'{one.seconds:.0f}' if one and one.seconds else '–'} |", flush=True)
        if one is not None:
            pipeline.unload_lora(name)


# images


def draw(shape: str, color: str, rng: np.random.Generator) -> np.ndarray:
    """Returns an image of one large object near the middle, uint8 [H, W, 3]."""
    x, y = 0.5 + rng.uniform(-_MOVED, _MOVED, 2)
    return render(Scene((SceneObject(shape, color, "large", x, y, _RADIUS),), DEFAULT_BACKGROUND), SIZE)


def known_examples(copies: int, seed: int) -> list[Example]:
    """Returns images of every shape of the data set in every color, some of each."""
    rng = np.random.default_rng(seed)
    return [
        Example(draw(shape, color, rng), f"{article(color)} {color} {shape}")
        for _ in range(copies)
        for color in COLORS
        for shape in SHAPES
    ]


def stars(colors: Sequence[str], seed: int) -> list[Example]:
    """Returns images of stars, all with the prompt of the subject."""
    rng = np.random.default_rng(seed)
    return [Example(draw(NEW, color, rng), PROMPT) for color in colors]


def _write(examples: Sequence[Example], folder: Path, captions: bool = True) -> Path:
    """Writes images, and their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, example in enumerate(examples):
        save_png(example.image, folder / f"{index:04d}.png")
        if captions:
            (folder / f"{index:04d}.txt").write_text(example.caption)
    return folder


def _write_subject(out: Path) -> Path:
    """Writes the five images with captions, and alone, as the script takes them; returns the former's folder."""
    examples = stars(SHOWN_COLORS, seed=1)
    _write(examples, out / "images_alone", captions=False)
    return _write(examples, out / "images")


# training


def _of_folder(config: StageConfig, folder: Path, changes: Mapping[str, Any]) -> StageConfig:
    """Returns a config that trains on all images of a folder, at a constant learning rate after its warm-up."""
    data = default_config(source="folder").data
    data.update(path=str(folder), validation_fraction=0.0, threads=2)
    rate = changes["optimizer.learning_rate"]
    return config.with_changes(
        {
            "data": data.to_dict(),
            "optimizer.name": "adam",
            "optimizer.end_learning_rate": rate,
            "training.save_every": max(1, changes["training.steps"] // 10),
            "training.preview_every": changes["training.steps"],
            "training.preview_count": _AT_ONCE,
            **changes,
        }
    )


def _pretrain(out: Path, python: str, steps: int) -> Path:
    """Returns the run of a network that draws single objects; its pipeline is out/pretrained/stage_0."""
    official, converted, workdir = out / "random", out / "converted", out / "pretraining"
    if (out / "pretrained").exists():
        return workdir
    if not official.exists():
        _run([python, "-W", "ignore", "-m", "benchmarks.peers.tiny_if", str(official)], out / "random.log")
    if not converted.exists():
        convert([str(official)], converted, ConvertSettings(dtype="float32"))
    changes = {
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 50,
        "optimizer.ema_decay": 0.99,
        "training.init_from": str(converted / "stage_0"),
        "training.batch_size": 16,
        "training.steps": steps,
        "training.log_every": 25,
        **{f"sampling.{key}": value for key, value in _SAMPLING.items()},
    }
    images = out / "shapes"
    if not images.exists():
        _write(known_examples(_COPIES, seed=0), images)
    train(_of_folder(read_config(converted / "stage_0"), images, changes), workdir)
    to_diffusers(str(workdir), out / "pretrained")
    return workdir


def _tune_ours(out: Path, images: Path, pretrained: Path, args: CommandFlags) -> Tuned:
    """Trains an adapter by our loop, with the settings of the script; its last weights are measured, not their EMA."""
    workdir, adapter = out / "ours", out / "ours_adapter"
    changes = {
        "optimizer.learning_rate": args.learning_rate,
        "optimizer.warmup_steps": 0,
        "optimizer.b1": BETAS[0],
        "optimizer.b2": BETAS[1],
        "optimizer.eps": EPS,
        "optimizer.weight_decay": WEIGHT_DECAY,
        "optimizer.clip_norm": CLIP_NORM,
        "optimizer.ema_decay": 0.0,
        "training.init_from": str(pretrained),
        "training.batch_size": BATCH,
        "training.steps": args.steps,
        "training.log_every": 1,
        "diffusion.cond_drop_prob": 0.0,
        "adapter.kind": "lora",
        "adapter.rank": RANK,
        "adapter.targets": TARGETS,
    }
    config, seconds = _of_folder(read_config(pretrained), images, changes), 0.0
    if not adapter.exists():
        start = time.perf_counter()
        train(config, workdir)
        to_lora(workdir, adapter)
        seconds = time.perf_counter() - start
    # the bound is trained beside the error, which alone is what the script trains
    weight = config.diffusion.vlb_weight
    losses = [line["loss"] - weight * line["bound_bits"] for line in read_metrics(workdir) if "loss" in line]
    return Tuned(adapter, np.array(losses), seconds)


def _tune_theirs(out: Path, script: Path, args: CommandFlags) -> Tuned:
    """Trains an adapter by the script of diffusers."""
    folder, seconds = out / "theirs", 0.0
    adapter = folder / "pytorch_lora_weights.safetensors"
    if not adapter.exists():
        settings = {
            "pretrained_model_name_or_path": out / "pretrained/stage_0",
            "instance_data_dir": out / "images_alone",
            "instance_prompt": PROMPT,
            "output_dir": folder,
            "resolution": SIZE,
            "train_batch_size": BATCH,
            "max_train_steps": args.steps,
            "rank": RANK,
            "learning_rate": args.learning_rate,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
            "adam_weight_decay": WEIGHT_DECAY,
            "max_grad_norm": CLIP_NORM,
            "tokenizer_max_length": 77,
            "checkpointing_steps": args.steps + 1,
            "seed": 0,
        }
        command = [args.python, "-W", "ignore", str(script), "--pre_compute_text_embeddings"]
        command += ["--text_encoder_use_attention_mask", *(f"--{key}={value}" for key, value in settings.items())]
        start = time.perf_counter()
        _run(command, out / "theirs.log")
        seconds = time.perf_counter() - start
    return Tuned(adapter, np.array(list(logged_losses(folder))), seconds)


def _run(command: Sequence[str], log: Path) -> None:
    """Runs a program without a network. Raises TrainingError if it fails, with the last line that it said."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    with log.open("w") as file:
        code = subprocess.run(command, env=variables, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        last = (log.read_text().strip().splitlines() or [""])[-1]
        raise TrainingError(f"{' '.join(command[:4])} … ended with {code}: {last}; {log} has what it printed")


def logged_losses(folder: Path) -> Iterator[float]:
    """Yields the losses in the event files of TensorBoard below a folder, in the order of their steps."""
    losses: dict[int, float] = {}
    for path in folder.rglob("events.out.tfevents.*"):
        for event in _read_events(path.read_bytes()):
            for value in event.summary.value:
                if value.tag == "loss":
                    losses[event.step] = value.simple_value
    yield from (losses[step] for step in sorted(losses))


def _read_events(data: bytes) -> Iterator[Any]:
    """Yields the events of a file: length (8 bytes), its check (4), the event, its check (4), and again."""
    start = 0
    while start < len(data):
        size = int.from_bytes(data[start : start + 8], "little")
        yield Event.FromString(data[start + 12 : start + 12 + size])
        start += 16 + size


# measuring


def measure(pipeline: ImagenPipeline, num_samples: int, picture: Path) -> list[str]:
    """Returns the cells of a row, and writes some samples."""
    subject, new = (errors(pipeline, stars(colors, seed)) for colors, seed in ((SHOWN_COLORS, 1), (tuple(COLORS), 2)))
    other = errors(pipeline, known_examples(1, seed=4))
    colored = [PROMPT.replace("a ", f"{article(color)} {color} ") for color in COLORS]
    kinds = {"star": [PROMPT], "colors": colored, "others": [example.caption for example in known_examples(1, 0)]}
    rates, shown = [], []
    for kind in kinds.values():
        prompts = [kind[index % len(kind)] for index in range(num_samples)]
        images = pipeline(prompts, seed=0, batch_size=_AT_ONCE).images
        for descriptions in claims_of(prompts):
            right = [judge(image, claimed).all for image, claimed in zip(images, descriptions, strict=True)]
            rates.append(np.mean(right))
        shown += list(zip(images[:_EXAMPLES], prompts, strict=False))
    save_png(
        image_grid(np.stack([image for image, _ in shown]), [prompt for _, prompt in shown], columns=_EXAMPLES),
        picture,
    )
    star = rates[0]  # of no color
    return [
        *(f"{subject[0]:.4f}", f"{new[0]:.4f}", f"{new[1]:.3f}", f"{other[0]:.4f}"),
        f"{star:.1%}",
        *(f"{shape:.1%}, {full:.1%}" for shape, full in zip(rates[2::2], rates[3::2], strict=True)),
    ]


def claims_of(prompts: Sequence[str]) -> tuple[list[Description], list[Description]]:
    """Returns what prompts claim of the shape alone, and in full."""
    full = [parse_caption(prompt.replace("sks ", "")) for prompt in prompts]
    alone = [Description(tuple(dataclasses.replace(claim, color="") for claim in one.claims)) for one in full]
    return alone, full


def errors(pipeline: ImagenPipeline, examples: Sequence[Example]) -> tuple[float, float]:
    """Returns the mean squared error of the predicted noise, and the variational bound in bits, over noise levels."""
    (trained,) = pipeline.stages
    stage = trained.stage
    text = TextCondition(*map(jnp.asarray, make_encoder(stage.config.text)([example.caption for example in examples])))
    x = to_float(jnp.asarray(np.stack([example.image for example in examples])))
    loss = jax.jit(lambda params, t, eps: diffusion_loss(stage, params, DiffusionBatch(x, text, {}, t, eps)))
    found = []
    for index in range(_TIMES):
        t = stage.schedule.round_up(jnp.full(len(x), (index + 0.5) / _TIMES))
        losses = loss(trained.params, t, jax.random.normal(jax.random.fold_in(jax.random.key(_SEED), index), x.shape))
        bits = losses.vlb
        found.append((jnp.mean(losses.loss - stage.config.diffusion.vlb_weight * bits), jnp.mean(bits)))
    error, bound = np.mean(found, axis=0)
    return float(error), float(bound)


def plot(path: Path, losses: Mapping[str, np.ndarray]) -> None:
    """Plots the losses of both programs, averaged over some steps."""
    figure, (axes,) = make_figure(1, "five images of a star, tiny DeepFloyd IF")
    for name, values in losses.items():
        smooth = np.convolve(values, np.ones(_WINDOW) / _WINDOW, mode="valid")
        axes.plot(np.arange(len(smooth)) + _WINDOW, smooth, label=f"{name}, mean of {_WINDOW} steps")
    finish_axes(axes, xlabel="step", ylabel="mean squared error of the noise")
    save_figure(figure, path)


if __name__ == "__main__":
    app.main(__name__)
