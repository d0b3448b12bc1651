"""One writer for a stage's folder: a claim that ends with the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.io import paths
from imagen_jax.io.claims import Claim, ClaimedError, claim
from imagen_jax.parallel import multihost
from imagen_jax.stages.workdir import not_writable_error

_GLOB_CHARACTERS = "*?["


def check_writable(workdir: Path) -> None:
    """Raises ConfigError if the folder, or where it would be created, is not writable; leaves nothing behind.

    Orbax takes a path for a pattern when it joins the files of a checkpoint, and would leave one that cannot be read.
    """
    special = sorted(set(_GLOB_CHARACTERS) & set(str(workdir.absolute())))
    if special:
        raise ConfigError(
            f"--workdir {str(workdir)!r} has {', '.join(map(repr, special))} in its path, where checkpoints cannot be "
            "written: give another folder"
        )
    try:
        paths.check_writable(workdir)
    except OSError as error:
        raise not_writable_error(workdir, error) from error


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[Claim]:
    """Creates the folder and claims it against other runs, in the main process.

    Raises:
        ConfigError: another run has it, or the folder is not writable.
    """
    with contextlib.ExitStack() as stack:
        held = Claim()
        try:
            if multihost.is_main_process():
                held = stack.enter_context(claim(workdir))
        except ClaimedError as error:
            advice = "wait for it, end it, or give another folder"
            raise ConfigError(f"--workdir {str(workdir)!r} is in use by {error}: {advice}") from error
        except OSError as error:
            raise not_writable_error(workdir, error) from error
        yield held
