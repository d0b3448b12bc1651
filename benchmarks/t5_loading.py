"""Measure the host memory that loading a T5 takes: `python -m benchmarks.t5_loading --gigabytes=3 --devices=8`.

Writes a T5 v1.1 of about that size, in float32 and in files of about a gigabyte, to a temporary folder. One process
then loads it in bfloat16 onto one device, and another process loads it sharded over all devices. The devices are
simulated, so their memory is host memory: the overhead of loading is the peak minus the arrays. Linux only.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util
from safetensors.numpy import save_file

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.io.torch_layout import stored_shape
from imagen_jax.models.t5 import T5Encoder
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import load_params
from imagen_jax.text.encoder import parameter_shapes
from imagen_jax.text.t5_weights import parameter_reader, read_config, tensor_names

# The fields of t5-v1_1-xl; the number of layers follows from --gigabytes.
FIELDS = {"vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32}
LAYER_SIZE = 4 * FIELDS["d_model"] * FIELDS["d_kv"] * FIELDS["num_heads"] + 3 * FIELDS["d_model"] * FIELDS["d_ff"]
FILE_BYTES = 1e9
HEADER = (
    "| devices | files | arrays | seconds | peak minus arrays | largest tensor in a file |",
    "|---|---|---|---|---|---|",
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_float("gigabytes", 3.0, "Size of the weight files.", lower_bound=1.0, flag_values=values)
    flags.DEFINE_integer(
        "devices", 8, "Simulated devices to shard the weights over.", lower_bound=1, flag_values=values
    )


def run(args: CommandFlags) -> None:
    """Writes and loads the weights, and prints the table."""
    layers = round((args.gigabytes * 1e9 / 4 - FIELDS["vocab_size"] * FIELDS["d_model"]) / LAYER_SIZE)
    with tempfile.TemporaryDirectory() as name:
        sizes = _write_model(Path(name), FIELDS | {"num_layers": layers})
        print("\n".join(HEADER), flush=True)
        for devices in sorted({1, args.devices}):
            # a fresh process: nothing has been allocated before the measurement
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                arrays, peak, seconds = pool.submit(_measure, Path(name), devices).result()
            numbers = [f"{number / 1e6:,.0f} MB" for number in (sum(sizes), arrays, peak - arrays, max(sizes))]
            print("| " + " | ".join([str(devices), *numbers[:2], f"{seconds:.1f}", *numbers[2:]]) + " |", flush=True)


def _write_model(folder: Path, config: dict[str, Any]) -> list[int]:
    """Writes a T5 v1.1 with constant weights as Hugging Face files; returns the bytes of each tensor."""
    shapes = traverse_util.flatten_dict(parameter_shapes(config))
    sizes: list[int] = []
    pending: dict[str, np.ndarray] = {}
    weight_map: dict[str, str] = {}

    def write() -> None:
        file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(pending, folder / file)
        weight_map.update(dict.fromkeys(pending, file))
        pending.clear()

    for path, name in tensor_names(T5Encoder(**config)).items():
        pending[name] = np.full(stored_shape(path, shapes[path].shape), 0.01, np.float32)
        sizes.append(pending[name].nbytes)
        if sum(tensor.nbytes for tensor in pending.values()) > FILE_BYTES:
            write()
    write()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model_config = config | {"model_type": "t5", "feed_forward_proj": "gated-gelu"}
    (folder / "config.json").write_text(json.dumps(model_config))
    return sizes


def _measure(folder: Path, devices: int) -> tuple[int, int, float]:
    """Loads the weights; returns (bytes of the arrays, increase of the peak memory in bytes, seconds)."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    mesh = make_mesh({"data": 1, "fsdp": -1})
    config = read_config(folder)
    shapes = parameter_shapes(config, jnp.bfloat16)
    read = parameter_reader(folder, T5Encoder(**config), shapes)
    before, start = _process_memory("VmRSS"), time.perf_counter()
    loaded = load_params(shapes, read, mesh)
    seconds = time.perf_counter() - start
    arrays = sum(shard.data.nbytes for array in jax.tree.leaves(loaded) for shard in array.addressable_shards)
    return arrays, _process_memory("VmHWM") - before, seconds


def _process_memory(name: str) -> int:
    """Returns this process's memory in bytes, current ("VmRSS") or peak ("VmHWM"); pages of mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    app.main(__name__)
