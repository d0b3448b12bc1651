"""Inpainting by imagen-pytorch, trained on `shapes`, beside ours on the tasks of `benchmarks/editing.py`.

    make .venv-peers/.complete
    .venv-peers/bin/python -m benchmarks.peers.inpainting --out=runs/peers/inpainting

Trains `Imagen` of that library with one of its U-Nets by its own `ImagenTrainer`, on 32×32 images and captions of the
source that our cascade was trained on, with the text embeddings of our encoder. A run that is started again resumes
from its last checkpoint. Both then draw captions, and replace one object of two by a green ring: by that library's
`inpaint_images`, and by our `ImagenEditor.inpaint` with a base stage alone. The same program reads all images.
Everything runs on one core; seconds are those of the core for an image, whatever else runs there.

`--ours` names the stages that are compared, such as one of configs/shapes_base.py that was trained for as many steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from benchmarks import editing
from benchmarks.peers.imagen_pytorch_unet import import_library
from imagen_jax.datasets.shapes import judge, render
from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.text.encoder import TextCondition

SIZE = 32
BATCH_SIZE = 16
LEARNING_RATE = 1e-3
CHECKPOINT_EVERY = 250
# by default the EMA is updated every 10 steps, and still is at noise after 1,500 steps
EMA = {"ema_beta": 0.995, "ema_update_every": 1}
UNET: dict[str, Any] = {
    "dim": 32,
    "dim_mults": (1, 2),  # at 16×16 and 8×8
    "cond_dim": 64,  # the width of our text encoder
    "max_text_len": 96,
    "memory_efficient": True,  # downsamples before the blocks of a level
    "layer_attns": (False, True),
    "layer_cross_attns": (False, True),
    "attn_heads": 4,
    "attn_dim_head": 16,
    "init_cross_embed": False,
    "init_conv_kernel_size": 3,
}
RESAMPLE = (1, 5)  # 5 is the default of imagen-pytorch

Encode = Callable[[Sequence[str]], TextCondition]
# (prompts, the tasks of prompts or None, resample times) -> uint8 [N, H, W, C]
Sample = Callable[[Sequence[str], Sequence[editing.Task] | None, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Peer:
    """imagen-pytorch's cascade of one stage with its trainer.

    Attributes:
        trainer: `ImagenTrainer`, which holds `Imagen`, Adam, the EMA and the checkpoints.
        encode: our text encoder.
        guidance_scale: of sampling.
    """

    trainer: Any
    encode: Encode
    guidance_scale: float

    @property
    def num_params(self) -> int:
        """Returns the number of parameters of the U-Net."""
        return sum(parameter.numel() for parameter in self.trainer.imagen.unets[0].parameters())

    def train(self, steps: int) -> None:
        """Trains until `steps` steps have been taken since the first start; prints the mean loss now and then."""
        source = ShapesSource(0, "train", SIZE, steps * BATCH_SIZE)
        losses, start = list[float](), time.process_time()
        for step in range(self.trainer.num_steps_taken(1), steps):
            examples = [source[index] for index in range(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)]
            text = self._text([example.captions[0] for example in examples])
            # the same noise whether a run was resumed or not
            torch.manual_seed(step)
            images = _to_torch(np.stack([example.image for example in examples]))
            losses.append(self.trainer(images, unet_number=1, **text))
            self.trainer.update(unet_number=1)
            if (step + 1) % CHECKPOINT_EVERY == 0:
                print(
                    f"step {step + 1}: loss {np.mean(losses[-CHECKPOINT_EVERY:]):.4f}, "
                    f"{len(losses) * BATCH_SIZE / (time.process_time() - start):.1f} images/s of the core",
                    flush=True,
                )
        if losses:
            self.trainer.save_to_checkpoint_folder()

    def sample(self, prompts: Sequence[str], tasks: Sequence[editing.Task] | None, repeats: int) -> np.ndarray:
        """Samples an image for each prompt by the EMA weights, or inpaints the images of tasks."""
        given = {}
        if tasks is not None:
            given = {
                "inpaint_images": _to_torch(np.stack([task.image for task in tasks])),
                # True where pixels are known
                "inpaint_masks": torch.from_numpy(~np.stack([task.mask for task in tasks])),
                "inpaint_resample_times": repeats,
            }
        images = self.trainer.sample(**self._text(prompts), **given, cond_scale=self.guidance_scale, use_tqdm=False)
        return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()

    def _text(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        text = self.encode(prompts)
        return {
            "text_embeds": torch.from_numpy(np.array(text.embeddings)),
            "text_masks": torch.from_numpy(np.array(text.mask)),
        }


def _to_torch(images: np.ndarray) -> torch.Tensor:
    """Returns uint8 images [N, H, W, C] as float32 [N, C, H, W] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def make_peer(folder: Path, encode: Encode, sampling_steps: int, guidance_scale: float) -> Peer:
    """Returns the cascade with the last checkpoint in a folder, or with random parameters if there is none.

    Args:
        folder: of the checkpoints.
        encode: our text encoder.
        sampling_steps: of its ancestral sampler; training has continuous times and does not depend on them.
        guidance_scale: of sampling.
    """
    library, width = import_library(), encode(["a circle"]).embeddings.shape[-1]
    torch.manual_seed(0)
    unet = library.Unet(text_embed_dim=width, **UNET)
    imagen = library.Imagen(unets=(unet,), image_sizes=(SIZE,), text_embed_dim=width, timesteps=sampling_steps)
    trainer = library.ImagenTrainer(
        imagen,
        lr=LEARNING_RATE,
        **EMA,
        checkpoint_path=str(folder),
        checkpoint_every=CHECKPOINT_EVERY,
        max_checkpoints_keep=2,
        verbose=False,
    )
    return Peer(trainer, encode, guidance_scale)


