"""Measure the peak memory of an evaluation: `python -m benchmarks.evaluation_memory --stages=DIR,DIR`.

Each number of images is evaluated in a fresh process, with one step of each stage. Linux only.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags, define_stages

BATCH_SIZE = 64
HEADER = ("| images | peak memory | seconds | state on disk |", "|---|---|---|---|")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_stages(values)
    flags.DEFINE_list("num_images", ["512", "20000"], "Numbers of images to evaluate.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Evaluates, and prints the table."""
    folders = [str(folder) for folder in args.stage_folders()]
    print("\n".join(HEADER), flush=True)
    for count in map(int, args.num_images):
        # a fresh process: nothing has been allocated before the measurement
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak, seconds, written = pool.submit(_measure, folders, count).result()
        print(f"| {count:,} | {peak / 2**20:,.0f} MiB | {seconds:.0f} | {written / 2**10:,.0f} KiB |", flush=True)


def _measure(folders: list[str], count: int) -> tuple[int, float, int]:
    """Returns the peak memory of the process in bytes, seconds, and the bytes of the records."""
    from imagen_jax import ImagenPipeline, evaluate, load_config
    from imagen_jax.config.schema import EvaluationConfig
    from imagen_jax.evaluation.progress import RECORDS

    pipeline = ImagenPipeline.from_pretrained(folders).with_settings([{"num_inference_steps": 1}] * len(folders))
    pipeline.set_progress_bar_config(disable=True)
    changes = {"num_samples": count, "batch_size": BATCH_SIZE}
    config = load_config("configs/shapes_eval.py", changes, schema=EvaluationConfig)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        evaluate(pipeline, config, out)
        written = (Path(out) / RECORDS).stat().st_size
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.perf_counter() - start, written


if __name__ == "__main__":
    app.main(__name__)
