"""Run ours, diffusers' IF U-Net and imagen-pytorch's U-Net on the same work in turn: `make peers`.

Each contestant runs in a process of its own on two cores, round after round, so that other load meets all of them;
medians over the rounds are printed with ratios to the first one. `--rounds=N` sets their number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.peers import work

CONTESTANTS = {
    "imagen_jax": "ours",
    "diffusers, IF": "diffusers_if",
    "imagen-pytorch": "imagen_pytorch_unet",
}
HEADER = (
    "| U-Net | parameters, M | GFLOP/step | GFLOP/s | training, images/s | ratio | sampling, images/s | ratio |",
    "|---|---|---|---|---|---|---|---|",
)


def run_contestant(module: str) -> work.Result:
    """Runs a contestant in a process of its own. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.peers.{module}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(work.THREADS), "JAX_PLATFORMS": "cpu"}
    return work.parse_report(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def median_result(results: Sequence[work.Result]) -> work.Result:
    """Returns the medians over the rounds of a contestant."""
    return work.Result(
        results[0].num_params,
        results[0].forward_flops,
        statistics.median(result.step_s for result in results),
        statistics.median(result.sampling_s for result in results),
    )


def format_rows(results: dict[str, work.Result]) -> list[str]:
    """Returns a row of the table for each contestant, with the speed of the first one relative to its own."""
    first = next(iter(results.values()))
    return [
        f"| {name} | {result.num_params / 1e6:.1f} | {result.step_flops / 1e9:.0f} | "
        f"{result.training_gflops_per_s:.0f} | "
        f"{result.trained_images_per_s:.2f} | {first.trained_images_per_s / result.trained_images_per_s:.2f} | "
        f"{result.sampled_images_per_s:.3f} | {first.sampled_images_per_s / result.sampled_images_per_s:.2f} |"
        for name, result in results.items()
    ]


def main() -> None:
    """Runs all rounds and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if hasattr(os, "sched_setaffinity"):  # inherited by the contestants; XLA has a thread for each core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work.THREADS])
    results: dict[str, list[work.Result]] = {name: [] for name in CONTESTANTS}
    for number in range(1, rounds + 1):
        for name, module in CONTESTANTS.items():
            results[name].append(run_contestant(module))
            last = results[name][-1]
            print(
                f"round {number}, {name}: {last.trained_images_per_s:.2f} images/s in training, "
                f"{last.sampled_images_per_s:.3f} images/s in sampling",
                file=sys.stderr,
                flush=True,
            )
    print(*HEADER, *format_rows({name: median_result(result) for name, result in results.items()}), sep="\n")


if __name__ == "__main__":
    main()
