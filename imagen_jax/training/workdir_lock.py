"""One writer for a stage's folder: a file lock that is released when the process exits."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.parallel import multihost
from imagen_jax.stages.workdir import not_writable_error

LOCK_FILE = ".lock"
_ADVICE = "wait for it, end it, or give another folder"


def check_writable(workdir: Path) -> None:
    """Raises ConfigError if the folder, or where it would be created, is not writable; leaves nothing behind."""
    where = workdir.absolute()
    while not (where.exists() or where.is_symlink()):
        where = where.parent
    try:
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        raise not_writable_error(workdir, error) from error


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Creates the folder and locks it against other runs, in the main process.

    The system releases the lock with the process: the lock file of a dead process blocks nobody.

    Raises:
        ConfigError: another run has the lock, or the folder is not writable.
    """
    if not multihost.is_main_process():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("a+")
    except OSError as error:
        raise not_writable_error(workdir, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--workdir {str(workdir)!r} is in use by {_owner(workdir)}: {_ADVICE}") from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(workdir: Path) -> str:
    """Returns a description of who holds a folder's lock."""
    try:
        found = json.loads((workdir / LOCK_FILE).read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"  # which is just starting or ending
