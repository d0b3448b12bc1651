"""What is on the desk of a reader who types the commands of a document: a checkout, a home, data, and a bucket.

The names are those that the documents use for the reader's own files.
"""

import json
import shutil
import sys

import pyarrow
import pyarrow.parquet as parquet

from imagen_jax.datasets.folder import _split_of_path
from imagen_jax.text.encoder import SHAPES_ENCODER
from tests.goldens.encoders import cases as encoders
from tests.helpers import fashion
from tests.helpers.archives import encode_image, write_tar
from tests.helpers.configs import ROOT
from tests.helpers.reader import client

# programs of the system; every other one has to be in `client.py`
SYSTEM = (
    *(
        "awk",
        "bash",
        "cat",
        "cp",
        "cut",
        "date",
        "dirname",
        "echo",
        "env",
        "false",
        "grep",
        "head",
        "kill",
        "ln",
        "ls",
        "mkdir",
        "mktemp",
    ),
    *(
        "mv",
        "nproc",
        "paste",
        "printf",
        "rm",
        "sed",
        "seq",
        "sh",
        "sleep",
        "sort",
        "tail",
        "tar",
        "taskset",
        "tee",
        "test",
    ),
    *("touch", "tr", "true", "uname", "uniq", "wc", "xargs"),
)
COMMITTED = ("Makefile", "setup.py", "requirements.lock", "pyproject.toml", "configs", "imagen_jax", "benchmarks")
IMAGES = 120


def build_desk(folder):
    """Makes a desk in a folder; returns (checkout, home, folder of programs)."""
    checkout, home, programs = (folder / name for name in ("imagen_jax", "home", "bin"))
    for path in (checkout, home, programs):
        path.mkdir(parents=True)
    _write_programs(programs)
    for name in COMMITTED:
        (checkout / name).symlink_to(ROOT / name)
    for name in ("docs", "launch"):
        shutil.copytree(ROOT / name, checkout / name)
    _dry_run_only(checkout / "launch/tpu.sh")
    (checkout / ".venv").mkdir()
    (checkout / ".venv/bin").symlink_to(programs)
    (checkout / ".venv/.complete").touch()  # as `make setup` leaves it
    write_photos(checkout / "photos")
    write_photos(checkout / "DIR")
    write_photos(home / "photos")
    write_real_images(checkout / "real")
    fashion.write_files(checkout / fashion.FOLDER)
    (checkout / ".cache/metrics").mkdir(parents=True)
    encoders.write_weights(checkout / ".cache/metrics", encoders.LITE0)  # as `make metrics` leaves it, but random
    shutil.copytree(SHAPES_ENCODER, checkout / "models/t5-v1_1-xxl")
    return checkout, home, programs


def _write_programs(folder):
    """Writes what a shell finds: links to programs of the system, and scripts that start the client."""
    for name in SYSTEM:
        path = shutil.which(name)
        if path:
            (folder / name).symlink_to(path)
    for name in ("imagen", "python", "python3", "python_session", "pip", "uv", "make", *client.NOT_RUN):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {client.__file__} {name} "$@"\n')
        (folder / name).chmod(0o755)


def _dry_run_only(script):
    """Lets a launcher print the commands of gcloud that it would run; tests/launch runs them on a mock cloud."""
    real = script.with_suffix(".real.sh")
    script.rename(real)
    script.write_text(f'#!/bin/bash\nname=$1 && shift && exec {real} "$name" --dry-run "$@"\n')
    script.chmod(0o755)


def write_photos(folder):
    """Writes images of odd sizes with captions beside them, and one that is damaged.

    One of them at least is in each split, also where the validation split has but a hundredth of the images.
    """
    (folder / "more").mkdir(parents=True)
    rare = next(name for name in map("{:03d}.png".format, range(10**6)) if _split_of_path(name, 0.01) == "validation")
    for number in range(IMAGES):
        path = folder / ("more" if number % 2 else "") / f"{number:03d}.png"
        _write_photo(path, number)
    _write_photo(folder / rare, IMAGES)
    (folder / "cut.jpg").write_bytes(encode_image(0, kind="JPEG")[:100])
    rows = [
        {"file_name": f"{number:03d}.png", "text": f"picture {number} of a man", "artist": "Ann"} for number in (0, 2)
    ]
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_real_images(folder):
    """Writes a few images, none of them damaged."""
    folder.mkdir()
    for number in range(6):
        _write_photo(folder / f"{number:03d}.png", number)


def _write_photo(path, number):
    path.write_bytes(encode_image(number, (64 + number % 50, 70)))
    path.with_suffix(".txt").write_text(f"picture {number}\nnumber {number}")


def write_shard_folders(checkout):
    """Writes the shards, the drawings and the Parquet file that docs/data.md names."""
    for name in (*(f"shards/{number:05d}" for number in range(100)), "photos/train/0", "photos/test/0"):
        members = [("0.png", encode_image(0, (64, 70))), ("0.txt", b"picture 0"), ("1.png", encode_image(9, (70, 64)))]
        write_tar(checkout / f"{name}.tar", members)
    write_photos(checkout / "drawings")
    rows = [{"image": encode_image(number, (64, 70)), "text": f"picture {number}"} for number in range(8)]
    (checkout / "paintings/data").mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), checkout / "paintings/data/train-00000-of-00001.parquet")
