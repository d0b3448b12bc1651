"""Measure the peak memory of `imagen convert`, both ways: `python -m benchmarks.conversion_memory`.

A pipeline of random float16 weights, in the sizes of DeepFloyd/IF-I-M-v1.0 but for the width of the text, is written
tensor by tensor, converted in a fresh process, and converted back in another. Linux only.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_path

# of DeepFloyd/IF-I-M-v1.0; the text encoder is that of shapes, which is small, as its files are copied only
WIDTHS = (192, 384, 576, 768)
T = TypeVar("T")
HEADER = (
    "| direction | files read | files written | seconds | peak memory beyond the start |",
    "|---|---|---|---|---|",
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_multi_integer("width", list(WIDTHS), "Channels of each level.", flag_values=values)
    define_path(values, "folder", None, "Where to write; a temporary folder by default.")


def run(args: CommandFlags) -> None:
    """Converts there and back, and prints the table."""
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        parameters, largest = _in_fresh_process(_write_pipeline, str(folder / "pipeline"), tuple(args.width))
        print(f"{parameters:,} parameters; the largest tensor has {largest / 2**20:,.0f} MiB as float32\n")
        print("\n".join(HEADER), flush=True)
        for direction, function, before, after in (
            ("from diffusers", _convert, "pipeline", "cascade"),
            ("to diffusers", _to_diffusers, "cascade", "back"),
        ):
            rise, seconds = _in_fresh_process(function, str(folder / before), str(folder / after))
            sizes = " | ".join(f"{_size(folder / name) / 1e9:.2f} GB" for name in (before, after))
            print(f"| {direction} | {sizes} | {seconds:.0f} | {rise / 2**20:,.0f} MiB |", flush=True)


def _in_fresh_process(function: Callable[..., T], *args: object) -> T:
    """Returns what a function returns in a process of its own, in which nothing has been allocated before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_pipeline(name: str, widths: tuple[int, ...]) -> tuple[int, int]:
    """Writes a pipeline; returns the number of its parameters and the bytes of the largest one as float32."""
    import jax
    import numpy as np
    from flax import traverse_util

    from imagen_jax.config.schema import StageConfig
    from imagen_jax.conversion import schedulers, unet_config
    from imagen_jax.io.atomic import write_json
    from imagen_jax.io.tensor_files import TensorSpec, write_tensors
    from imagen_jax.io.torch_layout import stored_shape
    from imagen_jax.models.if_names import tensor_name
    from imagen_jax.stages.stage import build
    from imagen_jax.text.encoder import SHAPES_ENCODER, load_encoder

    folder, width = Path(name), load_encoder("shapes", length=77).width
    keys = {"model.network": "if_unet", "model.widths": widths, "model.text_dim": widths[-1]}
    keys |= {"model.text_pool_heads": 8, "diffusion.variance_type": "learned", "text.padding": "encoded"}
    config = StageConfig().with_changes(keys)
    abstract = jax.eval_shape(build(config, width).init, jax.random.key(0))
    specs = {
        tensor_name(path): TensorSpec("F16", stored_shape(path, leaf.shape))
        for path, leaf in traverse_util.flatten_dict(abstract).items()
    }
    rng = np.random.default_rng(0)
    index = {
        "_class_name": "IFPipeline",
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "ByT5Tokenizer"],
        "unet": ["diffusers", unet_config.CLASS],
        "scheduler": ["diffusers", schedulers.CLASS],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "unet/config.json", unet_config.unet_fields(config, width))
    write_json(folder / "scheduler/scheduler_config.json", schedulers.scheduler_fields(config, None))
    shutil.copytree(SHAPES_ENCODER, folder / "text_encoder")
    shutil.copytree(SHAPES_ENCODER, folder / "tokenizer", ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    write_tensors(
        folder / "unet/diffusion_pytorch_model.fp16.safetensors",
        specs,
        lambda name: rng.standard_normal(specs[name].shape, np.float32).astype(np.float16),
        {"format": "pt"},
    )
    counts = [math.prod(spec.shape) for spec in specs.values()]
    return sum(counts), 4 * max(counts)


def _convert(source: str, out: str) -> tuple[int, float]:
    """Returns the rise of peak memory in bytes, and seconds."""
    from imagen_jax.conversion.from_diffusers import convert

    return _measure(lambda: convert([source], out))


def _to_diffusers(source: str, out: str) -> tuple[int, float]:
    from imagen_jax.conversion.to_diffusers import to_diffusers

    return _measure(lambda: to_diffusers(source, out))


def _measure(action: Callable[[], object]) -> tuple[int, float]:
    """Returns by how many bytes an action raises the peak of memory, imports and compilation included, and seconds."""
    import jax

    jax.local_devices()  # the backend is there before the action
    before = _kilobytes("VmRSS:")
    start = time.perf_counter()
    action()
    return (_kilobytes("VmHWM:") - before) * 1024, time.perf_counter() - start


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    app.main(__name__)
