"""Files of JSON lines: a damaged line costs that line and nothing else."""

import random

import pytest

from imagen_jax.io.json_lines import append_json_line, read_json_lines, write_json_lines

VALUES = [{"step": step, "loss": step / 3} for step in range(20)]


@pytest.fixture
def file(tmp_path):
    write_json_lines(tmp_path / "values.jsonl", VALUES[:10])
    for value in VALUES[10:]:
        append_json_line(tmp_path / "values.jsonl", value)
    return tmp_path / "values.jsonl"


def test_round_trip(file):
    assert read_json_lines(file) == VALUES


def test_missing_file(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_truncated_line(file):
    file.write_bytes(file.read_bytes()[:-5])
    assert read_json_lines(file) == VALUES[:-1]


def test_flipped_bits_cost_at_most_two_lines(file):
    data = file.read_bytes()
    for seed in range(200):
        flipped = bytearray(data)
        position = random.Random(seed).randrange(8 * len(data))
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        # a flip in a line break joins two lines
        assert sum(value in VALUES for value in read_json_lines(file)) >= len(VALUES) - 2


@pytest.mark.parametrize(
    "line", ["[1]", "3", "null", "[" * 10_000, '{"a":' * 10_000, "\x00"], ids=lambda line: line[:8]
)
def test_lines_that_are_no_objects_are_skipped(file, line):
    with file.open("a") as opened:
        opened.write(line + "\n")
    append_json_line(file, {"step": 99})
    assert read_json_lines(file) == [*VALUES, {"step": 99}]
