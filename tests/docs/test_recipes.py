"""docs/recipes.md: what it tells to type is typed, and does what is said."""

import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import xla_flags
from tests.helpers.archives import picture
from tests.helpers.configs import ROOT, contents

COUNT = 160


def blocks(title):
    """The (language, text) of each block of code in a section."""
    section = (ROOT / "docs/recipes.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w*)\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder to type in, with ``configs`` and ``photos``, one of which is broken."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "configs").symlink_to(ROOT / "configs")
    photos = desk / "photos"
    (photos / "more").mkdir(parents=True)
    for number in range(COUNT):
        path = photos / ("more" if number % 2 else "") / f"{number:03d}.png"
        path.write_bytes(picture(number, (32 + number, 40)))
        path.with_suffix(".txt").write_text(f"picture {number}\nnumber {number}")
    (photos / "cut.jpg").write_bytes(picture(0, kind="JPEG")[:100])
    return desk


def typed(desk, lines):
    """Types lines of a shell; what they print. One that fails is the last."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(devices=1),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.helpers.cli"],
        input=lines,
        cwd=desk,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


def commands_of(title):
    return "".join(text for language, text in blocks(title) if not language)


def test_a_folder_of_images_becomes_samples(desk):
    before = contents(desk / "photos")
    printed = typed(desk, commands_of("A folder of images of your own"))
    runs = desk / "runs/photos"
    found = json.loads((runs / "data/report.json").read_text())
    assert (found["records"], found["unusable"], found["captions"]["captions"]) == (COUNT + 1, "", 2 * COUNT)
    assert [file["name"] for file in found["unreadable_files"]] == ["cut.jpg"]
    assert f"{2 * COUNT} distinct of {2 * COUNT} captions and the empty one" in printed
    for stage in ("base", "sr"):
        assert "done at step 20" in (runs / stage / "log.txt").read_text()
    with Image.open(runs / "samples/images/0001.png") as drawn:
        assert drawn.size == (32, 32)
        assert len(drawn.getcolors(32 * 32)) > 100
    with Image.open(runs / "scores/samples.png") as grid:
        assert grid.width > 8 * 100
    base, larger = json.loads((runs / "scores/diagnostics.json").read_text())
    assert (base["step"], larger["step"]) == (20, 20)
    assert larger["metrics"]["validation_loss_at_noise/0.95"] > 0
    assert contents(desk / "photos") == before
    assert {path.name for path in desk.iterdir()} == {"configs", "photos", "runs"}


def test_a_folder_becomes_shards_and_embeddings(desk):
    ((_, config),) = [block for block in blocks("Shards of WebDataset") if block[0] == "python"]
    (desk / "shards.py").write_text(config)
    printed = typed(desk, commands_of("Shards of WebDataset"))
    found = json.loads((desk / "runs/shards/data/report.json").read_text())
    assert (found["records"], found["unreadable"], found["captions"]["captions"]) == (COUNT + 1, 1, 2 * COUNT)
    assert f"{2 * COUNT} distinct of" in printed  # each split has the shard
