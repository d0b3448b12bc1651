"""Measure the training step of a config on the local devices: images/s, model FLOPs utilization (MFU), memory.

    python -m benchmarks.training_speed --config=configs/imagen_base_64.py --config.mesh.fsdp=1 \\
        --config.training.batch_size=16 --config.training.remat=dots --json=base.json

The real step runs on noise and on random text embeddings, as from a cache: neither data nor a text encoder is needed.
After two warm-up steps, `--steps` steps are timed three times. Prints a row of a table; `--json=FILE` writes the
measurements to a file. On several hosts it is started like `train`, by the scripts in `launch/`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_config, define_path
from imagen_jax.config.schema import StageConfig
from imagen_jax.images.array import image_dtype
from imagen_jax.io.atomic import atomic_write
from imagen_jax.parallel import batching, multihost
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.planning.encoders import abstract_encoder, cached_encoder
from imagen_jax.planning.hardware import CHIPS, GIB
from imagen_jax.planning.programs import train_program
from imagen_jax.stages import stage as stages
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.stage import Stage
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training.oom import explain_oom
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES
from imagen_jax.training.state import Frozen, TrainState, abstract_parts, first_state, init_params

SEVERAL_PROCESSES = True
WARM_UP = 2
TIMINGS = 3
# Dense bfloat16 FLOP/s by a part of the device's name; the more specific name comes first. From NVIDIA's data sheets of
# A100, H100, H200, L4 and L40S, as of November 2026.
PEAK_FLOPS = {
    "TPU v4": CHIPS["v4"].peak_flops,
    "TPU v5 lite": CHIPS["v5e"].peak_flops,
    "TPU v5": CHIPS["v5p"].peak_flops,
    "TPU v6 lite": CHIPS["v6e"].peak_flops,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
}
HEADER = (
    "| devices | mesh | batch size | compiling, s | ms per step | images/s | TFLOP/s/device | MFU | GiB/device |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Speed and memory of a training step.

    Attributes:
        device: name of the devices.
        mesh: devices along each axis.
        batch_size: images per step, on all devices.
        num_params: parameters of the network.
        model_flops: operations that the model needs for a step, on all devices, without rematerialization.
        compile_s: compile time.
        step_s: time of a step, in each timing.
        peak_flops: peak FLOP/s of a device; None if unknown.
        peak_bytes: peak memory of a device; None if the device does not report it.
    """

    device: str
    mesh: dict[str, int]
    batch_size: int
    num_params: int
    model_flops: int
    compile_s: float
    step_s: tuple[float, ...]
    peak_flops: float | None
    peak_bytes: int | None

    @property
    def num_devices(self) -> int:
        """Returns the number of devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def images_per_s(self) -> float:
        """Returns the images per second in the median timing."""
        return self.batch_size / statistics.median(self.step_s)

    @property
    def flops_per_s_per_device(self) -> float:
        """Returns the model FLOP/s of each device in the median timing."""
        return self.model_flops / statistics.median(self.step_s) / self.num_devices

    @property
    def mfu(self) -> float | None:
        """Returns the model FLOPs utilization in [0, 1]; None if the peak is unknown."""
        return self.flops_per_s_per_device / self.peak_flops if self.peak_flops else None


def peak_flops_of(device: str) -> float | None:
    """Returns the peak bfloat16 FLOP/s of a device by its name; None if the device is unknown."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device), None)


def _random_batch(stage: Stage, encoder: TextEncoder, rows: int) -> dict[str, np.ndarray]:
    """Returns a batch of random images and text embeddings, with the shapes and dtypes of training."""
    rng = np.random.default_rng(0)
    dtype = image_dtype(stage.config.data.bits, "config.data.bits")
    shape = (rows, *stage.config.training_hw, stage.config.channels)
    return {
        "image": rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True),
        "tokens": rng.standard_normal((rows, encoder.length, encoder.width), np.float32).astype(jnp.bfloat16),
        "mask": np.arange(encoder.length) < rng.integers(1, encoder.length + 1, (rows, 1)),
    }


