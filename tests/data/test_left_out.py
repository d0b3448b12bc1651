"""What sources do not use: counts and names, in folders and shards, mixtures and buckets."""

import json
import logging

import numpy as np
import pytest

from imagen_jax.config.load import load_config
from imagen_jax.data.buckets import BucketSource
from imagen_jax.data.left_out import Finding, LeftOut, left_out_of, warn_left_out
from imagen_jax.datasets.mixtures import BalancedSource, MixtureSource
from imagen_jax.datasets.registry import make_source
from tests.helpers.archives import encode_image, example, write_tar


def test_counts_and_first_names():
    left_out = LeftOut()
    left_out.add("DIR", "file(s) not used", "videos", ["a", "b"])
    left_out.add("DIR", "file(s) not used", "videos", ["c", "d"], count=9)
    left_out.add("DIR", "file(s) not used", "archives", [])
    left_out.add("DIR", "image(s) in both", "few", [], count=2)
    assert left_out.findings == [
        Finding("DIR", "file(s) not used", "videos", 11, ("a", "b", "c")),
        Finding("DIR", "image(s) in both", "few", 2, ()),
    ]
    assert [Finding(**{**row, "names": tuple(row["names"])}) for row in left_out.to_json()] == left_out.findings
    json.dumps(left_out.to_json())


def test_merged_counts_add_up():
    one, two = LeftOut(), LeftOut()
    one.add("", "x", "y", ["a"])
    two.add("", "x", "y", ["b"], count=4)
    (merged,) = LeftOut().merge([one, two], place="shards").findings
    assert merged == Finding("shards", "x", "y", 5, ("a", "b"))
    assert len(LeftOut().merge([one, two]).findings) == 1
    assert left_out_of(object()).findings == []


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31m", "\udcff", "\u202egnp", "n" * 10**5])
def test_messages_are_one_printable_line(name):
    left_out = LeftOut()
    left_out.add(f"DIR{name[:9]}", "file(s)", "reason", [name])
    (message,) = left_out.messages()
    assert message.isprintable()
    assert len(message) < 300


def test_each_message_is_logged_once(caplog):
    class Place:
        left_out = LeftOut()

    Place.left_out.add("a place", "file(s)", "logged once", ["a"])
    with caplog.at_level(logging.WARNING):
        warn_left_out(Place)
        warn_left_out(Place)
        warn_left_out(object())
    assert [record.message for record in caplog.records] == Place.left_out.messages()


def test_mixtures_balance_and_buckets_have_the_findings_of_their_parts(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "Thumbs.db"):
        (tmp_path / "images" / name).write_bytes(encode_image(0))
    write_tar(tmp_path / "s.tar", [*example(1), ("a.pkl", b"")])
    parts = {
        "folder": {"source": "folder", "path": str(tmp_path / "images"), "weight": 1.0},
        "shards": {"source": "webdataset", "shards": {"all": str(tmp_path / "s.tar")}, "weight": 1.0},
    }
    source = make_source(load_config({"data": {"source": "mixture", "parts": parts}}).data, "all", 8)
    findings = left_out_of(source).findings
    assert {(finding.place, finding.names[0]) for finding in findings if "not used" in finding.what} == {
        (str(tmp_path / "images"), "Thumbs.db"),
        (str(tmp_path / "s.tar"), "a.pkl"),
    }
    for wrapped in (
        BalancedSource(source, "part"),
        BucketSource(source, np.arange(1), (8, 8)),
        MixtureSource({"all": source}, {"all": 1.0}),
    ):
        assert left_out_of(wrapped).findings == findings
