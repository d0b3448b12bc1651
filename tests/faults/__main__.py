"""Fault injection: `python -m tests.faults [ROW=TRIALS …]` breaks training commands and prints a table.

Without arguments it runs all rows, with their trials in `rows.ROWS`. The exit code is 1 if a trial failed.
"""

import sys
import tempfile
import traceback

import tests.conftest  # noqa: F401  # sets the environment before jax is imported
from tests.faults.harness import Bench, Result
from tests.faults.rows import ROWS


def main(arguments):
    trials_by_row = dict(argument.split("=") for argument in arguments) or {
        name: trials for name, (_, trials) in ROWS.items()
    }
    all_passed = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        print("| row | fault | trials | passed | worst case |\n|---|---|---|---|---|", flush=True)
        for name, trials in trials_by_row.items():
            try:
                result = ROWS[name][0](bench, int(trials))
            except AssertionError:  # a command that had to succeed has failed: the other rows still run
                traceback.print_exc()
                result = Result(name, int(trials), 0, "interrupted")
            print(f"| `{name}` | {result.fault} | {result.trials:,} | {result.passed:,} | {result.worst} |", flush=True)
            all_passed &= result.passed == result.trials
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
