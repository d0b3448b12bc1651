"""Files and folders that appear when they are complete, with the permissions that the process gives to all others."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.datasets.row_copy import Row, write_rows
from imagen_jax.io import storage
from imagen_jax.io.atomic import atomic_write, commit_folder, replacing
from imagen_jax.io.local_copy import copy_file
from imagen_jax.io.tensor_files import TensorSpec, write_tensors
from imagen_jax.stages.cascade_folder import unfinished_folder

WRITERS = {
    "atomic_write": lambda path: atomic_write(path, b"x"),
    "copy_file": lambda path: copy_file(Path(__file__), path),
    "write_file": lambda path: storage.write_file(str(path), b"x"),
    "write_rows": lambda path: write_rows(path, [Row(b"x", {})]),
    "write_tensors": lambda path: write_tensors(
        path, {"a": TensorSpec("F32", (2,))}, lambda name: np.zeros(2, np.float32), {}
    ),
}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_files_have_the_permissions_of_the_umask(tmp_path, umask, write):
    path = tmp_path / "new" / "file"
    write(path)
    assert mode(path) == 0o666 & ~umask
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_folders_have_the_permissions_of_the_umask(tmp_path, umask):
    temporary = unfinished_folder(tmp_path / "folder")
    commit_folder(temporary, tmp_path / "folder")
    assert mode(tmp_path / "folder") == 0o777 & ~umask


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
