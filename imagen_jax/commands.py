"""How every command starts and ends: flags and configs read, a user's mistake told in one sentence.

Exit codes: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from imagen_jax import processes
from imagen_jax.checkpoints import is_for_want_of_room
from imagen_jax.config_rules import flatten
from imagen_jax.errors import RunError, UsageError
from imagen_jax.grids import printable

OVERRIDE = "--config."
COMPILED = "~/.cache/imagen_jax/xla"

COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 of several; $JAX_COORDINATOR_ADDRESS by default. TPUs need none."
)
PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "How many there are; $JAX_NUM_PROCESSES by default.")
PROCESS_INDEX = flags.DEFINE_integer("process_index", None, "Which of them this is; $JAX_PROCESS_ID by default.")


def run(main: Callable[[], None], several_processes: bool = False) -> None:
    """Parses the flags and calls ``main``; ends the process.

    ``several_processes`` is of a command whose processes can share its work.
    """
    code = 1
    try:
        parse_flags(sys.argv)
        quiet_libraries()
        processes.few_memory_pools()
        keep_compiled_programs()
        place = place_among_processes()
        if several_processes:
            processes.start(*place)
        elif (place[1] or 1) > 1:
            raise UsageError(f"--process_count is {place[1]}, but this command runs in one process: start it once")
        main()
        code = 0
    except UsageError as error:
        tell(error)
        code = 2
    except RunError as error:
        tell(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    except Exception as error:
        if is_for_want_of_room(error):
            tell(f"{error}: free some room, and run the same command again")
        else:
            traceback.print_exc()
    processes.end(code)


def tell(error: Exception | str) -> None:
    """Prints what went wrong; what a file or a prompt says must not speak to the terminal."""
    print("error: " + "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)


def parse_flags(argv: list[str]) -> None:
    """Parses the command line into ``flags.FLAGS``. Raises UsageError for whatever is wrong with it."""
    app.define_help_flags()
    overrides = [argument for argument in argv if argument.startswith(OVERRIDE)]
    check_config_file(argv)
    try:
        if overrides:
            check_overrides(overrides, config_as_written(argv))
        surplus = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UsageError(sentence(error)) from error
    except SystemExit:
        sys.exit(0)  # after --help, which absl takes for a failure
    if surplus:
        raise UsageError(f"{surplus[0]!r} is not a flag: give flags as --name=value")


def check_config_file(argv: list[str]) -> None:
    """Raises UsageError if a config is named that is not there: absl would say so only when it is first used."""
    for argument in argv[1:]:
        if argument.startswith("--config="):
            path = argument.removeprefix("--config=").split(":")[0]
            if not Path(path).is_file():
                raise UsageError(f"config file {path!r} does not exist: give for example configs/shapes_base.py")


def sentence(error: flags.Error) -> str:
    """What absl says of wrong flags, on one line; of a config file that raised an error, its last line."""
    text = str(error)
    if "Traceback" in text:
        text = text.strip().splitlines()[-1].split(": ", 1)[-1]
    return " ".join(text.split())


def config_as_written(argv: list[str]) -> ml_collections.ConfigDict | None:
    """The config as its file has it, without overrides: what a misspelt override is held against. None if not given."""
    alone = flags.FlagValues()
    given = [argument for argument in argv[1:] if argument.startswith("--config=")]
    config = config_flags.DEFINE_config_file("config", None, flag_values=alone, sys_argv=given)
    alone([argv[0], *given])
    return config.value


def check_overrides(overrides: list[str], config: ml_collections.ConfigDict | None) -> None:
    """Raises UsageError for an override of a key that the config does not have, with the nearest that it has."""
    if config is None:
        raise UsageError(f"{overrides[0]!r} changes a config, but no --config=FILE is given")
    known = flatten(config.to_dict())
    for override in overrides:
        key, _, value = override.removeprefix(OVERRIDE).partition("=")
        if key in known:
            if isinstance(known[key], int) and "," in value:
                raise UsageError(
                    f"config key {key!r} is one number in its file, and no flag makes it {value!r}: write that into a "
                    "config file, as configs/shapes_base.py:wide does with image_size"
                )
            continue
        if any(name.startswith(f"{key}.") for name in known):
            raise UsageError(
                f"config key {key!r} is a group: set its members one by one, such as --config.{key}.NAME=value"
            )
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        raise UsageError(f"the config has no key {key!r}: the nearest is {near!r}")


def place_among_processes() -> tuple[str | None, int | None, int | None]:
    """(coordinator, count, index) from the flags or, as launchers give it, from the environment.

    Raises:
        UsageError: a variable of the environment is no number.
    """

    def number(flag: flags.FlagHolder[int | None], variable: str) -> int | None:
        text = os.environ.get(variable)
        if flag.value is not None or text is None:
            return flag.value
        if not text.isdecimal():
            raise UsageError(f"${variable} {text!r} is not a number: set it to one, or give --{flag.name}")
        return int(text)

    coordinator = COORDINATOR.value or os.environ.get("JAX_COORDINATOR_ADDRESS")
    return coordinator, number(PROCESS_COUNT, "JAX_NUM_PROCESSES"), number(PROCESS_INDEX, "JAX_PROCESS_ID")


def quiet_libraries() -> None:
    """Keeps what libraries say of their insides off the screen, where our progress is; warnings of ours stay."""
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(is_not_told_again)
    warnings.filterwarnings("ignore", module="orbax|jax|flax|grain|PIL")


def is_not_told_again(record: logging.LogRecord) -> bool:
    """Whether a log record is none of Orbax's with the stack of an exception: it raises those too, and we tell them."""
    return not (record.exc_info and "orbax" in record.pathname)


def keep_compiled_programs() -> None:
    """Lets XLA read back, in every later command, what took it over a second to compile (a default of jax's).

    It is kept in the folder that JAX_COMPILATION_CACHE_DIR names, or else in COMPILED.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # known at run time alone
        folder = Path(os.path.expanduser(COMPILED))
        with contextlib.suppress(OSError):  # where there is no home to write to, each command compiles again
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def required(value: str | None, flag: str, example: str) -> str:
    """The value of a flag that must be given. Raises UsageError if it was not."""
    if not value:
        raise UsageError(f"--{flag} is missing: give for example --{flag}={example}")
    return value


def required_config(config: ml_collections.ConfigDict | None) -> ml_collections.ConfigDict:
    """The config that must be given. Raises UsageError if it was not."""
    if config is None:
        raise UsageError("--config is missing: give for example --config=configs/shapes_base.py")
    return config


def stage_folders(value: str | None) -> list[Path]:
    """The folders of a ``--stages`` flag. Raises UsageError if there is none."""
    return [Path(name.strip()) for name in required(value, "stages", "runs/base,runs/sr").split(",") if name.strip()]


def writable_folder(value: str | None, flag: str, example: str) -> Path:
    """The folder of a flag, made if it is not there. Raises UsageError if it is not given or cannot be written."""
    folder = Path(required(value, flag, example))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--{flag} {value!r} cannot be written ({error.strerror}): give another folder") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--{flag} {value!r} cannot be written: give another folder")
    return folder
