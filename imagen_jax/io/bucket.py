"""Folders and files in Google Cloud Storage buckets, as paths: `gs://BUCKET/FOLDER/FILE`.

A bucket has objects and no folders: a folder exists while an object has its name as a prefix, and is never created. An
object is written by one request and is complete or absent. There is no rename, no append and no lock; `uploads`,
`claims` and the marker of `stages/checkpoint_folder.py` stand in their place.

Requests that fail with 408, 429, 5xx or a broken connection are repeated, with growing pauses, for RETRY_SECONDS.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import os
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils.epath.gpath import PosixGPath

from imagen_jax.errors import ConfigError, TrainingError, require

PREFIX = "gs://"
RETRY_SECONDS = 120.0
_REQUEST_SECONDS = (20.0, 60.0)  # until a connection is open, and between two packets of an answer
_THREADS = 16  # requests at once where there are many; most of their time is spent waiting
_making_client = threading.Lock()


class BucketError(OSError, TrainingError):
    """A bucket that does not exist, denies access or does not answer; its text is one sentence."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class ObjectInfo(NamedTuple):
    """Size of an object in bytes, its generation, which each write changes, and its own metadata."""

    st_size: int
    generation: int
    metadata: dict[str, str]


class BucketPath(PosixGPath):
    """A path in a bucket, with the methods of `pathlib.Path` that this package uses.

    In contrast to `epath.Path`, an error is never mistaken for an absent file: a run whose checkpoints cannot be listed
    must not begin again from step 0. All methods raise BucketError; where they read, FileNotFoundError too.
    """

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[2] if len(self.parts) > 2 else ""

    @property
    def key(self) -> str:
        """The object's name in the bucket."""
        return "/".join(self.parts[3:])

    def expanduser(self) -> BucketPath:
        """Returns the path itself."""
        return self

    def absolute(self) -> BucketPath:
        """Returns the path itself."""
        return self

    def is_symlink(self) -> bool:
        """Returns False."""
        return False

    def is_file(self) -> bool:
        """Returns whether there is an object of this name."""
        # an exact match is the first of all names with this prefix
        return any(blob.name == self.key for blob in _list(self, self.key, max_results=1))

    def is_dir(self) -> bool:
        """Returns whether there is an object below this name; for a bucket, whether it exists."""
        found = any(True for _ in _list(self, _folder_prefix(self), max_results=1))
        return found or not self.key

    def exists(self) -> bool:
        """Returns whether there is an object of this name, or below it."""
        return self.is_file() or self.is_dir()

    def stat(self) -> ObjectInfo:
        """Returns size, generation and metadata of an object."""
        with _errors(self):
            blob = _blob(self)
            blob.reload(retry=_retry(), timeout=_REQUEST_SECONDS)
            return ObjectInfo(blob.size, blob.generation, dict(blob.metadata or {}))

    def iterdir(self) -> Iterator[BucketPath]:
        """Yields the files and folders in a folder; none if there is no such folder."""
        blobs = _list(self, _folder_prefix(self), delimiter="/")
        names = [blob.name for blob in blobs if not blob.name.endswith("/")]
        yield from (self / name.rstrip("/").rpartition("/")[2] for name in sorted([*names, *blobs.prefixes]))

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """Yields the files and folders that match a pattern, such as `*/config.json`."""
        first, _, rest = pattern.partition("/")
        if "*" in first:
            matches = [path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, first)]
        else:
            matches = [self / first]
        for path in matches:
            if rest:
                yield from path.glob(rest)
            elif "*" in first or path.exists():
                yield path

    def read_bytes(self) -> bytes:
        """Returns the content of an object, whose checksum is verified."""
        with _errors(self):
            return _blob(self).download_as_bytes(retry=_retry(), timeout=_REQUEST_SECONDS)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Returns the content of an object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def download(self, file: Any) -> None:
        """Writes the content of an object to an open file."""
        with _errors(self):
            _blob(self).download_to_file(file, retry=_retry(), timeout=_REQUEST_SECONDS)

    def write_bytes(self, data: bytes) -> int:
        """Writes an object, by one request."""
        self.put(data)
        return len(data)

    def put(self, data: bytes, *, replaces: int | None = None, metadata: dict[str, str] | None = None) -> int:
        """Writes an object.

        Args:
            data: its content.
            replaces: only replace this generation; 0 for only if there is no such object.
            metadata: the object's own metadata.

        Returns:
            The generation of what was written.

        Raises:
            FileExistsError: there is another generation than `replaces`.
        """
        with _errors(self, is_write=True):
            blob = _blob(self)
            blob.metadata = metadata
            blob.upload_from_string(
                data,
                content_type="application/octet-stream",
                if_generation_match=replaces,
                checksum="crc32c",
                retry=_retry(),
                timeout=_REQUEST_SECONDS,
            )
            return blob.generation

    def upload(self, file: str) -> None:
        """Writes an object from a local file, in several requests if it is large; it appears when it is complete."""
        with _errors(self, is_write=True):
            _blob(self).upload_from_filename(file, checksum="crc32c", retry=_retry(), timeout=_REQUEST_SECONDS)

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a bucket has no folders. In particular, it does not create the bucket."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes an object."""
        if not missing_ok:
            self.stat()
        # a deletion whose answer was lost is repeated, and then finds nothing
        with contextlib.suppress(FileNotFoundError), _errors(self):
            _blob(self).delete(retry=_retry(), timeout=_REQUEST_SECONDS)

    def rmtree(self, missing_ok: bool = True) -> None:
        """Deletes all objects below this name."""
        names = list(self.tree())
        if not (names or missing_ok):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(lambda name: (self / name).unlink(missing_ok=True), names))

    def tree(self) -> dict[str, int]:
        """Returns the sizes of the files in a folder and below, by path relative to it."""
        prefix = _folder_prefix(self)
        return {blob.name.removeprefix(prefix): blob.size for blob in _list(self, prefix) if blob.name != prefix}

    def generations(self) -> dict[str, int]:
        """Returns the generations of the files in a folder and below, by path relative to it."""
        prefix = _folder_prefix(self)
        return {blob.name.removeprefix(prefix): blob.generation for blob in _list(self, prefix) if blob.name != prefix}

    def check_access(self) -> None:
        """Raises BucketError unless objects can be listed, written, read and deleted in this folder."""
        self.is_dir()
        probe = self / f".access-{secrets.token_hex(8)}"
        probe.write_bytes(b"")
        probe.read_bytes()
        probe.unlink()


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).startswith(PREFIX)


