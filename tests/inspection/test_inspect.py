"""Inspection of a faulty data set and of every kind of source."""

import html.parser
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imagen_jax.inspection.html_report import summary_rows
from imagen_jax.inspection.inspect import _sample_indices, inspect
from imagen_jax.inspection.word_stats import column_groups, word_groups
from tests.helpers.archives import encode_image, write_shards, write_tar
from tests.helpers.configs import ROOT, config_of, contents

SCRIPT = '<script>alert("x")</script>'


def noise(seed, size=(40, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).resize(size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of images with every kind of fault."""
    root = tmp_path_factory.mktemp("images")
    rows = []

    def add(name, image, *captions, **columns):
        image.save(root / name)
        rows.append({"file_name": name, "text": list(captions), **columns})

    for i in range(8):
        add(f"{i}.png", noise(i), "a woman" if i < 2 else "a man", place="<b>here</b>")
    noise(3).save(root / "three.jpg")
    add("wide.png", noise(20, (60, 20)), SCRIPT, "x" * 50)
    add("tall.png", noise(21, (10, 40)), "a man\u202e\x07")
    add("none.png", noise(22))
    (root / f"{SCRIPT.replace('/', '-')}.psd").write_bytes(b"")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:60])
    (root / f"{SCRIPT.replace('/', '-')}.png").write_bytes(b"")
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def folder_config(folder, **changes):
    return config_of(
        "folder_base.py",
        **{
            "data.path": str(folder),
            "data.validation_fraction": 0.0,
            "data.max_corrupt": 0.3,
            "text.length": 24,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def inspected(folder, tmp_path_factory):
    """(report, the folder it was written to)."""
    out = tmp_path_factory.mktemp("report")
    groupings = [word_groups("woman,man"), column_groups("place")]
    before = contents(folder)
    report = inspect(folder_config(folder), out, split="train", records=0, groupings=groupings)
    assert contents(folder) == before
    return report, out


def test_unreadable_files_are_listed(inspected):
    report, _ = inspected
    reasons = {file["name"]: file["reason"] for file in report["unreadable_files"]}
    assert reasons.keys() == {"cut.png", f"{SCRIPT.replace('/', '-')}.png", "tall.png"}
    assert "empty" in reasons[f"{SCRIPT.replace('/', '-')}.png"]
    assert "10" in reasons["tall.png"]  # pixels wide, below 16
    assert (report["records"], report["scanned"], report["unreadable"]) == (14, 14, 3)
    assert report["unusable"] == ""
    assert report["read_per_second_and_core"] > 0


def test_left_out_is_listed(inspected):
    report, _ = inspected
    # 4 images have no row, or one without a caption; none of them has a file
    assert [(finding["what"], finding["count"]) for finding in report["left_out"]][:2] == [
        ("file(s) not used", 1),
        ("image(s) without a caption", 4),
    ]
    rows = [value for name, value in summary_rows(report) if name == "note"]
    assert ".psd" in rows[0] and "image format" in rows[0]
    assert len(rows) == len(report["left_out"])


def test_size_statistics(inspected):
    sizes = inspected[0]["sizes"]
    assert (sizes["smallest"], sizes["median"], sizes["largest"]) == ("40×10", "40×40", "40×40")
    assert sizes["smaller_than_image_size"] == 1
    assert {kind: count for kind, count in sizes["aspects"].items() if count} == {
        "0 to 0.5": 1,
        "0.9 to 1.1": 11,
        "2 and more": 1,
    }


def test_caption_statistics(inspected):
    captions = inspected[0]["captions"]
    assert (
        captions["captions"],
        captions["distinct"],
        captions["records_without"],
        captions["records_with_several"],
    ) == (11, 5, 4, 1)
    assert (captions["tokens"], captions["truncated"]) == (24, 2)
    assert sorted(map(len, captions["truncated_captions"])) == [len(SCRIPT), 50]
    assert captions["repeated"] == [("a man", 6), ("a woman", 2)]
    assert dict(captions["words"])["man"] == 7


def test_near_duplicates_are_listed(inspected):
    near = inspected[0]["near_duplicates"]
    assert (near["groups"], near["images"]) == (1, 2)
    assert sorted(near["names"][0]) == ["3.png", "three.jpg"]


def test_group_statistics(inspected):
    words, column = inspected[0]["groups"]
    assert words["ratio"] == 3.5
    assert [(group["name"], group["records"]) for group in words["groups"]] == [("man", 7), ("woman", 2)]
    assert [(group["name"], group["records"]) for group in column["groups"]] == [("<b>here</b>", 8)]
    assert inspected[0]["columns"] == {"place": {"distinct": 1, "values": [("<b>here</b>", 8)]}}


class Page(html.parser.HTMLParser):
    """The tags, image sources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.text = set(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.images += [value for name, value in attributes if name == "src"]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


def test_html_report_is_complete_and_safe(inspected):
    report, out = inspected
    page = Page((out / "report.html").read_text())
    assert "script" not in page.tags
    for text in ("<b>here</b>", SCRIPT, "three.jpg", "cut.png", "a man", "The data can be used", ".psd"):
        assert text in page.text
    assert "\u202e" not in page.text
    assert page.images == ["contact_sheet.png", "near_duplicates.png"]
    assert {path.name for path in out.iterdir()} == {"report.html", "report.json", *page.images}
    for name in page.images:
        with Image.open(out / name) as sheet:
            assert sheet.width > 300
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))


def test_unusable_data(folder, tmp_path):
    report = inspect(
        folder_config(folder, **{"data.max_corrupt": 0.1}), tmp_path, split="train", records=0, groupings=[]
    )
    assert report["unusable"] == "3 of 14 records cannot be read: config.data.max_corrupt is 0.1"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    report = inspect(
        folder_config(tmp_path / "bad", **{"data.max_corrupt": 1.0}), tmp_path, split="train", records=0, groupings=[]
    )
    assert report["unusable"] == "none of 1 records can be read"
    assert not (tmp_path / "contact_sheet.png").exists()
    assert "Unusable: none of 1" in (tmp_path / "report.html").read_text()


def test_sampled_indices_depend_on_seed():
    assert (
        list(_sample_indices(5, 0, 0))
        == list(_sample_indices(5, 5, 0))
        == list(_sample_indices(5, 9, 0))
        == [*range(5)]
    )
    indices = _sample_indices(10**9, 100, seed=1)
    assert indices == sorted(set(indices)) == _sample_indices(10**9, 100, seed=1) != _sample_indices(10**9, 100, seed=2)
    assert len(indices) == 100 and max(indices) > 9 * 10**8


def test_inspect_every_source(tmp_path, folder):
    write_shards(tmp_path / "shards", [3])
    write_tar(
        tmp_path / "shards" / "1.tar", [("a.png", encode_image(0, (64, 64))), ("a.txt", b"\xff"), ("b.png", b"cut")]
    )
    shards = {"source": "webdataset", "shards": {"train": str(tmp_path / "shards")}}
    mixed = {
        "source": "mixture",
        "parts": {
            "shards": {**shards, "weight": 1.0},
            "folder": {"source": "folder", "path": str(folder), "validation_fraction": 0.0, "weight": 2.0},
        },
    }
    changed = {"data.max_corrupt": 0.5, "data.transform.upscale": True}
    for data, records, corrupt in ((shards, 5, 2), (mixed, 19, 4)):
        config = folder_config(folder).with_changes({f"data.{key}": value for key, value in data.items()} | changed)
        report = inspect(config, tmp_path, split="train", records=0, groupings=[column_groups("part")])
        assert (report["records"], report["unreadable"], report["unusable"]) == (records, corrupt, "")
    assert {group["name"]: group["records"] for group in report["groups"][0]["groups"]} == {"shards": 4, "folder": 14}
    for file, variant in (("digits.py", ""), ("shapes_base.py", "tiny")):
        report = inspect(
            config_of(file, variant, **{"text.length": 200}), tmp_path, split="train", records=30, groupings=[]
        )
        assert (report["scanned"], report["unreadable"], report["captions"]["truncated"]) == (30, 0, 0)


def test_missing_tokenizer_is_reported(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = inspect(
        folder_config(folder, **{"text.model": "nobody/no-such-t5"}), tmp_path, split="train", records=2, groupings=[]
    )
    assert report["captions"]["truncated"] is None
    assert 'not counted: text encoder "nobody/no-such-t5" is not on this machine yet' in (
        tmp_path / "report.html"
    ).read_text().replace("&quot;", '"')


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "imagen_jax", "inspect", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_inspect_exit_codes(folder, tmp_path):
    config = [f"--config={ROOT}/configs/folder_base.py:tiny", f"--config.data.path={folder}", f"--out={tmp_path}"]
    config += ["--config.data.validation_fraction=0.0"]
    process = run(*config, "--config.data.max_corrupt=0.01")
    assert process.returncode == 1, process.stderr
    assert "the data cannot be used: 3 of 14 records cannot be read" in process.stderr
    assert "Traceback" not in process.stderr
    process = run(*config, "--config.data.max_corrupt=0.5", "--groups=woman,man", "--column=place")
    assert process.returncode == 0, process.stderr
    assert "unreadable                     3 (21.43%)" in process.stdout
    assert "cut.png: " in process.stdout
