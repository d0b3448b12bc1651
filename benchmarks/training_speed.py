"""How fast a config's training step is on the devices of this machine: images/s, share of their peak, memory.

    python -m benchmarks.training_speed --config=configs/imagen_base_64.py --config.mesh.fsdp=1 \\
        --config.training.batch_size=16 --config.training.remat=dots --json=base.json

The real step runs on noise, with embeddings of captions as they come from a cache: no data and no encoder is needed.
Three times ``--steps`` steps are timed, after two that are not. Prints a table's line; ``--json=FILE`` is
given what was measured. On several hosts it is started as ``train`` is, by the scripts in ``launch/``.
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
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands
from imagen_jax.images.array import dtype_of
from imagen_jax.io.atomic import write_whole
from imagen_jax.parallel import multihost, sharding
from imagen_jax.planning.encoders import from_cache, planned_encoder
from imagen_jax.planning.hardware import CHIPS, GIB
from imagen_jax.planning.programs import train_program
from imagen_jax.stages import stage as stages
from imagen_jax.stages.stage import Stage
from imagen_jax.training.oom import memory_told
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import TrainState, abstract_state

CONFIG = config_flags.DEFINE_config_file("config", None, "The stage to time, such as configs/imagen_base_64.py.")
STEPS = flags.DEFINE_integer("steps", 10, "Steps of each of three timings.", lower_bound=1)
PEAK = flags.DEFINE_float("peak_tflops", None, "bfloat16 TFLOP/s of a device that is not known here.", lower_bound=0.0)
JSON = flags.DEFINE_string("json", None, "Write what was measured to this file.")

WARM_UP = 2
TIMINGS = 3
# Dense bfloat16 operations a second, by a part of the name that a device gives of itself, the more special name first;
# of NVIDIA's data sheets of A100, H100, H200, L4 and L40S, read in November 2026.
PEAKS = {
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
    "| devices | mesh | images a step | compiling, s | ms a step | images/s | TFLOP/s each | of peak | GiB each |",
    "|---|---|---|---|---|---|---|---|---|",
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a training step takes.

    Attributes:
        device: as it names itself.
        mesh: devices along each axis.
        images: of a step, on all devices.
        parameters: of the network.
        flops: operations that the model needs for a step, on all devices, recomputation not counted.
        compile_s: that XLA took.
        step_s: of a step, in each timing.
        peak_flops: a device's operations a second at best; None if that is not known.
        peak_bytes: the most memory that was in use on a device; None if it does not tell.
    """

    device: str
    mesh: dict[str, int]
    images: int
    parameters: int
    flops: int
    compile_s: float
    step_s: tuple[float, ...]
    peak_flops: float | None
    peak_bytes: int | None

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def images_per_s(self) -> float:
        """Of the median timing."""
        return self.images / statistics.median(self.step_s)

    @property
    def flops_per_s(self) -> float:
        """Of each device, in the median timing."""
        return self.flops / statistics.median(self.step_s) / self.devices

    @property
    def share_of_peak(self) -> float | None:
        """Of the operations that a device could do meanwhile, those that the model needs."""
        return self.flops_per_s / self.peak_flops if self.peak_flops else None


def peak_of(device: str) -> float | None:
    """bfloat16 operations a second of a device by its name; None of one that is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def noise(stage: Stage, rows: int) -> dict[str, np.ndarray]:
    """So many examples of a batch as training has them, of numbers without meaning."""
    rng, encoder = np.random.default_rng(0), stage.encoder
    dtype = dtype_of(stage.config.data.bits, "config.data.bits")
    return {
        "image": rng.integers(0, np.iinfo(dtype).max, (rows, *stage.image_shape), dtype, endpoint=True),
        "tokens": rng.standard_normal((rows, encoder.length, encoder.width), np.float32).astype(jnp.bfloat16),
        "mask": np.arange(encoder.length) < rng.integers(1, encoder.length + 1, (rows, 1)),
    }


def measure(config: ml_collections.ConfigDict, steps: int, peak_flops: float | None = None) -> Measured:
    """Compiles and times the training step of a config. Raises UsageError where the config cannot work here.

    ``peak_flops`` is that of a device, where ``peak_of`` does not know it.
    """
    mesh = sharding.make_mesh(config.mesh.to_dict())
    encoder = from_cache(planned_encoder(config.text))
    program = train_program(config, mesh, encoder)
    begun = time.perf_counter()
    step = program.lower().compile()
    compiled = time.perf_counter()
    stage, optimizer = stages.build(config, encoder), make_optimizer(config.optimizer)
    _, make = abstract_state(stage.init, optimizer, config.seed, mesh, config.sharding_rules)
    state = make()
    rows = len(sharding.own_rows(config.training.batch_size, mesh))
    batch = sharding.put_batch(noise(stage, rows), mesh)
    state, _ = timed(step, state, batch, WARM_UP)
    timings = []
    for _ in range(TIMINGS):
        state, seconds = timed(step, state, batch, steps)
        timings.append(seconds)
    (device, *others) = jax.local_devices()
    told = [stats["peak_bytes_in_use"] for each in (device, *others) if (stats := each.memory_stats())]
    return Measured(
        device=device.device_kind,
        mesh=dict(mesh.shape),
        images=program.examples,
        parameters=program.params,
        flops=program.flops,
        compile_s=compiled - begun,
        step_s=tuple(timings),
        peak_flops=peak_flops or peak_of(device.device_kind),
        peak_bytes=max(told, default=None),
    )


def timed(step: Any, state: TrainState, batch: dict[str, jax.Array], steps: int) -> tuple[TrainState, float]:
    """(the state after so many steps, seconds of one of them), none waited for before the next, as in training."""
    jax.block_until_ready((state, batch))
    begun = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, {}, batch)
    jax.block_until_ready((state, metrics))
    return state, (time.perf_counter() - begun) / steps


def row(found: Measured) -> str:
    """A line of the table; what is not known is left open."""
    mesh = " × ".join(f"{size} {axis}" for axis, size in found.mesh.items() if size > 1) or "one device"
    fastest, slowest = min(found.step_s) * 1e3, max(found.step_s) * 1e3
    share, memory = found.share_of_peak, found.peak_bytes
    cells = [
        f"{found.devices} × {found.device}",
        mesh,
        f"{found.images:,}",
        f"{found.compile_s:.0f}",
        f"{fastest:,.1f}–{slowest:,.1f}",
        f"{found.images_per_s:,.4g}",
        f"{found.flops_per_s / 1e12:,.4g}",
        f"{share:.1%}" if share is not None else "",
        f"{memory / GIB:.1f}" if memory is not None else "",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measures, prints the table, and writes what was found if that is asked for."""
    config = commands.required_config(CONFIG.value)
    # what a compilation takes is part of the answer
    jax.config.update("jax_enable_compilation_cache", False)
    with memory_told(config):
        found = measure(config, STEPS.value, PEAK.value and PEAK.value * 1e12)
    print("\n".join((*HEADER, row(found))), flush=True)
    if JSON.value and multihost.is_main_process():
        figures = dataclasses.asdict(found) | {
            "images_per_s": found.images_per_s,
            "flops_per_s_per_device": found.flops_per_s,
            "share_of_peak": found.share_of_peak,
            "jax": metadata.version("jax"),
        }
        write_whole(Path(JSON.value), (json.dumps(figures, indent=2) + "\n").encode())


if __name__ == "__main__":
    commands.run(main, several_processes=True)
