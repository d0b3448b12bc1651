"""Runs commands of the package, or lines of a shell, within this process: each process would import jax anew."""

import shlex
import subprocess
import sys

from imagen_jax.cli import app


def run_command(*arguments):
    """Runs `imagen ARGUMENTS…`; returns its exit code."""
    try:
        app.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
    raise AssertionError("a command ends its process")


def main():
    """Runs the lines of a shell from stdin; ends with the exit code of the first that fails."""
    for line in sys.stdin.read().replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[:1] == ["imagen"] or words[:3] == ["python", "-m", "imagen_jax"]:
            code = run_command(*words[1 if words[0] == "imagen" else 3 :])
            if code:
                sys.exit(code)
        else:
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
