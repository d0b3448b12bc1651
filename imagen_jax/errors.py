"""The two kinds of error that are told in one sentence."""

from __future__ import annotations

from collections.abc import Callable


class UsageError(ValueError):
    """Wrong use: for each mistake one sentence with the value given, what was expected, and how to mend it.

    Entry points print the sentences without a traceback and exit with code 2.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        several = "".join(f"\n- {problem}" for problem in problems)
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} mistakes:{several}")


class RunError(RuntimeError):
    """A right use that cannot go on, through the machine or the numbers: what happened, what is intact, what to do.

    Entry points print the sentence without a traceback and exit with code 1.
    """


def all_at_once(*checks: Callable[[], object]) -> None:
    """Calls every check, then raises one UsageError of all that they raised: a user mends mistakes in one go."""
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(*problems)
