"""The jobs of a server on a disk: one SQLite file, and the images beside it.

    OUT/jobs.sqlite3          every job, which of its images exist, and what it edits
    OUT/images/ID-INDEX.png   the images

What is committed survives a kill and a loss of power: the write-ahead log is synced at each commit. An image is in the
database only once its file is complete and synced. A row of `removed` keeps the name of a file that is to be deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import is_valid_png
from imagen_jax.io.checksums import json_digest
from imagen_jax.pipelines.image_record import read_record
from imagen_jax.serving.jobs import ACTIVE, EditInputs, Job, JobImage, JobRequest, Status, StorageError

DATABASE = "jobs.sqlite3"
IMAGES = "images"
_APPLICATION = 0x696D6A78  # "imjx", in the header of the file
_VERSION = 3
_WAIT_SECONDS = 10.0  # for a lock that a tool such as a backup holds
_INPUTS = """
CREATE TABLE inputs (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (job, name)
);
"""
_FLAGGED = "ALTER TABLE images ADD COLUMN flagged INTEGER NOT NULL DEFAULT 0;"
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    key TEXT,
    digest TEXT NOT NULL,
    status TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    request TEXT NOT NULL,
    height INTEGER NOT NULL,
    width INTEGER NOT NULL,
    words TEXT NOT NULL,
    error TEXT,
    UNIQUE (client, key)
);
CREATE INDEX jobs_by_status ON jobs (status) WHERE status IN ('queued', 'running');
CREATE INDEX jobs_by_client ON jobs (client, number);
CREATE TABLE images (
    job INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
CREATE TABLE removed (file TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "number, id, client, status, created, started, finished, request, height, width, error"

logger = logging.getLogger(__name__)


def image_name(job_id: str, index: int) -> str:
    """Returns the name of the file of an image."""
    return f"{job_id}-{index}.png"


def request_digest(request: JobRequest) -> str:
    """Returns a digest of what a request asks for; random seeds are not asked for."""
    asked = dataclasses.asdict(request) | ({"seeds": None} if request.seeds_are_random else {})
    if not request.lora:  # as that of versions without them
        del asked["lora"]
    return json_digest(asked)


class Store:
    """The jobs of a folder. For several threads; not for several processes, which the engine's claim keeps out.

    Args:
        out: the folder, which exists.

    Raises:
        ConfigError: its database is of another program or a later version, is damaged, or cannot be opened.
    """

    def __init__(self, out: Path) -> None:
        self.images = out / IMAGES
        self._path = out / DATABASE
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        try:
            self.images.mkdir(exist_ok=True)
            self._writer = self._connect()
            self._prepare()
            self._reader = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"the jobs in {str(self._path)!r} cannot be opened ({error}): give another folder, or mend this one"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL, not NORMAL: a job is accepted once it is on the disk, also where the power fails
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _prepare(self) -> None:
        """Creates the tables, or checks that they are this program's."""
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        (tables,) = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            script = f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
            self._writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {_INPUTS} {_FLAGGED} {script} COMMIT;")
            return
        if application != _APPLICATION:
            raise ConfigError(f"{str(self._path)!r} is a database of another program: give another folder")
        if version > _VERSION:
            raise ConfigError(
                f"{str(self._path)!r} was written by a later version of imagen_jax: update, or give another folder"
            )
        # before jobs could edit, and before safety checkers
        changes = "".join(change for before, change in ((2, _INPUTS), (3, _FLAGGED)) if version < before)
        if changes:
            self._writer.executescript(f"BEGIN IMMEDIATE; {changes} PRAGMA user_version = {_VERSION}; COMMIT;")

    def close(self) -> None:
        """Closes the database; what is in the write-ahead log goes into its file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yields the database within a transaction, which is synced to disk when the block is left.

        Raises StorageError; nothing is changed then.
        """
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.IntegrityError):
                    raise
                raise StorageError(f"jobs cannot be kept in {str(self._path)!r}: {error}") from error

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._read_lock:
            return self._reader.execute(query, values).fetchall()

    def swap_fact(self, name: str, value: str) -> str | None:
        """Keeps a value under a name; returns the one before it, or None."""
        with self._transaction() as database:
            row = database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        return None if row is None else str(row[0])

    def add(self, job: Job, inputs: EditInputs | None = None) -> Job:
        """Keeps a new job with what it edits, or returns the one of the same client with the same idempotency key.

        Raises:
            ConfigError: that one asks for something else.
            StorageError: it cannot be kept.
        """
        request, digest = job.request, request_digest(job.request)
        with self._transaction() as database:
            if request.idempotency_key is not None:
                row = database.execute(
                    "SELECT id, digest FROM jobs WHERE client = ? AND key = ?", (job.client, request.idempotency_key)
                ).fetchone()
                if row is not None and row[1] != digest:
                    raise ConfigError(
                        f"idempotency_key {request.idempotency_key!r} is that of another request, job {row[0]}: give a "
                        "new key, or the same request"
                    )
                if row is not None:
                    return self._jobs(database, "id = ?", (row[0],))[0]
            words = "\n".join([*request.prompts, request.negative_prompt or ""]).casefold()
            image = job.images[0]
            cursor = database.execute(
                "INSERT INTO jobs (id, client, key, digest, status, created, request, height, width, words)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.client,
                    request.idempotency_key,
                    digest,
                    job.status,
                    job.created,
                    json.dumps(dataclasses.asdict(request)),
                    image.height,
                    image.width,
                    words,
                ),
            )
            files = {} if inputs is None else {"image": inputs.image, "mask": inputs.mask}
            rows = [(cursor.lastrowid, name, data) for name, data in files.items() if data is not None]
            database.executemany("INSERT INTO inputs VALUES (?, ?, ?)", rows)
        return job

    def inputs(self, job_id: str) -> EditInputs | None:
        """Returns what a job edits; None if it edits nothing."""
        query = "SELECT name, data FROM inputs JOIN jobs ON job = number WHERE id = ?"
        files = dict(self._select(query, (job_id,)))
        return EditInputs(**files) if files else None

    def input_file(self, job_id: str, name: str) -> bytes | None:
        """Returns the PNG file of an "image" or a "mask" that a job edits; None if it has none."""
        query = "SELECT data FROM inputs JOIN jobs ON job = number WHERE id = ? AND name = ?"
        rows = self._select(query, (job_id, name))
        return rows[0][0] if rows else None

    def find_key(self, client: str, key: str) -> Job | None:
        """Returns the job of a client with an idempotency key, if there is one."""
        with self._read_lock:
            jobs = self._jobs(self._reader, "client = ? AND key = ?", (client, key))
        return jobs[0] if jobs else None

    def get(self, job_id: str) -> Job | None:
        """Returns a job, or None."""
        with self._read_lock:
            jobs = self._jobs(self._reader, "id = ?", (job_id,))
        return jobs[0] if jobs else None

    def owner(self, job_id: str) -> str | None:
        """Returns whose job it is; None if there is none."""
        rows = self._select("SELECT client FROM jobs WHERE id = ?", (job_id,))
        return rows[0][0] if rows else None

    def has_image(self, job_id: str, index: int) -> bool:
        """Returns whether an image of a job exists."""
        query = "SELECT 1 FROM images JOIN jobs ON job = number WHERE id = ? AND position = ?"
        return bool(self._select(query, (job_id, index)))

    def count(self) -> dict[str, int]:
        """Returns the number of jobs by status."""
        return dict(self._select("SELECT status, count(*) FROM jobs GROUP BY status"))

    def history(self, query: str, before: str | None, limit: int, client: str | None) -> tuple[list[Job], str | None]:
        """Returns a page of the jobs, the newest first, and the cursor of the next page.

        Args:
            query: words, each of which is somewhere in the prompts of a job, in any case.
            before: the cursor; None for the first page.
            limit: jobs of a page.
            client: whose jobs; None for all.

        Raises:
            ConfigError: the cursor is not one.
        """
        conditions: list[str] = ["1"]
        values: list[Any] = []
        if before is not None:
            if not (before.isascii() and before.isdecimal() and len(before) < 19):
                raise ConfigError("before is not a cursor of the history: give `next` of the page before")
            conditions.append("number < ?")
            values.append(int(before))
        if client is not None:
            conditions.append("client = ?")
            values.append(client)
        for word in query.casefold().split():
            conditions.append("instr(words, ?)")
            values.append(word)
        where = " AND ".join(conditions)
        with self._read_lock:
            statement = f"SELECT number FROM jobs WHERE {where} ORDER BY number DESC LIMIT ?"  # noqa: S608  # constants
            rows = self._reader.execute(statement, (*values, limit + 1)).fetchall()
            numbers = [number for (number,) in rows[:limit]]
            marks = ", ".join("?" * len(numbers))
            jobs = self._jobs(self._reader, f"number IN ({marks})", numbers)
        return jobs[::-1], str(numbers[-1]) if len(rows) > limit else None

    def start(self, job_ids: Iterable[str]) -> None:
        """Marks queued jobs as running."""
        with self._transaction() as database:
            database.executemany(
                "UPDATE jobs SET status = 'running', started = coalesce(started, ?) WHERE id = ? AND status = 'queued'",
                [(time.time(), job_id) for job_id in job_ids],
            )

    def put_back(self, job_ids: Iterable[str]) -> None:
        """Marks running jobs as queued."""
        with self._transaction() as database:
            statement = "UPDATE jobs SET status = 'queued' WHERE id = ? AND status = 'running'"
            database.executemany(statement, [(job_id,) for job_id in job_ids])

    def add_images(self, images: Mapping[tuple[str, int], bool]) -> list[str]:
        """Keeps that images exist, and marks jobs that have all of theirs as done.

        Args:
            images: (job, index) of each, and whether it is flagged; those of jobs that are no longer active are left
                out.

        Returns:
            The jobs that are now done.
        """
        done = []
        with self._transaction() as database:
            for (job_id, index), flagged in images.items():
                database.execute(
                    "INSERT OR IGNORE INTO images SELECT number, ?, ? FROM jobs"
                    " WHERE id = ? AND status IN ('queued', 'running')",
                    (index, flagged, job_id),
                )
            for job_id in dict.fromkeys(job_id for job_id, _ in images):
                number, status, request = database.execute(
                    "SELECT number, status, request FROM jobs WHERE id = ?", (job_id,)
                ).fetchone() or (None, "", "")
                if status not in ACTIVE:
                    continue
                (count,) = database.execute("SELECT count(*) FROM images WHERE job = ?", (number,)).fetchone()
                if count == len(json.loads(request)["seeds"]):
                    database.execute(
                        "UPDATE jobs SET status = 'done', finished = ? WHERE number = ?", (time.time(), number)
                    )
                    done.append(job_id)
        return done

    def finish(self, job_id: str, status: Status, error: str | None = None) -> bool:
        """Ends an active job as canceled or failed; returns False if it is not active."""
        with self._transaction() as database:
            cursor = database.execute(
                "UPDATE jobs SET status = ?, error = ?, finished = ? WHERE id = ? AND status IN ('queued', 'running')",
                (status, error, time.time(), job_id),
            )
            return cursor.rowcount > 0

    def remove(self, job_id: str) -> bool:
        """Removes a job that is not active with its images; returns whether it did."""
        with self._transaction() as database:
            row = database.execute("SELECT number, status FROM jobs WHERE id = ?", (job_id,)).fetchone()
            if row is None or row[1] in ACTIVE:
                return False
            positions = database.execute("SELECT position FROM images WHERE job = ?", (row[0],)).fetchall()
            files = [(image_name(job_id, position),) for (position,) in positions]
            database.executemany("INSERT OR IGNORE INTO removed VALUES (?)", files)
            database.execute("DELETE FROM jobs WHERE number = ?", (row[0],))
        self._delete_removed()
        return True

    def _delete_removed(self) -> None:
        """Deletes the files of jobs that were removed."""
        with self._transaction() as database:
            for (name,) in database.execute("SELECT file FROM removed").fetchall():
                (self.images / name).unlink(missing_ok=True)
            database.execute("DELETE FROM removed")

    def recover(self) -> list[Job]:
        """Returns the active jobs in the order they were added, all of them queued; called once, at the start.

        Images that were written just before a kill are taken over; partial files and those of removed jobs are deleted.
        """
        self._delete_removed()
        for path in self.images.glob(".*.unfinished"):
            path.unlink(missing_ok=True)
        with self._transaction() as database:
            database.execute("UPDATE jobs SET status = 'queued' WHERE status = 'running'")
        found = {}
        for job in self._active():
            for image in job.images:
                path = self.images / image_name(job.id, image.index)
                if image.file is None and is_valid_png(path):
                    found[job.id, image.index] = _is_flagged(path)
        self.add_images(found)
        return self._active()

    def _active(self) -> list[Job]:
        with self._read_lock:
            return self._jobs(self._reader, "status IN ('queued', 'running')", ())

    def _jobs(self, database: sqlite3.Connection, where: str, values: Sequence[Any]) -> list[Job]:
        """Returns the jobs for a condition, the oldest first."""
        statement = f"SELECT {_COLUMNS} FROM jobs WHERE {where} ORDER BY number"  # noqa: S608  # constants
        rows = database.execute(statement, values).fetchall()
        jobs = []
        for number, job_id, client, status, created, started, finished, text, height, width, error in rows:
            request = JobRequest.from_json(json.loads(text))
            found = dict(database.execute("SELECT position, flagged FROM images WHERE job = ?", (number,)).fetchall())
            images = [
                JobImage(
                    i,
                    request.prompt(i),
                    seed,
                    image_name(job_id, i) if i in found else None,
                    width,
                    height,
                    bool(found.get(i)),
                )
                for i, seed in enumerate(request.seeds)
            ]
            jobs.append(Job(job_id, client, status, created, started, finished, request, images, error))
        return jobs


def _is_flagged(path: Path) -> bool:
    """Returns whether the safety checker has made an image black, as its file says."""
    try:
        return read_record(path).flagged
    except ConfigError:  # of a prompt that is too long for the file
        return False
