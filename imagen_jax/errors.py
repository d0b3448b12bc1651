"""The two kinds of errors that are reported in one sentence, without a traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

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
