"""Hostile folders and shards: corrupt records are skipped and counted, or the command fails with one message."""

import json
import os
import zlib

import numpy as np
import pytest

from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.inspection.inspect import inspect
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.training.loop import train
from tests.helpers.archives import encode_image, write_tar
from tests.helpers.configs import config_of, contents

INTACT = {kind: encode_image(90, (20, 20), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}
HEADER = b"IHDR" + b"\x7f\xff\xff\xff" * 2 + INTACT["PNG"][24:29]  # of a PNG with 2 billion pixels each way
HUGE = INTACT["PNG"][:12] + HEADER + zlib.crc32(HEADER).to_bytes(4) + INTACT["PNG"][33:]


def corrupt_files():
    """Yields (name, bytes) of files that are not images."""
    rng = np.random.default_rng(0)
    for kind, data in INTACT.items():
        yield f"cut{kind}.png", data[: len(data) // 3]
        yield f"head of {kind}.jpg", data[:12]
        yield f"noise after {kind}.webp", data[:16] + rng.bytes(300)
    yield "empty.gif", b""
    yield "huge.png", HUGE
    yield "icon.png", b"\x00\x00\x01\x00\x01\x00\x10\x10" + bytes(100)
    yield "page.jpg", b"<!doctype html><script>alert(1)</script>"
    yield "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "postscript.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "pickle.bmp", b"cos\nsystem\n(S'touch canary'\ntR."


ODD = {  # names of images that are whole, and what is in the file of their captions
    b"bad\xff": b"a null \x00 in a name that is no text",
    b"two\nlines": b"\n\r\n\x0b\n",
    "\u202eright to left".encode(): "\ufeff\u202e\u200d\U0001f469\u200d\U0001f4bb\u0000".encode(),
    b"<script>": b"<script>alert(1)</script>",
    b"$(touch canary)": b"x" * 10**6,
    b"-rf": b"",
}
METADATA = [
    '{"file_name": "whole.png", "text": ["a\u2028b", ""], "score": NaN}',
    json.dumps({"file_name": "n" * 5000 + ".png", "text": "of a name that is too long"}),
    json.dumps({"file_name": "whole.png/in a file.png", "text": "x"}),
    json.dumps({"file_name": "..\\..\\outside.png", "text": "x"}),
]


@pytest.fixture
def folder(tmp_path):
    """(folder, number of valid images, number of corrupt images)."""
    folder = tmp_path / "images"
    folder.mkdir()
    broken = dict(corrupt_files())
    for name, data in broken.items():
        (folder / name).write_bytes(data)
    for name, caption in ODD.items():
        for ending, data in ((b".png", INTACT["PNG"]), (b".txt", caption)):
            with open(os.path.join(os.fsencode(folder), name + ending), "wb") as file:
                file.write(data)
    (folder / "whole.png").write_bytes(INTACT["PNG"])
    (folder / "metadata.jsonl").write_text("\n".join(METADATA), encoding="utf-8")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dead.png").symlink_to("nowhere")
    # reading these would never end; a folder is not an image, whatever its name
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "to pipe.png").symlink_to("pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "whole.txt").mkdir()
    # in other encodings, cut and named
    texts = {"cp1252": b"caf\xe9", "binary": b"bytes \xff\xfe\x00 that are no text", "surrogate": b"\xed\xa0\x80 alone"}
    for name, data in texts.items():
        (folder / f"{name}.png").write_bytes(INTACT["PNG"])
        (folder / f"{name}.txt").write_bytes(data)
    return folder, len(ODD) + 1, len(broken) + len(texts) + 2


def config_for(path, **changes):
    return config_of(
        "folder_base.py",
        **{
            "data.path": str(path),
            "data.validation_fraction": 0.5,
            "data.max_corrupt": 1.0,
            "data.split": "all",
            "data.validation_split": "all",
            **changes,
        },
    )


def batches_of(config):
    """Returns (data set, batches) as in `train`."""
    examples = make_examples(config.data, "all", config.image_size, config.channels)
    text = load_tokenizer(config.text.model, config.text.length).as_features
    return examples, training_batches(examples, text, 8, seed=0, threads=2, prefetch=2)


def test_hostile_folder_is_skipped_and_counted(folder, tmp_path):
    path, intact, broken = folder
    before = sorted(os.listdir(os.fsencode(path)))
    (tmp_path / "report").mkdir()
    report = inspect(config_for(path), tmp_path / "report", split="all", records=0)
    assert (report["records"], report["unreadable"]) == (intact + broken, broken)
    left_out = {(finding["what"], finding["count"]) for finding in report["left_out"]}
    # the devices and pipes, the dead links, the rows without an image
    assert {
        ("link(s) or folder(s) not read", 3),
        ("link(s) or folder(s) not read", 2),
        ("row(s) not used", 3),
    } <= left_out
    reasons = {file["name"]: file["reason"] for file in report["unreadable_files"]}
    assert "2147483647×2147483647 pixels are more than data.transform.max_pixels" in reasons["huge.png"]
    examples, batches = batches_of(config_for(path))
    for _ in range(12):
        batch = next(batches)
        assert batch["image"].shape == (8, 16, 16, 3)
        assert not batch["image"][..., 2].any()  # as in those that are whole
    assert examples.corrupt.count == broken
    assert {line.split(": ")[0] for line in examples.corrupt.pop_new()} == reasons.keys()
    assert sorted(os.listdir(os.fsencode(path))) == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "report"}


REFUSED = {
    "a path that leads out": ("metadata.jsonl", b'{"file_name": "../a.png", "text": "x"}', "is outside of the folder"),
    "an absolute path": ("metadata.jsonl", b'{"file_name": "/etc/passwd", "text": "x"}', "is outside of the folder"),
    "half a character": ("metadata.jsonl", b'{"file_name": "\\ud800.png", "text": "x"}', "is not a path"),
    "half an emoji": ("metadata.jsonl", b'{"file_name": "a.png", "text": "\\ud800 alone"}', "half of a surrogate pair"),
    "depth": ("metadata.jsonl", b'{"file_name": "a.png", "text": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "recursion"),
    "half a row": ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"}\n{"file_na', "at row 2"),
    "another encoding": ("metadata.jsonl", '{"file_name": "a.png"}'.encode("utf-16-le"), "without a byte order mark"),
    "a number": ("metadata.jsonl", b'{"file_name": "a.png", "text": 7}', "its caption 7 is not a string"),
    "a long number": ("metadata.jsonl", b'{"file_name": "a.png", "n": ' + b"9" * 5000 + b"}", "at row 1"),
    "too many cells": ("metadata.csv", b"file_name,text\na.png,x,y\n", "more cells"),
    "an open quote": ("metadata.csv", b'file_name,text\na.png,"x\n', "at row 1"),
    "a huge cell": ("metadata.csv", b"file_name,text\na.png," + b"x" * 200_000, "larger than field limit"),
    "no parquet": ("metadata.parquet", b"PAR1" + bytes(100) + b"PAR1", "metadata.parquet cannot be read"),
}


@pytest.mark.parametrize("file, data, message", REFUSED.values(), ids=REFUSED)
def test_hostile_metadata_is_a_usage_error(tmp_path, file, data, message):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(INTACT["PNG"])
    (folder / file).write_bytes(data)
    before = contents(tmp_path)
    for command in (
        lambda: inspect(config_for(folder), tmp_path, split="all", records=0),
        lambda: train(config_for(folder), tmp_path / "stage"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            command()
        assert file in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        assert contents(tmp_path) == before


def test_hostile_shards_are_skipped_and_counted(tmp_path):
    members = [(f"whole{i}.png", INTACT["PNG"]) for i in range(len(ODD))]
    texts = [caption for caption in ODD.values() if caption.decode(errors="ignore").encode() == caption]
    members += [(f"whole{i}.txt", text) for i, text in enumerate(texts)]
    broken = [(f"{i}.png", data) for i, (_, data) in enumerate(corrupt_files())]
    write_tar(tmp_path / "shards/0.tar", [*members, *broken, ("../canary.png", b"x"), ("canary.pkl", b"x")])
    config = config_for("").with_changes(
        {"data.source": "webdataset", "data.shards": {"all": str(tmp_path / "shards")}}
    )
    (tmp_path / "report").mkdir()
    report = inspect(config, tmp_path / "report", split="all", records=0)
    assert (report["records"], report["unreadable"]) == (len(ODD) + len(broken), len(broken))
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / "shards").iterdir()} == {
        "shards/0.tar",
        "shards/0.tar.index",
    }
    assert not list(tmp_path.parent.rglob("canary*"))
