"""Kill the writer of an embedding cache repeatedly: `python -m benchmarks.embed_kills --kills=20`. Unix only.

A separate process embeds captions of `shapes` and is killed by SIGKILL at a random time; the next process resumes.
When a process finishes, its cache must be byte-identical to the cache of an uninterrupted process, and a new cache is
started. Fails if a cache differs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from benchmarks import app
from configs import shapes_base
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.stages.precompute_text import embed


class Outcome(NamedTuple):
    """The result of `kill_repeatedly`.

    Attributes:
        shards_at_kills: for each kill, the number of shards that were written.
        caches: number of caches that were finished after kills.
    """

    shards_at_kills: list[int]
    caches: int


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_integer("kills", 20, "Number of kills.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("examples", 4000, "Captions to embed.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("kill_seed", 0, "Seed of the times of the kills.", flag_values=values)


def run(args: CommandFlags) -> None:
    """Kills the writer, and prints what happened."""
    with tempfile.TemporaryDirectory() as name:
        outcome = kill_repeatedly(tiny_config(args.examples), Path(name), args.kills, args.kill_seed)
    print(f"{len(outcome.shards_at_kills)} kills, with {outcome.shards_at_kills} shards written")
    print(f"{outcome.caches} interrupted caches are byte-identical to the uninterrupted one")


def tiny_config(num_examples: int) -> StageConfig:
    """Returns a tiny base stage with the given number of captions to embed."""
    return load_config(shapes_base.get_config("tiny"), {"data.num_examples": num_examples})


def kill_repeatedly(config: StageConfig, folder: Path, kills: int, seed: int) -> Outcome:
    """Kills the writer at random times of its run.

    Args:
        config: the stage whose captions are embedded.
        folder: where the caches are written.
        kills: number of kills.
        seed: of the times of the kills.

    Raises:
        AssertionError: a resumed cache differs from the uninterrupted one.
    """
    processes = multiprocessing.get_context("forkserver")
    # fork from a process that has imported the package: imports would take most of a run, and get most of the kills
    processes.set_forkserver_preload(["imagen_jax.stages.precompute_text"])
    rng = np.random.default_rng(seed)

    def start(out: Path) -> multiprocessing.process.BaseProcess:
        process = processes.Process(target=_embed_quietly, args=(config, out))
        process.start()
        return process

    def run(out: Path) -> float:
        start_time, process = time.perf_counter(), start(out)
        process.join()
        assert process.exitcode == 0, f"embedding ended with exit code {process.exitcode}"
        return time.perf_counter() - start_time

    run(folder / "first")  # fills the compilation cache
    seconds = run(folder / "uninterrupted")
    expected = _read_files(folder / "uninterrupted")
    assert _read_files(folder / "first") == expected
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
            assert _read_files(out) == expected, f"{out} differs from the uninterrupted cache"
            outcome = outcome._replace(caches=outcome.caches + 1)
    return outcome


def _embed_quietly(config: StageConfig, out: Path) -> None:
    """Embeds the captions without output; runs in a separate process."""
    out.mkdir(exist_ok=True)
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        embed(config, out, "bfloat16", batch_size=16, shard_rows=256)


def _read_files(folder: Path) -> dict[str, bytes]:
    """Returns the contents of all files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    app.main(__name__)
