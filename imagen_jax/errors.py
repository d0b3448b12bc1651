"""The two kinds of errors that are reported in one sentence, without a traceback."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any

# a full disk, a full quota, and a limit on the size of files
_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ConfigError(ValueError):
    """Wrong use: a config, flag, argument or input file that cannot work.

    Each problem is one sentence with the value given, what was expected, and how to fix it. Commands print the
    sentences without a traceback and exit with code 2.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        listed = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} mistakes:{listed}")


class TrainingError(RuntimeError):
    """A runtime failure of hardware or numerics: what happened, what is intact, what to do.

    Commands print the sentence without a traceback and exit with code 1.
    """


def first_line(error: object) -> str:
    """Returns the first line of an error's message, to quote it in a sentence; the error's type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__


def collect_errors(*checks: Callable[[], object]) -> None:
    """Runs every check, then raises one ConfigError with all problems found, so that they can be fixed at once."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)


def unknown_name_error(what: str, value: object, choices: Iterable[object]) -> ConfigError:
    """Returns the error for a name that is none of the known ones, with all choices and the nearest one.

    Args:
        what: the key, flag or thing that was given, such as `config.data.source`.
        value: the value given.
        choices: the values that are allowed, in the order to list them.

    Returns:
        A ConfigError to raise, such as `config.data.source 'foldr' is not known: choose one of shapes, folder (did
        you mean 'folder'?)`.
    """
    names = [str(choice) for choice in choices]
    nearest = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return ConfigError(f"{what} {value!r} is not known: choose one of {', '.join(names) or 'none'}{hint}")


def missing_extra_error(module: str, extra: str) -> ConfigError:
    """Returns the error for an optional package that is not installed, with the command that installs it.

    Args:
        module: the module that cannot be imported, such as `pyarrow.parquet`.
        extra: the extra of this package that contains it, such as `data`.
    """
    package = module.partition(".")[0]
    return ConfigError(f"this needs the package {package}, which is not installed: pip install 'imagen_jax[{extra}]'")


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: the dotted name of the module, such as `pyarrow.parquet`.
        extra: the extra of this package that contains it, such as `data`.

    Returns:
        The module.

    Raises:
        ConfigError: the package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_extra_error(error.name or module, extra) from error


def is_out_of_space(error: BaseException | None) -> bool:
    """Returns whether an error, or one of its causes, means a full disk, a full quota or a file at its size limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
            return True
        # errors of tensorstore carry the reason in their text only
        if any(os.strerror(number) in str(error) for number in _OUT_OF_SPACE):
            return True
        error = error.__cause__ or error.__context__
    return False
