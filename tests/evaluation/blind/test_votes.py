"""Counts of votes, agreement, and files of votes that cannot be counted."""

import json
import math

import numpy as np
import pytest

from imagen_jax.datasets.shapes.judge import wilson_interval
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.blind.agreement import krippendorff_alpha
from imagen_jax.evaluation.blind.votes import Key, RaterVotes, count_votes, format_result, read_key, read_votes

KEY = Key(
    format="imagen_jax blind key 1",
    page="f" * 16,
    a="runs/a",
    b="runs/b",
    items={
        f"{index:04d}": {"left": "ab"[index % 2], "prompt": f"prompt {index}", "category": "xy"[index // 6]}
        for index in range(8)
    },
)


def rater(name, choices, question="fidelity"):
    """Returns votes for models, which the key turns into sides."""
    votes = {}
    for (item, known), choice in zip(KEY.items.items(), choices, strict=False):
        side = "tie" if choice == "tie" else "left" if known.left == choice else "right"
        votes[item] = {question: side}
    return RaterVotes(format="imagen_jax votes 1", page=KEY.page, rater=name, votes=votes)


def test_rates_of_one_rater():
    result = count_votes(KEY, [rater("Ann", ["a", "a", "a", "b", "tie", "a", "b", "tie"])])
    rows = result["questions"]["fidelity"]["rows"]
    assert list(rows) == ["x", "y", "all"] and list(result["questions"]) == ["fidelity"]
    assert [rows["all"][choice]["correct"] for choice in ("a", "tie", "b")] == [4, 2, 2]
    assert [rows["x"][choice]["correct"] for choice in ("a", "tie", "b")] == [4, 1, 1]
    decided = rows["all"]["a_of_decided"]
    assert (decided["correct"], decided["total"]) == (4, 6)
    assert decided["low"] == pytest.approx(wilson_interval(4 * 5 / 6, 5)[0], abs=1e-6)
    assert result["questions"]["fidelity"]["agreement"] == {"alpha": None, "pairs": 0}
    assert "66.7%" in format_result(result) and "not defined" in format_result(result)


def test_left_side():
    votes = rater("Ann", ["a", "b"] * 4)  # always the left side
    left = count_votes(KEY, [votes])["questions"]["fidelity"]["left"]
    assert (left["correct"], left["total"]) == (8, 8)


def test_raters_who_agree_are_no_more_pairs():
    choices = ["a", "a", "a", "b", "b", "a", "b", "a"]
    one = count_votes(KEY, [rater("Ann", choices)])["questions"]["fidelity"]
    many = count_votes(KEY, [rater(name, choices) for name in ("Ann", "Ben", "Cy")])["questions"]["fidelity"]
    assert many["agreement"] == {"alpha": 1, "pairs": 8}
    assert many["rows"]["all"]["a"]["total"] == 24
    for bound in ("rate", "low", "high"):
        assert many["rows"]["all"]["a_of_decided"][bound] == pytest.approx(one["rows"]["all"]["a_of_decided"][bound])


def test_raters_by_chance_do_not_agree():
    rng = np.random.default_rng(0)
    units = [list(rng.choice([-1.0, 0.0, 1.0], 3)) for _ in range(3000)]
    assert abs(krippendorff_alpha(units)) < 0.03


def test_ties_are_half_way():
    """A vote for A is further from one for B than from a tie."""
    near = krippendorff_alpha([[-1, 0], [1, 1], [-1, -1], [1, 1]])
    far = krippendorff_alpha([[-1, 1], [1, 1], [-1, -1], [1, 1]])
    assert far < near < 1


def test_alpha_is_that_of_krippendorff():
    """The example of "Computing Krippendorff's Alpha-Reliability" (2011), C: four observers, twelve units."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    columns = zip(*(row.split() for row in observers), strict=True)
    units = [[float(value) for value in column if value != "."] for column in columns]
    assert krippendorff_alpha(units, lambda x, y: float(x != y)) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert math.isnan(krippendorff_alpha([[1], [2]])) and math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))


def save(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


GOOD = rater("Ann", ["a"]).model_dump()


@pytest.mark.parametrize(
    "value, message",
    [
        ("{", "is not votes"),
        ("[]", "is not votes"),
        ({**GOOD, "votes": 3}, "votes is missing or of another type"),
        ({**GOOD, "format": "x"}, "has no votes"),
        ({**GOOD, "page": "0" * 16}, "another page"),
        ({**GOOD, "votes": {"9999": {"fidelity": "left"}}}, "9999"),
        ({**GOOD, "votes": {"0000": {"fidelity": "up"}}}, "'up'"),
        ({**GOOD, "votes": {"0000": {"beauty": "left"}}}, "'beauty'"),
        (KEY.model_dump(), "rater is missing"),
    ],
)
def test_bad_votes(tmp_path, value, message):
    with pytest.raises(ConfigError, match=message):
        read_votes([save(tmp_path / "votes.json", value)], KEY)


def test_votes_of_one_rater_twice(tmp_path):
    first = save(tmp_path / "first.json", GOOD)
    second = save(tmp_path / "second.json", {**GOOD, "rater": " ann "})
    with pytest.raises(ConfigError, match="second.json has votes of ' ann ', as .*first.json has"):
        read_votes([first, second], KEY)


def test_no_votes(tmp_path):
    with pytest.raises(ConfigError, match="no votes"):
        read_votes([], KEY)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_votes([tmp_path / "missing.json"], KEY)
    with pytest.raises(ConfigError, match="answer some pairs"):
        count_votes(KEY, [rater("Ann", [])])


def test_bad_keys(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="not the key"):
        read_key(save(tmp_path / "votes.json", GOOD))
    with pytest.raises(ConfigError, match="not the key of a page"):
        read_key(save(tmp_path / "key.json", {**KEY.model_dump(), "format": "x"}))
    assert read_key(save(tmp_path / "key.json", KEY.model_dump())) == KEY
