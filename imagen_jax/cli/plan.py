"""Plan a run: `imagen plan --config=configs/imagen_base_64.py --topology=v4:8x8x4`.

Compiles what `train`, `sample` or `embed` would run for TPUs that are not attached, by libtpu, and reports whether it
fits, what it does, and an upper bound of its speed. Without libtpu it reports what needs no compiler.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib import metadata
from typing import Any

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_mesh, define_path, mesh_axes
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import as_path
from imagen_jax.planning import report
from imagen_jax.planning.aot import has_compiler
from imagen_jax.planning.hardware import parse_topology
from imagen_jax.planning.plan import (
    INSTALL_LIBTPU,
    PLANNED_COMMANDS,
    PlanRequest,
    check_request,
    compile_plan,
    plan_without_compiler,
)
from imagen_jax.planning.search import search_fastest, search_fit, select_fastest

ALIASES = {"--json": "--json=-"}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_config(values, "The stage to plan, such as configs/imagen_base_64.py.")
    flags.DEFINE_string(
        "topology", None, "v4:8x8x4, v5e:16x16, v5p:4x4x8, v6e:16x16; for two slices v4:4x4x4*2.", flag_values=values
    )
    flags.DEFINE_enum("what", "train", list(PLANNED_COMMANDS), "The command to plan.", flag_values=values)
    flags.DEFINE_bool(
        "cached_text", False, "Training reads cached text embeddings, without an encoder.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size", 64, "Prompts or captions at once, on all chips.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool("quick", False, "Compile with little effort: minutes instead of many.", flag_values=values)
    flags.DEFINE_bool(
        "search", False, "Find the fastest mesh, batch and remat; compiles all, for hours.", flag_values=values
    )
    define_path(values, "json", None, "Write the plan to this file; --json alone prints it, and nothing else.")
    define_path(values, "program", None, "Write the compiled program to this file.")
    define_mesh(values)


class _Printer:
    """Prints a plan as text, or writes it as JSON."""

    def __init__(self, args: CommandFlags) -> None:
        self._args = args

    def tell(self, line: str) -> None:
        """Prints a line, unless the plan itself is printed."""
        if self._args.json != "-":
            print(line, flush=True)

    def write(self, found: dict[str, Any]) -> None:
        """Writes the plan as JSON where that is asked for, with the command that makes it."""
        text = json.dumps({"command": self._command(), "versions": _versions(), **found}, indent=2)
        if self._args.json == "-":
            print(text)
        elif self._args.json:
            atomic_write(as_path(self._args.json), (text + "\n").encode())

    def _command(self) -> str:
        kept = [argument for argument in self._args.arguments if not argument.startswith(("--json", "--program"))]
        return shlex.join(["imagen", "plan", *kept])


def run(args: CommandFlags) -> None:
    """Plans the run."""
    import jax

    topology = parse_topology(args.required("topology", "v4:8x8x4"))
    config = args.load_config()
    request = PlanRequest(
        command=args.what,
        config=config,
        topology=topology,
        cached_text=args.cached_text or bool(config.text.cache),
        batch_size=args.batch_size,
        quick=args.quick,
        sampling_axes=mesh_axes(args),
    )
    check_request(request)
    # the TPUs of this machine, if it has any, are left to others
    jax.config.update("jax_platforms", "cpu")
    # the compilation time is part of the answer
    jax.config.update("jax_enable_compilation_cache", False)
    printer = _Printer(args)
    if not has_compiler():
        found = plan_without_compiler(request)
        print(INSTALL_LIBTPU, file=sys.stderr)
        _print_plan(printer, found)
        printer.write(found)
    elif args.search:
        _search(printer, request)
    else:
        found = compile_plan(request, as_path(args.program) if args.program else None)
        _print_plan(printer, found)
        if request.command == "train" and not found["fits"]:
            found["tried"] = _try_to_fit(printer, request, found)
        printer.write(found)


def _print_plan(printer: _Printer, found: dict[str, Any]) -> None:
    for line in report.format_plan(found):
        printer.tell(line)


def _try_to_fit(printer: _Printer, request: PlanRequest, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what was changed to make a run fit; each trial is printed as it ends."""
    trials = []
    for trial in search_fit(request, found, compile_plan):
        trials.append(trial)
        printer.tell(report.format_trial(trial))
    if not any(trial["fits"] for trial in trials):
        printer.tell("nothing that was tried makes it fit: it needs more chips")
    return trials


def _search(printer: _Printer, request: PlanRequest) -> None:
    """Searches for the fastest configuration and prints it."""
    if request.command != "train":
        raise ConfigError(f"--search is for training, and --what is {request.command}: leave one of them out")
    trials = []
    for trial in search_fastest(request, compile_plan):
        trials.append(trial)
        printer.tell(report.format_trial(trial))
    best = select_fastest(trials)
    printer.tell("fastest: " + report.format_trial(best) if best else "none of the trials fits: use more chips")
    printer.write({"tried": trials, "fastest": best})


def _versions() -> dict[str, str]:
    """Returns the versions of what compiles, as far as it is installed, and its flags."""
    found = {name: metadata.version(name) for name in ("jax", "libtpu") if name == "jax" or has_compiler()}
    return found | {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}