def _folder_prefix(path: BucketPath) -> str:
    return f"{path.key}/" if path.key else ""


def _list(path: BucketPath, prefix: str, **options: Any) -> Any:
    """Returns an iterator over objects, as the client has it, whose first page has been read."""
    with _errors(path, is_write=True):
        fields = "items(name,size,generation),prefixes,nextPageToken"
        blobs = _client().list_blobs(
            path.bucket, prefix=prefix, fields=fields, retry=_retry(), timeout=_REQUEST_SECONDS, **options
        )
        items = list(blobs)
    return _Listing(items, blobs.prefixes)


class _Listing(list[Any]):
    """Objects, and the folders among them."""

    def __init__(self, items: list[Any], prefixes: set[str]) -> None:
        super().__init__(items)
        self.prefixes = prefixes


def _client() -> Any:
    """Returns the client of this process, which threads share."""
    with _making_client:  # a cache alone would make one for each thread that comes first, and drop their connections
        return _make_client()


@functools.cache
def _make_client() -> Any:
    from requests.adapters import HTTPAdapter

    client = require("google.cloud.storage", "gcs").Client()
    client._http.mount("https://", HTTPAdapter(pool_maxsize=4 * _THREADS))
    client._http.mount("http://", HTTPAdapter(pool_maxsize=4 * _THREADS))
    client._http.hooks["response"].append(_read_error)
    return client


def _read_error(response: Any, **_: Any) -> None:
    """Reads the body of a failed answer: a download that is repeated would leave its connection open and unused."""
    if not response.ok:
        response.content  # noqa: B018  # read and kept by the first access


def close_client() -> None:
    """Closes the connections of this process; later calls open new ones."""
    with _making_client:
        if _make_client.cache_info().currsize:
            _make_client()._http.close()
            _make_client.cache_clear()


def _blob(path: BucketPath) -> Any:
    return _client().bucket(path.bucket).blob(path.key)


def _retry() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=0.5, maximum=20.0)


@contextlib.contextmanager
def _errors(path: BucketPath, is_write: bool = False) -> Iterator[None]:
    """Turns the client's errors into FileNotFoundError, FileExistsError and BucketError.

    Args:
        path: what is read or written.
        is_write: whether "not found" can only mean the bucket, as in writing and listing.
    """
    api = require("google.api_core.exceptions", "gcs")
    credentials = require("google.auth.exceptions", "gcs")
    try:
        yield
    except ConfigError:
        raise
    except api.NotFound as error:
        if not is_write:
            _list(path, path.key, max_results=1)  # raises BucketError if it is the bucket that is not there
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        text = f"there is no bucket {path.bucket!r}: create it, or correct the name"
        raise BucketError(errno.ENOENT, text, str(path)) from error
    except api.PreconditionFailed as error:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
    except (api.Forbidden, api.Unauthorized) as error:
        text = (
            f"bucket {path.bucket!r} denies access: give this account the role roles/storage.objectUser on it, "
            "or log in with another one"
        )
        raise BucketError(errno.EACCES, text, str(path)) from error
    except credentials.DefaultCredentialsError as error:
        text = "there are no Google Cloud credentials: run `gcloud auth application-default login`"
        raise BucketError(errno.EACCES, text, str(path)) from error
    except (OSError, api.GoogleAPIError, ValueError) as error:
        text = f"bucket {path.bucket!r} does not answer as expected ({_last_cause(error)}): run the same command again"
        raise BucketError(errno.EIO, text, str(path)) from error


def _last_cause(error: BaseException) -> str:
    """Returns the first line of the error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
