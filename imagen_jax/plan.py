"""Plan a run: ``python -m imagen_jax.plan --config=configs/imagen_base_64.py --topology=v4:8x8x4``.

Compiles what ``train``, ``sample`` or ``embed`` would run for TPUs that are not there, by libtpu, and says whether it
fits, what it does, and how fast it can be at best. Without libtpu it says what needs no compiler.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands, mesh_flags
from imagen_jax.errors import UsageError
from imagen_jax.files import write_whole
from imagen_jax.planning import report
from imagen_jax.planning.chips import parse_topology
from imagen_jax.planning.compiling import has_compiler
from imagen_jax.planning.levers import fastest, search, what_fits
from imagen_jax.planning.plans import WHATS, Question, check, plan, plan_without_compiler

INSTALL = (
    "libtpu, which compiles for TPUs, is not installed: pip install -e '.[tpu]', or the tested version of it alone, "
    "pip install --no-deps -r launch/libtpu.lock"
)

CONFIG = config_flags.DEFINE_config_file("config", None, "The stage to plan, such as configs/imagen_base_64.py.")
TOPOLOGY = flags.DEFINE_string("topology", None, "v4:8x8x4, v5e:16x16, v5p:4x4x8, v6e:16x16; of two slices v4:4x4x4*2.")
WHAT = flags.DEFINE_enum("what", "train", list(WHATS), "Of which command.")
CACHED_TEXT = flags.DEFINE_bool("cached_text", False, "Training reads embeddings of captions, and has no encoder.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Prompts or captions at once, of all chips.", lower_bound=1)
QUICK = flags.DEFINE_bool("quick", False, "Compile with little effort: minutes instead of many.")
SEARCH = flags.DEFINE_bool("search", False, "Find the fastest mesh, batch and remat; compiles all, for hours.")
JSON = flags.DEFINE_string("json", None, "Write the plan to this file; --json alone prints it, and nothing else.")
PROGRAM = flags.DEFINE_string("program", None, "Write the compiled program to this file, to be read.")
flags.adopt_module_key_flags(mesh_flags)


def main() -> None:
    """Plans the run of the flags."""
    topology = parse_topology(commands.required(TOPOLOGY.value, "topology", "v4:8x8x4"))
    config = commands.required_config(CONFIG.value)
    question = Question(
        what=WHAT.value,
        config=config,
        topology=topology,
        cached_text=CACHED_TEXT.value or bool(config.text.cache),
        batch_size=BATCH_SIZE.value,
        quick=QUICK.value,
        sampling_axes=mesh_flags.sampling_axes(),
    )
    check(question)
    # the TPUs of this machine, if it has any, are left to others
    jax.config.update("jax_platforms", "cpu")
    # what a compilation takes is part of the answer
    jax.config.update("jax_enable_compilation_cache", False)
    if not has_compiler():
        found = plan_without_compiler(question)
        print(INSTALL, file=sys.stderr)
        say(found)
        write(found)
    elif SEARCH.value:
        show_search(question)
    else:
        found = plan(question, Path(PROGRAM.value) if PROGRAM.value else None)
        say(found)
        if question.what == "train" and not found["fits"]:
            found["tried"] = tried(question, found)
        write(found)


def tried(question: Question, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was changed to make a run fit, each trial told as it ends."""
    trials = []
    for trial in what_fits(question, found, plan):
        trials.append(trial)
        tell(report.trial_line(trial))
    if not any(trial["fits"] for trial in trials):
        tell("nothing that was tried makes it fit: it needs more chips")
    return trials


def show_search(question: Question) -> None:
    """Searches, and shows the fastest."""
    if question.what != "train":
        raise UsageError(f"--search is of training, and --what is {question.what}: leave one of them out")
    trials = []
    for trial in search(question, plan):
        trials.append(trial)
        tell(report.trial_line(trial))
    best = fastest(trials)
    tell("fastest: " + report.trial_line(best) if best else "nothing that was tried fits: it needs more chips")
    write({"tried": trials, "fastest": best})


def say(found: dict[str, Any]) -> None:
    """A plan for people."""
    for line in report.lines(found):
        tell(line)


def tell(line: str) -> None:
    """A line for people, unless the plan itself is printed."""
    if JSON.value != "-":
        print(line, flush=True)


def write(found: dict[str, Any]) -> None:
    """The plan as JSON, where it is asked for, with the command that makes it."""
    text = json.dumps({"command": command(), "versions": versions(), **found}, indent=2)
    if JSON.value == "-":
        print(text)
    elif JSON.value:
        write_whole(Path(JSON.value), (text + "\n").encode())


def command() -> str:
    """The command that was given, but for where it writes."""
    kept = [argument for argument in sys.argv[1:] if not argument.startswith(("--json", "--program"))]
    return shlex.join(["python", "-m", "imagen_jax.plan", *kept])


def versions() -> dict[str, str]:
    """Of what compiles, as far as it is installed, and the flags that it was given."""
    found = {name: metadata.version(name) for name in ("jax", "libtpu") if name == "jax" or has_compiler()}
    return found | {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")}


if __name__ == "__main__":
    # absl knows no flag of text that may stand alone
    sys.argv = ["--json=-" if argument == "--json" else argument for argument in sys.argv]
    commands.run(main)
