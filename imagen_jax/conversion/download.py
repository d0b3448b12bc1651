"""The checksums that a download from the Hugging Face Hub has left beside files: in its cache, or in a folder.

    CACHE/…/snapshots/COMMIT/FILE                         a link to a file that has the checksum as its name
    FOLDER/.cache/huggingface/download/FILE.metadata      of `hf download --local-dir`: its second line

Files of weights have no checksums of their own: a flipped bit in them is only found by these.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable

METADATA = ".cache/huggingface/download"
_SHA256 = re.compile(r"[0-9a-f]{64}")  # of large files
_GIT = re.compile(r"[0-9a-f]{40}")  # of small ones: the SHA-1 of their size and content
_SUFFIX = ".metadata"
_BLOCK = 2**22  # bytes read at once
_THREADS = 4


def verify_download(folder: Path, names: Iterable[str]) -> None:
    """Checks files of a pipeline against the checksums of their download, where there are such.

    Args:
        folder: of the pipeline.
        names: paths of files in it; they may be missing if they were not downloaded either.

    Raises:
        ConfigError: a file is missing, or has another checksum.
    """
    expected = {name: checksum for name in sorted(set(names)) if (checksum := _checksum(folder, name))}
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = [
            problem for problem in threads.map(lambda item: _problem(folder, *item), expected.items()) if problem
        ]
    if not problems:
        return
    hint = f", or delete {folder / METADATA} to take it as it is" if (folder / METADATA).is_dir() else ""
    raise ConfigError(f"{printable('; '.join(problems[:5]))}: download it again{hint}")


def downloaded_files(folder: Path, component: str) -> list[str]:
    """Returns the paths of the files of a component that `hf download` has put into a pipeline's folder."""
    paths = (folder / METADATA / component).glob(f"*{_SUFFIX}")
    return sorted(f"{component}/{path.name.removesuffix(_SUFFIX)}" for path in paths)


def _checksum(folder: Path, name: str) -> str | None:
    """Returns the checksum of a file, in hexadecimal; None if it is not known."""
    path = folder / name
    if path.is_symlink():
        target = path.readlink()
        text = target.name if target.parent.name == "blobs" else ""
    else:
        try:
            text = (folder / METADATA / f"{name}{_SUFFIX}").read_text(errors="replace").split("\n")[1].strip()
        except (OSError, IndexError):
            return None
    return text if _SHA256.fullmatch(text) or _GIT.fullmatch(text) else None


def _problem(folder: Path, name: str, checksum: str) -> str:
    """Returns what is wrong with a file; "" if nothing is."""
    path = folder / name
    try:
        digest = hashlib.sha256() if _SHA256.fullmatch(checksum) else hashlib.sha1(usedforsecurity=False)
        if _GIT.fullmatch(checksum):
            digest.update(f"blob {path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except FileNotFoundError:
        return f"{path} is missing, which was downloaded"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return "" if digest.hexdigest() == checksum else f"{path} differs from the checksum of its download"