def sample_ours(
    editor: ImagenEditor, prompts: Sequence[str], tasks: Sequence[editing.Task] | None, repeats: int
) -> np.ndarray:
    """Samples or inpaints by our base stage, as `Peer.sample`."""
    if tasks is None:
        return editor.pipeline(prompts, seed=1, batch_size=len(prompts)).images
    images, masks = np.stack([task.image for task in tasks]), [task.mask for task in tasks]
    return editor.inpaint(images, masks, prompts, resample=repeats, seed=1, batch_size=len(prompts)).images


def sample_batches(
    sample: Sample, prompts: Sequence[str], tasks: Sequence[editing.Task] | None, repeats: int, batch: int
) -> tuple[np.ndarray, float]:
    """Returns the images of all prompts, and the median seconds of the core for an image, of batches of `batch`."""
    images, seconds = list[np.ndarray](), list[float]()
    for rows in _slices(len(prompts), batch):
        torch.manual_seed(1 + rows.start)
        start = time.process_time()
        images.append(sample(prompts[rows], None if tasks is None else tasks[rows], repeats))
        seconds.append((time.process_time() - start) / len(images[-1]))
    return np.concatenate(images), float(np.median(seconds))


def _slices(count: int, batch: int) -> Iterator[slice]:
    return (slice(start, min(start + batch, count)) for start in range(0, count, batch))


def print_captions(contestants: dict[str, Sample], count: int, batch: int, out: Path) -> None:
    """Prints how many images of captions that are new to all are right in everything that the captions claim."""
    print(f"| library | {count} captions as in training | {count} held-out captions | s |\n|---|---|---|---|")
    sources = [ShapesSource(0, split, SIZE, count) for split in ("validation", "held_out")]
    shown: list[list[tuple[str, np.ndarray]]] = [[] for _ in sources]
    for name, sample in contestants.items():
        rates = []
        for source, columns in zip(sources, shown, strict=True):
            images, seconds = sample_batches(sample, _prompts(source), None, 1, batch)
            right = [judge.judge(image, source.description(index)).all for index, image in enumerate(images)]
            rates.append(f"{100 * np.mean(right):.1f}%")
            columns.append((name, images))
        print(f"| {name} | {' | '.join(rates)} | {seconds:.2f} |", flush=True)
    for source, columns in zip(sources, shown, strict=True):
        editing.save_grid(out / f"{source.split}.png", columns, _prompts(source))


def _prompts(source: ShapesSource) -> list[str]:
    return [source.captions(index)[0] for index in range(len(source))]


def print_inpainting(contestants: dict[str, Sample], count: int, batch: int, out: Path) -> None:
    """Prints the table of inpainting, and writes a picture of the first tasks."""
    tasks = editing.ring_tasks(count, SIZE)
    prompts, shown = [task.prompt for task in tasks], [("given", np.stack([task.image for task in tasks]))]
    print(f"| library | way | {' | '.join(editing.INPAINTING_COLUMNS)} |\n|---|---|---|---|---|---|---|---|")
    for name, sample in contestants.items():
        for repeats in (0, *RESAMPLE):
            images, seconds = sample_batches(sample, prompts, tasks if repeats else None, repeats, batch)
            way = f"resample {repeats}" if repeats else "drawn without the image"
            columns = [name, way, *editing.inpainting_figures(tasks, images), f"{seconds:.2f}"]
            print(f"| {' | '.join(columns)} |", flush=True)
            shown.append((f"{name}, {way}", images))
    truth = np.stack([render.render(task.expected, SIZE) for task in tasks])
    print(f"| – | true pictures | {' | '.join(editing.inpainting_figures(tasks, truth))} | – |")
    editing.save_grid(out / "inpainting.png", shown, prompts)


def main() -> None:
    """Trains what is left to train, and prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.inpainting")
    parser.add_argument("--out", type=Path, default=Path("runs/peers/inpainting"))
    parser.add_argument("--steps", type=int, default=2750, help="training steps of imagen-pytorch")
    parser.add_argument("--sampling_steps", type=int, default=25, help="sampling steps of imagen-pytorch")
    parser.add_argument("--guidance_scale", type=float, default=3.0, help="cond_scale of imagen-pytorch")
    parser.add_argument("--ours", nargs="+", default=["shapes/stage_0"], help="base stages of imagen_jax, 32×32")
    parser.add_argument("--num_tasks", type=int, default=64)
    parser.add_argument("--num_captions", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32, help="images at once in sampling")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA has a thread for each core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    jax.config.update("jax_platforms", "cpu")
    pipelines = {name: ImagenPipeline.from_pretrained([name]) for name in args.ours}
    encode = next(iter(pipelines.values())).encode_prompt
    peer = make_peer(args.out / "checkpoints", encode, args.sampling_steps, args.guidance_scale)
    peer.train(args.steps)
    print(f"imagen-pytorch: {peer.num_params} parameters, {peer.trainer.num_steps_taken(1)} steps")
    contestants: dict[str, Sample] = {"imagen-pytorch": peer.sample}
    for name, pipeline in pipelines.items():
        pipeline.set_progress_bar_config(disable=True)
        num_params = sum(leaf.size for leaf in jax.tree.leaves(pipeline.stages[0].params))
        print(f"{name}: {num_params} parameters")
        contestants[name] = functools.partial(sample_ours, ImagenEditor(pipeline))
    if args.num_captions:
        print_captions(contestants, args.num_captions, args.batch_size, args.out)
    if args.num_tasks:
        print_inpainting(contestants, args.num_tasks, args.batch_size, args.out)


if __name__ == "__main__":
    main()
