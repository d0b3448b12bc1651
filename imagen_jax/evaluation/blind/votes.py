"""Counts the votes of a page: who wins, by category, and how far raters agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.evaluation.blind.agreement import krippendorff_alpha
from imagen_jax.evaluation.blind.page import KEY_FORMAT, QUESTIONS
from imagen_jax.evaluation.intervals import rate_of_groups
from imagen_jax.io.atomic import read_json
from imagen_jax.io.text import printable

VOTES_FORMAT = "imagen_jax votes 1"
ALL = "all"
_OTHER = {"a": "b", "b": "a"}
# on one line, as preferences are: a vote for A is further from one for B than from a tie
_VALUES = {"a": -1.0, "tie": 0.0, "b": 1.0}
_CHOICES = ("left", "tie", "right")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class KeyItem(_Part):
    """Which model is on the left of a pair, and its prompt."""

    left: str
    prompt: str
    category: str = ""


class Key(_Part):
    """The key of a page: its id, the folders of both models, and its pairs."""

    format: str
    page: str
    a: str
    b: str
    items: dict[str, KeyItem]


class RaterVotes(_Part):
    """The votes of one rater on a page: a side, or a tie, by pair and question."""

    format: str
    page: str
    rater: str
    votes: dict[str, dict[str, str]]


class Vote(NamedTuple):
    """A vote: the rater, the pair, the choice "a", "b" or "tie", and the side, "left", "right" or "tie"."""

    rater: str
    item: str
    choice: str
    side: str


def read_key(path: Path) -> Key:
    """Returns the key of a page. Raises ConfigError if the file is missing, or is not a key."""
    key = _read(path, Key, "the key that imagen blind has written")
    if key.format != KEY_FORMAT or any(item.left not in _OTHER for item in key.items.values()):
        raise ConfigError(f"{path} is not the key of a page: give the file that imagen blind has written as --key")
    return key


def read_votes(paths: Sequence[Path], key: Key) -> list[RaterVotes]:
    """Returns the votes of all raters.

    Raises:
        ConfigError: there are none; a file is missing or has no votes, or those of another page or of pairs that it
            has not; or two files are of one rater.
    """
    if not paths:
        raise ConfigError("there are no votes: give the files that raters have exported, imagen votes --key=KEY A.json")
    files: dict[str, Path] = {}
    votes = []
    for path in paths:
        one = _read(path, RaterVotes, "votes that the page has exported")
        if one.format != VOTES_FORMAT:
            raise ConfigError(f"{path} has no votes: give a file that the page has exported")
        if one.page != key.page:
            raise ConfigError(f"{path} has the votes of another page, {printable(one.page)}, not of {key.page}")
        rater = " ".join(one.rater.split()).casefold()
        if rater in files:
            raise ConfigError(
                f"{path} has votes of {printable(one.rater)!r}, as {files[rater]} has: give one file of each rater"
            )
        files[rater] = path
        _check(one, key, path)
        votes.append(one)
    return votes


def _check(votes: RaterVotes, key: Key, path: Path) -> None:
    for item, choices in votes.votes.items():
        if item not in key.items:
            raise ConfigError(f"{path} has votes on the pair {printable(item)!r}, which the page has not: export again")
        for question, choice in choices.items():
            if question not in QUESTIONS or choice not in _CHOICES:
                raise ConfigError(
                    f"{path} has the vote {printable(choice)!r} on {printable(question)!r} of pair {item}: expected "
                    f"{', '.join(_CHOICES)} on {' or '.join(QUESTIONS)}; export again"
                )


def _read(path: Path, kind: type[Any], expected: str) -> Any:
    """Returns a file as a value of a type. Raises ConfigError."""
    try:
        return kind.model_validate(read_json(path))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror or first_line(error)}): expected {expected}"
        ) from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{path} is not {expected}: {where or 'it'} is missing or of another type") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not {expected}: {first_line(error)}") from error


def count_votes(key: Key, votes: Sequence[RaterVotes]) -> dict[str, Any]:
    """Returns the result of a comparison.

    Args:
        key: of the page.
        votes: of all raters.

    Returns:
        `models`, `pairs`, `raters`, and for each question of `questions`: `rows` by category and for all, each with the
        shares of votes for `a`, `tie` and `b`, and `a_of_decided`, A's share of votes that are not ties; `left`, the
        left side's share of those; and `agreement`, Krippendorff's alpha of raters, NaN for one. Intervals are those of
        `intervals.rate_of_groups`, with the votes on a pair as a group.
    """
    questions = {}
    for question in QUESTIONS:
        cast = [
            _vote(one.rater, item, choices[question], key)
            for one in votes
            for item, choices in one.votes.items()
            if question in choices
        ]
        if not cast:
            continue
        decided = [vote for vote in cast if vote.choice != "tie"]
        questions[question] = {
            "rows": {name: _row(part) for name, part in _by_category(cast, key).items()},
            "left": _share(decided, [vote.side == "left" for vote in decided]),
            "agreement": _agreement(cast),
        }
    if not questions:
        raise ConfigError("the files have no votes: answer some pairs on the page, and export again")
    raters = {one.rater: sum(set(choices) == set(QUESTIONS) for choices in one.votes.values()) for one in votes}
    return {"models": {"a": key.a, "b": key.b}, "pairs": len(key.items), "raters": raters, "questions": questions}


def _vote(rater: str, item: str, side: str, key: Key) -> Vote:
    left = key.items[item].left
    choice = {"left": left, "right": _OTHER[left], "tie": "tie"}[side]
    return Vote(rater, item, choice, side)


def _by_category(votes: Sequence[Vote], key: Key) -> dict[str, list[Vote]]:
    """Returns the votes of each category, in order of names, and all."""
    groups: dict[str, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(key.items[vote.item].category, []).append(vote)
    groups.pop("", None)
    return {**dict(sorted(groups.items())), ALL: list(votes)}


def _row(votes: Sequence[Vote]) -> dict[str, Any]:
    """Returns the shares of choices."""
    shares = {choice: _share(votes, [vote.choice == choice for vote in votes]) for choice in ("a", "tie", "b")}
    decided = [vote for vote in votes if vote.choice != "tie"]
    return {**shares, "a_of_decided": _share(decided, [vote.choice == "a" for vote in decided])}


def _share(votes: Sequence[Vote], counted: Sequence[bool]) -> dict[str, float] | None:
    """Returns the share of votes that count, with its interval; None without votes."""
    groups: dict[str, list[bool]] = {}
    for vote, is_counted in zip(votes, counted, strict=True):
        groups.setdefault(vote.item, []).append(is_counted)
    return rate_of_groups(list(groups.values())) if groups else None


def _agreement(votes: Sequence[Vote]) -> dict[str, float | None]:
    """Returns alpha, None where it is not defined, and the pairs with votes of two raters or more."""
    units: dict[str, list[float]] = {}
    for vote in votes:
        units.setdefault(vote.item, []).append(_VALUES[vote.choice])
    alpha = krippendorff_alpha(list(units.values()))
    shared = sum(len(unit) > 1 for unit in units.values())
    return {"alpha": None if math.isnan(alpha) else alpha, "pairs": shared}


def format_result(result: Mapping[str, Any]) -> str:
    """Returns the result as text."""
    raters = ", ".join(f"{printable(name)} {count}" for name, count in result["raters"].items())
    lines = [
        f"A: {result['models']['a']}",
        f"B: {result['models']['b']}",
        f"{len(result['raters'])} raters, and pairs of {result['pairs']} they have answered: {raters}",
    ]
    for question, table in result["questions"].items():
        lines += ["", f"{question:24} votes      A    tie      B   A of decided, 95% interval"]
        for name, row in table["rows"].items():
            shares = "  ".join(f"{row[choice]['rate']:5.1%}" for choice in ("a", "tie", "b"))
            decided = row["a_of_decided"]
            interval = "-" if decided is None else _format_rate(decided)
            lines.append(f"{printable(name):24} {row['a']['total']:5.0f}  {shares}   {interval}")
        if table["left"] is not None:
            lines.append(f"left of decided: {_format_rate(table['left'])}; it should have 50% within its interval")
        alpha = table["agreement"]["alpha"]
        shown = "not defined" if alpha is None else f"{alpha:.3f}"
        lines.append(f"Krippendorff's alpha: {shown}, over {table['agreement']['pairs']} pairs of two raters or more")
    return "\n".join(lines)


def _format_rate(row: Mapping[str, float]) -> str:
    return f"{row['rate']:.1%} ({row['low']:.1%} – {row['high']:.1%})"
