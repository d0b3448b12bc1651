"""Runs the lines of a shell that it reads: commands of the package in this process, since each would import jax anew.

Ends with the exit code of the first that fails.
"""

import runpy
import shlex
import subprocess
import sys

from absl import flags


def main():
    for line in sys.stdin.read().replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[:2] == ["python", "-m"]:
            run(*words[2:])
        else:
            subprocess.run(words, check=True)


def run(module, *arguments):
    """Runs a module as python -m does; afterwards its flags are forgotten, whose names others use too."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as ended:
        if ended.code:
            raise
    own = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[module]]
    for name in [*own, *(name for name in flags.FLAGS if name.startswith("config."))]:
        delattr(flags.FLAGS, name)


if __name__ == "__main__":
    main()
