"""Measure how fast the networks of metrics are beside torch's, or plan them on a TPU.

    .venv-parity/bin/python -m benchmarks.metric_speed
    python -m benchmarks.metric_speed --topology=v5e:1x1 --batch_size=64

Inception-v3 of FID beside torch-fidelity's, and the image tower of CLIP ViT-B/32 beside transformers': in float32, on
all cores, with the same random weights and the same inputs. Both take turns within one process, `--rounds` times, so
that other load meets both; ratios of their times are medians of those of each round. Outputs are compared, too.

With `--topology`, nothing is measured and torch is not needed: libtpu compiles the programs for one chip, and images/s
are at most what its peaks of compute and memory traffic allow, as in `imagen plan`. Published numbers are of float32,
whose products take six passes of bfloat16.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.evaluation.encoder import FeatureEncoder
from imagen_jax.evaluation.encoder import make_encode as encode_by_classifier
from imagen_jax.evaluation.networks import INCEPTION
from imagen_jax.parallel.axes import IMAGE
from imagen_jax.parallel.batching import batch_sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.planning import hlo, hlo_cost
from imagen_jax.planning.aot import compile_lowered, topology_devices
from imagen_jax.planning.hardware import parse_topology
from imagen_jax.planning.programs import bytes_per_chip
from imagen_jax.planning.roofline import chip_coordinates, time_bounds
from imagen_jax.text.clip import CLIP
from imagen_jax.text.clip import make_encode as encode_by_tower
from imagen_jax.text.clip_weights import parameter_shapes, towers

INCEPTION_SIDE, CLIP_SIDE = 299, 224
_PASSES = {"float32": 6, "bfloat16": 1}  # of bfloat16, for a product
_MESH = {"data": 1, "fsdp": 1}
MEASURED = (
    "| network | imagen_jax, images/s | torch, images/s | ratio | ratio of CPU time | difference | of outputs up to |",
    "|---|---|---|---|---|---|---|",
)
PLANNED = (
    "| network | dtype | TFLOP per 1,000 images | GB per 1,000 images | images/s at most | bound by |",
    "|---|---|---|---|---|---|",
)


class Pair(NamedTuple):
    """The same network twice: functions that return features [B, D] of the same images."""

    name: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_integer("batch_size", 16, "Images at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rounds", 7, "Turns of each network.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("topology", None, "Plan for one chip, such as v5e:1x1 or v4:1x1x1.", flag_values=values)
    flags.DEFINE_boolean("quick", False, "Compile the plan with little effort.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Prints the rows of a table."""
    if args.topology is not None:
        for row in (*PLANNED, *plan_rows(args.topology, args.batch_size, args.quick)):
            print(row, flush=True)
        return
    print(f"batches of {args.batch_size}, {args.rounds} rounds, {os.cpu_count()} cores")
    print("\n".join(MEASURED))
    with tempfile.TemporaryDirectory() as folder:
        for pair in (inception_pair(Path(folder), args.batch_size), clip_pair(Path(folder), args.batch_size)):
            print(measure(pair, args.batch_size, args.rounds), flush=True)


def measure(pair: Pair, batch_size: int, rounds: int) -> str:
    """Returns the row of a pair."""
    ours, theirs = pair.ours(), pair.theirs()
    seconds = np.array([(_seconds(pair.ours), _seconds(pair.theirs)) for _ in range(rounds)])  # [rounds, 2, 2]
    speeds = batch_size / np.median(seconds[..., 0], axis=0)
    ratio, cpu_ratio = np.median(seconds[:, 1] / seconds[:, 0], axis=0)
    cells = [f"{speed:.1f}" for speed in speeds] + [f"{ratio:.2f}", f"{cpu_ratio:.2f}"]
    cells += [f"{np.abs(ours - theirs).max():.1e}", f"{np.abs(theirs).max():.1f}"]
    return f"| {' | '.join([pair.name, *cells])} |"


def _seconds(function: Callable[[], np.ndarray]) -> tuple[float, float]:
    """Returns how long a call takes: by the clock, and of all threads together."""
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - cpu_start


