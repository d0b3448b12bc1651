"""How every command starts and ends: `imagen COMMAND --flag=value …`.

Exit codes: 0 done, 1 failed, 2 wrong use. A user's mistake is reported in one sentence, without a traceback.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from tqdm import tqdm

from imagen_jax.errors import ConfigError, TrainingError, is_out_of_space
from imagen_jax.io.screen import Screen
from imagen_jax.io.text import printable

if TYPE_CHECKING:
    from imagen_jax.cli.flags import CommandFlags

COMMANDS = {
    "train": "train one stage from a config file",
    "sample": "generate images from prompts",
    "edit": "edit images: image to image, inpainting, outpainting, variations, upscaling, inversion",
    "serve": "serve a cascade over HTTP, with a page and OpenAI's image API",
    "evaluate": "score a cascade on the captions of a data set",
    "sweep": "sample with many settings of a stage, and find where alignment and fidelity trade off best",
    "benchmark_prompts": "sample and score a set of prompts: PartiPrompts, GenEval, DrawBench, or one of the package",
    "blind": "write a page on which people compare two models without knowing which is which",
    "votes": "count the votes of such a page",
    "fairness": "measure how attributes come out that prompts leave open",
    "report": "write all that evaluations have found as one page, and as tables for a paper",
    "publish": "write a cascade into one folder for others, or push it to the Hugging Face Hub",
    "convert": "read pipelines of DeepFloyd IF in the format of diffusers, or write stages as such, or adapters",
    "finetune": "teach a cascade a subject or a domain from a few images",
    "embed": "compute the text embeddings of a data set once",
    "inspect": "check a data set before training on it",
    "prepare": "write a data set that comes with the package",
    "plan": "estimate memory and speed on TPUs that are not attached",
    "config": "print a full config, or the difference of two",
    "pretrain_text": "train the text encoder of the shapes data set",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `imagen COMMAND …` and ends the process; `argv` is the command line without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        sys.exit(0 if arguments else 2)
    name = _command_name(arguments[0])
    if name == "--version":
        from imagen_jax import __version__

        print(f"imagen_jax {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print_error(f"{name!r} is not a command: the nearest is {nearest!r}; `imagen --help` lists all")
        sys.exit(2)
    run(importlib.import_module(f"imagen_jax.cli.{name}"), arguments[1:])


def _command_name(argument: str) -> str:
    """Returns an argument with underscores for dashes, if it is the name of a command then."""
    name = argument.replace("-", "_")
    return name if name in COMMANDS else argument


def run(command: ModuleType, arguments: Sequence[str]) -> None:
    """Runs one command module and ends the process with its exit code.

    A command module has a docstring, `define_flags(values)`, `run(args)`, which may return an exit code, and
    `SEVERAL_PROCESSES = True` if the processes of a multi-host run share its work.
    """

    from imagen_jax.cli.flags import CommandFlags

    def with_flags() -> int | None:
        args = CommandFlags(command)
        if args.parse(arguments):
            print(args.help())
            return 0
        _start_processes(args, getattr(command, "SEVERAL_PROCESSES", False))
        return command.run(args)

    run_function(with_flags)


def run_function(function: Callable[[], int | None]) -> None:
    """Calls a function as commands are run, and ends the process with its exit code."""
    from imagen_jax.parallel import devices, multihost, runtime

    code = 1
    logger = logging.getLogger("imagen_jax")
    before = logger.handlers, logger.level, logger.propagate
    try:
        if not isinstance(sys.stderr, Screen):
            sys.stderr = Screen()
        _silence_libraries()
        runtime.limit_malloc_arenas()
        runtime.enable_compilation_cache()
        code = function() or 0
    except ConfigError as error:
        print_error(error)
        code = 2
    except TrainingError as error:
        print_error(error)
    except BrokenPipeError:  # whoever reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if is_out_of_space(error):
            print_error(f"{error}: free some space, and run the same command again")
        elif problem := devices.backend_error(error):
            print_error(problem)
            code = 2
        else:
            traceback.print_exc()
    finally:  # a caller in the same process, such as a test, has its own logging back
        logger.handlers, logger.level, logger.propagate = before
    multihost.shutdown(code)


def print_error(error: Exception | str) -> None:
    """Prints an error to stderr; control characters from files and prompts are escaped."""
    print("error: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  imagen {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    head, foot = "Text-to-image diffusion cascades in JAX.", "imagen COMMAND --help lists its flags."
    return "\n".join([head, "", *lines, "", foot])


def _start_processes(args: CommandFlags, several: bool) -> None:
    """Joins the other processes of a multi-host run, if the command can be shared by several."""
    from imagen_jax.parallel import multihost

    coordinator, count, index = distributed_args(args)
    if several:
        multihost.initialize(coordinator, count, index)
    elif (count or 1) > 1:
        raise ConfigError(f"--process_count is {count}, but this command runs in one process: start it once")


def distributed_args(args: CommandFlags) -> tuple[str | None, int | None, int | None]:
    """Returns (coordinator, process count, process index) from the flags or the launcher's environment variables.

    Raises:
        ConfigError: an environment variable is not a number.
    """

    def number(flag: str, variable: str) -> int | None:
        text = os.environ.get(variable)
        if args[flag] is not None or text is None:
            return args[flag]
        if not text.isdecimal():
            raise ConfigError(f"${variable} {text!r} is not a number: set it to one, or give --{flag}")
        return int(text)

    coordinator = args.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    return coordinator, number("process_count", "JAX_NUM_PROCESSES"), number("process_index", "JAX_PROCESS_ID")


class _ProgressBarHandler(logging.Handler):
    """Prints log records above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _silence_libraries() -> None:
    """Keeps messages about the internals of other libraries off the screen; log records of this package are printed."""
    absl_logger = logging.getLogger("absl")
    absl_logger.setLevel(logging.WARNING)
    if _has_no_orbax_traceback not in absl_logger.filters:
        absl_logger.addFilter(_has_no_orbax_traceback)
    warnings.filterwarnings("ignore", module="orbax|jax|flax|grain|PIL")
    sys.unraisablehook = _print_unraisable
    logger = logging.getLogger("imagen_jax")
    logger.setLevel(logging.INFO)
    logger.handlers = [_ProgressBarHandler()]
    logger.propagate = False  # jax.distributed gives the root logger a handler of its own


def _print_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints an exception that nothing can catch, but for those of tensorstore's threads after a save has failed.

    Orbax raises the first error and closes its event loop; each of the other writes then reports that it is closed.
    """
    trace = unraisable.exc_traceback
    if not (unraisable.exc_type is RuntimeError and trace and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"):
        sys.__unraisablehook__(unraisable)


def _has_no_orbax_traceback(record: logging.LogRecord) -> bool:
    """Filters out Orbax' log records with a traceback: Orbax raises the same errors, and they are reported here."""
    return not (record.exc_info and "orbax" in record.pathname)
