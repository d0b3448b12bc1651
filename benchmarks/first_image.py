"""Measure how long a newcomer waits for the first image: `python -m benchmarks.first_image`. Unix only.

In an empty environment the package is installed from this checkout, with and without compiling all modules of all
packages for Python beforehand. From the latter the cascade that ships with it draws one prompt, in a fresh process each
time: first with an empty compilation cache, then with the one that the first left.
Seconds are those on the clock and those of the processor; other programs on the machine lengthen the first kind alone.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags

ROOT = Path(__file__).parents[1]
PROMPT = "a large red circle above a small blue square"
HEADER = ("| | seconds | of the processor |", "|---|---|---|")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_integer("repeats", 3, "How often each first image is timed.", lower_bound=1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Installs, samples, and prints the table."""
    print("\n".join(HEADER), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {key: text for key, text in os.environ.items() if not key.startswith(("PYTHON", "JAX"))}
        for options in ([], ["--no-compile"]):
            _row("an empty environment", [sys.executable, "-m", "venv", "--clear", "venv"], environment, folder)
            command = ["pip", "install", *options]
            python = folder / "venv/bin/python"
            install = [str(python), "-m", *command, "--quiet", str(ROOT)]
            _row(f"`{' '.join(command)} .`", install, environment, folder)
        for index in range(args.repeats):
            cached = environment | {"JAX_COMPILATION_CACHE_DIR": str(folder / f"cache-{index}")}
            for what in ("nothing compiled before", "compiled before"):
                out = folder / f"{what}-{index}".replace(" ", "-")
                sample = [str(python), "-m", "imagen_jax", "sample", "--stages=shapes", f"--prompts={PROMPT}"]
                _row(f"first image, {what}", [*sample, f"--out={out}"], cached, folder)
                if not any(out.rglob("*.png")):
                    raise AssertionError(f"there is no image in {out}")


def _row(what: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
    """Runs a command in a folder that is not the checkout, and prints how long it took."""
    start, used = time.monotonic(), _processor_seconds()
    subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    print(f"| {what} | {time.monotonic() - start:.1f} | {_processor_seconds() - used:.1f} |", flush=True)


def _processor_seconds() -> float:
    """Returns the seconds of the processor that ended child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    app.main(__name__)