def inception_pair(folder: Path, batch_size: int) -> Pair:
    """Returns Inception-v3 twice; torch-fidelity's also resizes its images, to the size that they have."""
    import torch
    from safetensors.numpy import save_file

    # without torchvision, as in `make parity`, whose random weights these are
    importlib.import_module("tests.goldens.torch_fidelity").torch_fidelity()
    extractors = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    weights = importlib.import_module("tests.goldens.encoders.cases").tensors(INCEPTION.name)
    save_file(weights, folder / "inception.safetensors")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in weights.items()}, folder / "inception.pth")
    theirs = extractors.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(folder / "inception.pth")
    )
    ours = FeatureEncoder.from_pretrained(
        INCEPTION.name, folder / "inception.safetensors", "legacy_tensorflow", make_mesh(_MESH, jax.devices()[:1])
    )
    images = _images(batch_size, INCEPTION_SIDE)
    inputs = INCEPTION.make_inputs(images, "legacy_tensorflow")
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def run_theirs() -> np.ndarray:
        with torch.no_grad():
            return theirs(pixels)[0].numpy()

    return Pair("Inception-v3, 299×299", lambda: ours._encode(inputs, batch_size).features, run_theirs)


def clip_pair(folder: Path, batch_size: int) -> Pair:
    """Returns the image tower of CLIP ViT-B/32 twice."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig()  # its defaults are those of ViT-B/32
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    theirs.save_pretrained(folder / "clip")
    transformers.CLIPImageProcessor().save_pretrained(folder / "clip")
    ours = CLIP.from_pretrained(folder / "clip", make_mesh(_MESH, jax.devices()[:1]))
    images = _images(batch_size, CLIP_SIDE)
    inputs = ours._inputs(images)
    pixels = torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())

    def run_ours() -> np.ndarray:
        return ours._encode("vision", ours._vision, np.asarray, inputs, batch_size)

    def run_theirs() -> np.ndarray:
        with torch.no_grad():
            vectors = theirs(pixel_values=pixels).image_embeds
            return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()

    return Pair("CLIP ViT-B/32, 224×224", run_ours, run_theirs)


def _images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def plan_rows(topology_text: str, batch_size: int, quick: bool) -> Iterator[str]:
    """Yields the rows of both networks in both dtypes, compiled for a chip. Raises ConfigError."""
    topology = parse_topology(topology_text)
    mesh = make_mesh(_MESH, topology_devices(topology)[:1])
    vision, _ = towers({"model_type": "clip_vision_model"}, Path("clip-vit-base-patch32"))
    for name, passes in _PASSES.items():
        dtype = jnp.dtype(name)
        programs: list[tuple[str, Any, Any, int]] = [
            (
                "Inception-v3",
                encode_by_classifier(INCEPTION.module(dtype), mesh),
                INCEPTION.parameter_shapes(dtype),
                INCEPTION_SIDE,
            ),
            (
                "CLIP ViT-B/32",
                encode_by_tower(vision.clone(dtype=dtype), mesh),
                parameter_shapes(vision, dtype),
                vision.image_size,
            ),
        ]
        for title, encode, shapes, side in programs:
            params = with_shardings(shapes, mesh)
            inputs = jax.ShapeDtypeStruct(
                (batch_size, side, side, 3), jnp.float32, sharding=batch_sharding(mesh, IMAGE)
            )
            compiled = compile_lowered(encode.lower(params, inputs), bytes_per_chip(params), quick)
            assert compiled.hlo_text is not None
            kernels = hlo_cost.find_kernels(hlo.parse_module(compiled.hlo_text))
            bounds = time_bounds(kernels, [], 0, chip_coordinates(list(mesh.devices.flat)), topology.chip)
            compute, traffic = bounds.compute * passes, bounds.hbm
            flops = sum(kernel.count * kernel.flops for kernel in kernels) / batch_size * 1000 / 1e12
            moved = sum(kernel.count * kernel.bytes for kernel in kernels) / batch_size * 1000 / 1e9
            bound = "compute" if compute > traffic else "memory traffic"
            speed = batch_size / max(compute, traffic)
            yield f"| {title} | {name} | {flops:.2f} | {moved:.0f} | {speed:,.0f} | {bound} |"


if __name__ == "__main__":
    app.main(__name__)
