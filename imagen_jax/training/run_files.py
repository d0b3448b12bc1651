"""Files that a run writes for people: log, metrics, curves, previews. A failure to write them never stops the run.

A record that cannot be written waits in memory, or is lost if it is a picture. The first failure is reported with the
folder and its free bytes, on screen and, once there is room again, in the log; the next one after it has worked again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imagen_jax.io.appended import AppendedFile
from imagen_jax.io.json_lines import DAMAGED_SUFFIX, IsValid, JsonLines, damage_message, join_lines, scan_json_lines
from imagen_jax.io.paths import bucket_path
from imagen_jax.parallel import multihost

LOG_FILE = "log.txt"
EVALUATIONS = "evaluations"  # figures of samples by step, and the states of their reference
# for a thread that hangs in a file system: the watchdog must still come to its end
_LOCK_SECONDS = 10.0

logger = logging.getLogger(__name__)


class RunFiles:
    """The files of a run's folder that are only written down; the main process alone writes them.

    Args:
        workdir: the stage's folder.
        first_line: of what this run logs, whatever it logs first; empty for none.
    """

    def __init__(self, workdir: Path, first_line: str = "") -> None:
        self.workdir = workdir
        self._first_line = first_line
        self._files: dict[str, AppendedFile] = {}
        self._failing: dict[str, tuple[str, int]] = {}  # what cannot be written -> the reason, and on which disk
        self._recovered: dict[str, int] = {}  # what is written again -> records that were lost
        self._lost: dict[str, int] = {}  # of what is written in one go, such as an image
        self._lock = threading.RLock()

    def log(self, text: str) -> None:
        """Appends a line with the time to the run's log."""
        first_line, self._first_line = self._first_line, ""
        if first_line:
            self.log(first_line)
        self.append(LOG_FILE, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode(errors="backslashreplace"))

    def warn(self, text: str) -> None:
        """Logs a message that must not be missed: as a warning and, in the main process, in the run's log."""
        logger.warning(text)
        self.log(text)

    def append(self, name: str, record: bytes, *, header: bytes = b"", separator: bytes = b"\n") -> None:
        """Appends a record to a file; if it cannot be written, it waits.

        Args:
            name: of the file in the run's folder.
            record: its bytes.
            header: see `AppendedFile`.
            separator: see `AppendedFile`.
        """
        if not multihost.is_main_process() or not self._lock.acquire(timeout=_LOCK_SECONDS):
            return
        try:
            if name not in self._files:
                self._files[name] = AppendedFile(self.workdir / name, header, separator)
            self._files[name].append(record)
            self._flush({name, *(other for other in self._failing if other in self._files)})
        finally:
            self._lock.release()

    def open_json_lines(
        self, name: str, is_valid: IsValid, select: Callable[[list[dict[str, Any]]], list[bool]]
    ) -> list[dict[str, Any]]:
        """Returns the objects of a file of JSON lines, which later lines are appended to.

        A last line that a kill has truncated is removed from the file. Damaged lines are moved to a file beside it.

        Args:
            name: of the file in the run's folder.
            is_valid: whether an object has the shape of those that were written.
            select: returns for each object whether it stays in the file. One that does not, and that is followed by one
                that does, counts as damaged.
        """
        file = self.workdir / name
        with self._lock:
            try:
                scan = scan_json_lines(file, is_valid)
            except OSError as error:  # it stays as it is
                self._failed(name, error, "read")
                return []
            chosen = select(scan.values)
            end = max((index + 1 for index, stays in enumerate(chosen) if stays), default=0)
            misplaced = [line for line, stays in zip(scan.lines[:end], chosen[:end], strict=True) if not stays]
            numbers = {line: number for number, line in enumerate(scan.content.split(b"\n"), start=1)}
            damaged = scan.damaged | {numbers.get(line, 0): line for line in misplaced}
            content = join_lines([line for line, stays in zip(scan.lines, chosen, strict=True) if stays])
            if content != scan.content and multihost.is_main_process():
                if damaged and not self._move_damaged(file, damaged):
                    content = _cut_after(scan, end)
                self._files[name] = AppendedFile(file)
                self._files[name].replace(content)
                self._flush({name})
            return [value for value, stays in zip(scan.values, chosen, strict=True) if stays]

    def _move_damaged(self, file: Path, damaged: dict[int, bytes]) -> bool:
        """Copies damaged lines to a file beside theirs, and reports them; returns False if that cannot be written."""
        name = f"{file.name}{DAMAGED_SUFFIX}"
        aside = AppendedFile(file.with_name(name))
        aside.append(join_lines([line for _, line in sorted(damaged.items())]))
        with self.attempt(name):
            aside.flush()
            self.warn(damage_message(file, damaged))
            return True
        return False

    @contextlib.contextmanager
    def attempt(self, what: str, errors: type[Exception] = OSError) -> Iterator[None]:
        """Writes one thing, in a block, which ends at an error; the error is reported and suppressed.

        Args:
            what: names it, such as `previews`; a failure is reported once until it works again.
            errors: the kind of errors.
        """
        try:
            yield
        except errors as error:
            with self._lock:
                self._lost[what] = self._lost.get(what, 0) + 1
                self._failed(what, error)
        else:
            with self._lock:
                self._worked(what, self._lost.pop(what, 0))

    def flush(self) -> None:
        """Writes all that waits, as far as that is possible."""
        with self._lock:
            self._flush(set(self._files), at_once=True)

    def close(self) -> None:
        """Writes all that waits; what cannot be written is lost, which is reported."""
        with self._lock:
            self.flush()
            rest = [f"{file.waiting} of {name}" for name, file in self._files.items() if file.waiting]
        if rest:
            logger.warning(f"{self.workdir}: records that could not be written are lost: {', '.join(rest)}")

    def _flush(self, names: set[str], at_once: bool = False) -> None:
        for name in sorted(names):
            file = self._files[name]
            if not (at_once or file.is_due):
                continue
            try:
                if file.path.parent != self.workdir and file.waiting:
                    file.path.parent.mkdir(exist_ok=True)
                file.flush()
            except OSError as error:
                self._failed(name, error)
            else:
                lost, file.lost = file.lost, 0
                self._worked(name, lost)

    def _failed(self, what: str, error: Exception, done: str = "written") -> None:
        """Reports a failure, unless the same one is known of something else on the same disk."""
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror or next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        folder = self._existing_folder(what)
        cause = reason, _device(folder)
        is_new = what not in self._failing and cause not in self._failing.values()
        self._failing[what] = cause
        if is_new:
            self.warn(
                f"{self.workdir / what} cannot be {done}: {reason}{_free_space(folder)}; the run continues, and it is "
                "tried again"
            )

    def _worked(self, what: str, lost: int) -> None:
        """Reports that what has failed is written again, once nothing is left that waits for the same reason."""
        if what not in self._failing:
            return
        cause = self._failing.pop(what)
        self._recovered[what] = lost
        if any(self._failing.get(name) == cause for name in self._files):
            return
        names, self._recovered = self._recovered, {}
        losses = [f"{count} record(s) of {name}" for name, count in names.items() if count]
        self.warn(
            f"{', '.join(names)} in {self.workdir}: written again; "
            f"{', '.join(losses) + ' are lost' if losses else 'no record is lost'}"
        )

    def _existing_folder(self, what: str) -> Path | None:
        """Returns the folder that something is written to, or the nearest one above it; None in a bucket."""
        if bucket_path(self.workdir) is not None:
            return None
        path = self.workdir / what
        return next((folder for folder in (path, *path.absolute().parents) if os.path.isdir(folder)), None)


def _device(folder: Path | None) -> int:
    """Returns what identifies the disk of a folder; 0 for none."""
    try:
        return folder.stat().st_dev if folder else 0
    except OSError:
        return 0


def _free_space(folder: Path | None) -> str:
    """Returns the free bytes of a folder's disk, as part of a sentence; "" where they are not known."""
    try:
        return f" ({shutil.disk_usage(folder).free:,} bytes are free in {folder})" if folder else ""
    except OSError:
        return ""


def _cut_after(scan: JsonLines, count: int) -> bytes:
    """Returns a file's content until its first `count` objects, with the damaged lines between them."""
    if not count:
        return scan.content
    last = scan.lines[count - 1]
    return scan.content[: scan.content.rfind(last) + len(last)] + b"\n"
