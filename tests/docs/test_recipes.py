"""The commands of docs/recipes.md run as they are written, and do what the page says."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import xla_flags
from tests.helpers.archives import encode_image
from tests.helpers.configs import ROOT, contents
from tests.helpers.markdown import code_blocks

COUNT = 160


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A working directory with `configs` and `photos`, one of which is corrupt."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "configs").symlink_to(ROOT / "configs")
    photos = desk / "photos"
    (photos / "more").mkdir(parents=True)
    for number in range(COUNT):
        path = photos / ("more" if number % 2 else "") / f"{number:03d}.png"
        path.write_bytes(encode_image(number, (32 + number, 40)))
        path.with_suffix(".txt").write_text(f"picture {number}\nnumber {number}")
    (photos / "cut.jpg").write_bytes(encode_image(0, kind="JPEG")[:100])
    return desk


def section(title):
    """Returns the text of a section of the page."""
    return (ROOT / "docs/recipes.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def run_commands(desk, title):
    """Runs the commands of a section, until one fails; returns what they print."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla_flags(devices=1)}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.helpers.cli"],
        input="".join(code_blocks(section(title), "")),
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


def test_folder_to_samples(desk):
    before = contents(desk / "photos")
    printed = run_commands(desk, "A folder of images")
    runs = desk / "runs/photos"
    report = json.loads((runs / "data/report.json").read_text())
    assert (report["records"], report["unusable"], report["captions"]["captions"]) == (COUNT + 1, "", 2 * COUNT)
    assert [file["name"] for file in report["unreadable_files"]] == ["cut.jpg"]
    assert f"{2 * COUNT} distinct of {2 * COUNT} captions and the empty one" in printed
    for stage in ("base", "sr"):
        assert "done at step 20" in (runs / stage / "log.txt").read_text()
    with Image.open(runs / "samples/images/0001.png") as sample:
        assert sample.size == (32, 32)
        assert len(sample.getcolors(32 * 32)) > 100
    with Image.open(runs / "scores/samples.png") as grid:
        assert grid.width > 8 * 100
    base, sr = json.loads((runs / "scores/diagnostics.json").read_text())
    assert (base["step"], sr["step"]) == (20, 20)
    assert sr["metrics"]["validation_loss_at_noise/0.95"] > 0
    assert contents(desk / "photos") == before
    assert {path.name for path in desk.iterdir()} == {"configs", "photos", "runs"}


def test_folder_to_shards_and_embeddings(desk):
    (config,) = code_blocks(section("WebDataset shards"), "python")
    (desk / "shards.py").write_text(config)
    printed = run_commands(desk, "WebDataset shards")
    report = json.loads((desk / "runs/shards/data/report.json").read_text())
    assert (report["records"], report["unreadable"], report["captions"]["captions"]) == (COUNT + 1, 1, 2 * COUNT)
    assert f"{2 * COUNT} distinct of" in printed  # each split has the shard
