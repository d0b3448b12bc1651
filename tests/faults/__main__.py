"""``python -m tests.faults [ROW=TRIALS …]``: breaks training commands in every way there is a row for; prints a table.

Without arguments all rows, with the trials they have in ``rows.ROWS``. Exit code 1 if one of them did not hold.
"""

import sys
import tempfile
import traceback

import tests.conftest  # noqa: F401  # the environment, before jax is imported
from tests.faults.harness import Bench, Result
from tests.faults.rows import ROWS


def main(arguments):
    asked = dict(argument.split("=") for argument in arguments) or {name: trials for name, (_, trials) in ROWS.items()}
    held = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder)
        print("| row | fault | trials | held | worst |\n|---|---|---|---|---|", flush=True)
        for name, trials in asked.items():
            try:
                result = ROWS[name][0](bench, int(trials))
            except AssertionError:  # of a command that had to succeed: the other rows are made all the same
                traceback.print_exc()
                result = Result(name, int(trials), 0, "broken off")
            print(f"| `{name}` | {result.fault} | {result.trials:,} | {result.held:,} | {result.worst} |", flush=True)
            held &= result.held == result.trials
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
