"""One writer for a stage's folder: a lock that falls by itself when its owner dies, however it does."""

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
from imagen_jax.stages.checkpoints import not_writable_error

LOCK_FILE = ".lock"
_ADVICE = "wait for it, end it, or give another folder"


def check_writable(workdir: Path) -> None:
    """Raises UsageError if the folder, or where it would be made, cannot be written; leaves nothing behind."""
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
    """Makes the folder, and holds it against other runs; of several processes the one that writes does.

    The system gives the lock up with the process, so that what a dead one leaves stops nobody.

    Raises:
        UsageError: another run writes there, or nothing can be written.
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
    """Who holds a folder's lock, in words."""
    try:
        found = json.loads((workdir / LOCK_FILE).read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"  # that has just begun to write, or to go
