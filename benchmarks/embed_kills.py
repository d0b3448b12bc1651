"""Kills the writing of an embedding cache, again and again: ``python -m benchmarks.embed_kills --kills=20``. Unix only.

A process of its own embeds captions of `shapes` and is killed by SIGKILL at a random time, and the next one goes on
from there; when one has come to its end, the cache must have the bytes of one that nobody disturbed, and the next is
begun. Fails if one has not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
from absl import flags

from configs import shapes_base
from imagen_jax import commands
from imagen_jax.stages.precompute_text import embed

KILLS = flags.DEFINE_integer("kills", 20, "How often to kill.", lower_bound=1)
EXAMPLES = flags.DEFINE_integer("examples", 4000, "Captions to embed.", lower_bound=1)
SEED = flags.DEFINE_integer("kill_seed", 0, "Of the times of kills.")


class Outcome(NamedTuple):
    """How often a process was killed, with how many shards written, and how many caches were then made."""

    shards_at_kills: list[int]
    caches: int


def main() -> None:
    """Kills and tells."""
    with tempfile.TemporaryDirectory() as name:
        found = kill(tiny_config(EXAMPLES.value), Path(name), KILLS.value, SEED.value)
    print(f"{len(found.shards_at_kills)} kills, when {found.shards_at_kills} shards were written")
    print(f"{found.caches} caches that were broken off came to the bytes of the one that was not")


def tiny_config(examples: int) -> ml_collections.ConfigDict:
    """A stage with so many captions to embed."""
    config = shapes_base.get_config("tiny")
    config.data.examples = examples
    return config


def kill(config: ml_collections.ConfigDict, folder: Path, kills: int, seed: int) -> Outcome:
    """Kills so often, at random times of a run. Raises AssertionError for a cache with other bytes."""
    processes = multiprocessing.get_context("forkserver")
    # forked from a process that has imported all: else most of a run, and of kills, would be imports
    processes.set_forkserver_preload(["imagen_jax.stages.precompute_text"])
    rng = np.random.default_rng(seed)

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=embed_quietly, args=(config, out))
        process.start()
        return process

    def run(out: Path) -> float:
        begun, process = time.perf_counter(), start(out)
        process.join()
        assert process.exitcode == 0, f"embedding ended with {process.exitcode}"
        return time.perf_counter() - begun

    run(folder / "first")  # compiles
    seconds = run(folder / "whole")
    expected = bytes_of(folder / "whole")
    assert bytes_of(folder / "first") == expected
    outcome = Outcome([], 0)
    while len(outcome.shards_at_kills) < kills:
        out = folder / str(outcome.caches)
        process = start(out)
        process.join(rng.uniform(0, seconds))
        if process.is_alive():
            process.kill()
            process.join()
            outcome.shards_at_kills.append(len(list(out.glob("shard-*.array_record"))))
        if len(outcome.shards_at_kills) == kills:
            run(out)
        if process.exitcode == 0 or len(outcome.shards_at_kills) == kills:
            assert bytes_of(out) == expected, f"{out} has other bytes"
            outcome = outcome._replace(caches=outcome.caches + 1)
    return outcome


def embed_quietly(config: ml_collections.ConfigDict, out: Path) -> None:
    """What a process does."""
    out.mkdir(exist_ok=True)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        embed(config, out, "bfloat16", batch_size=16, shard_rows=256)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    commands.run(main)