def measure(config: StageConfig, steps: int, peak_flops: float | None = None) -> Measurement:
    """Compiles and times the training step of a config.

    Args:
        config: the stage.
        steps: number of steps of each timing.
        peak_flops: FLOP/s of a device that `peak_flops_of` does not know.

    Raises:
        ConfigError: the config cannot work on these devices.
    """
    mesh = make_mesh(config.mesh.axes)
    encoder = cached_encoder(abstract_encoder(config.text))
    program = train_program(config, mesh, encoder)
    start = time.perf_counter()
    step = program.lower().compile()
    compile_s = time.perf_counter() - start
    stage, optimizer = stages.build(config, encoder.width), make_optimizer(config.optimizer, config.training.steps)
    abstract, frozen = abstract_parts(stage.init, optimizer, mesh, config.sharding_rules, trained_patterns(config))
    state = first_state(optimizer, abstract, init_params(stage.init, config.seed, abstract.params))
    rows = len(batching.local_rows(config.training.batch_size, mesh))
    batch = batching.shard_local_batch(_random_batch(stage, encoder, rows), TRAINING_AXES, mesh)
    inputs = Frozen({}, init_params(stage.init, config.seed, frozen)), batch
    state, _ = _time_steps(step, state, inputs, WARM_UP)
    timings = []
    for _ in range(TIMINGS):
        state, seconds = _time_steps(step, state, inputs, steps)
        timings.append(seconds)
    devices = jax.local_devices()
    peaks = [stats["peak_bytes_in_use"] for device in devices if (stats := device.memory_stats())]
    return Measurement(
        device=devices[0].device_kind,
        mesh=dict(mesh.shape),
        batch_size=program.batch_size,
        num_params=program.num_params,
        model_flops=program.model_flops,
        compile_s=compile_s,
        step_s=tuple(timings),
        peak_flops=peak_flops or peak_flops_of(devices[0].device_kind),
        peak_bytes=max(peaks, default=None),
    )


def _time_steps(step: Any, state: TrainState, inputs: tuple[Frozen, Any], steps: int) -> tuple[TrainState, float]:
    """Runs some steps without waiting between them, as in training; returns (state, seconds per step)."""
    jax.block_until_ready((state, inputs))
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, *inputs)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - start) / steps


def format_row(measurement: Measurement) -> str:
    """Returns a row of the table; unknown values are left empty."""
    mesh = " × ".join(f"{size} {axis}" for axis, size in measurement.mesh.items() if size > 1) or "one device"
    fastest, slowest = min(measurement.step_s) * 1e3, max(measurement.step_s) * 1e3
    mfu, memory = measurement.mfu, measurement.peak_bytes
    cells = [
        f"{measurement.num_devices} × {measurement.device}",
        mesh,
        f"{measurement.batch_size:,}",
        f"{measurement.compile_s:.0f}",
        f"{fastest:,.1f}–{slowest:,.1f}",
        f"{measurement.images_per_s:,.4g}",
        f"{measurement.flops_per_s_per_device / 1e12:,.4g}",
        f"{mfu:.1%}" if mfu is not None else "",
        f"{memory / GIB:.1f}" if memory is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_config(values, "The stage to time, such as configs/imagen_base_64.py.")
    flags.DEFINE_integer("steps", 10, "Steps of each of three timings.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "peak_tflops",
        None,
        "Peak bfloat16 TFLOP/s of a device that the benchmark does not know.",
        lower_bound=0.0,
        flag_values=values,
    )
    define_path(values, "json", None, "Write the measurements to this file.")


def run(args: CommandFlags) -> None:
    """Measures the step, prints the table, and writes the measurements if `--json` is given."""
    config: StageConfig = args.load_config()
    # the compile time is measured
    jax.config.update("jax_enable_compilation_cache", False)
    with explain_oom(config):
        measurement = measure(config, args.steps, args.peak_tflops and args.peak_tflops * 1e12)
    print("\n".join((*HEADER, format_row(measurement))), flush=True)
    if args.json and multihost.is_main_process():
        report = dataclasses.asdict(measurement) | {
            "images_per_s": measurement.images_per_s,
            "flops_per_s_per_device": measurement.flops_per_s_per_device,
            "mfu": measurement.mfu,
            "jax": metadata.version("jax"),
        }
        atomic_write(Path(args.json), (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    app.main(__name__)
