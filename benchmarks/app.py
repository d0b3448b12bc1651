"""Runs benchmarks as commands are run: `python -m benchmarks.NAME --flag=value …`."""

from __future__ import annotations

import sys

from imagen_jax.cli import app


def main(name: str) -> None:
    """Runs a benchmark and ends the process with its exit code.

    Args:
        name: `__name__` of the benchmark's module. The module has `define_flags(values)`, `run(args)`, and
            `SEVERAL_PROCESSES = True` if the processes of a multi-host run share its work.
    """
    app.run(sys.modules[name], sys.argv[1:])
