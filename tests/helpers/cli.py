"""Runs commands of the package within this process: each process would import jax anew."""

from imagen_jax.cli import app


def run_command(*arguments):
    """Runs `imagen ARGUMENTS…`; returns its exit code."""
    try:
        app.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code or 0
    raise AssertionError("a command ends its process")
