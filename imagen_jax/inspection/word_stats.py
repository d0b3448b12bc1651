"""What captions speak of: words by frequency, and how evenly groups of people or things are spoken of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError

WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
# A word that comes with a group less often than this says nothing of it.
LEAST = 5
SKEWED = 10  # words to name of each group
Z = 2.0  # standard errors by which a word must be more frequent with a group than without


class Grouping(NamedTuple):
    """How records are told apart.

    by: what by, in words
    names: the groups that are known beforehand
    words: those that make a group, and so say nothing of it
    of: (words, columns) of a record → the names of its groups
    """

    by: str
    names: tuple[str, ...]
    words: frozenset[str]
    of: Callable[[set[str], Mapping[str, str]], set[str]]


class Skew(NamedTuple):
    """A word that comes more often with one group than with the others: the shares of records that have it."""

    word: str
    with_group: float
    with_others: float


class Group(NamedTuple):
    """How many records speak of a group, and which words come with it more often than with the other groups."""

    name: str
    records: int
    skewed: list[Skew]


def words_of(captions: Sequence[str]) -> set[str]:
    """The words of a record's captions, in small letters."""
    return {word for caption in captions for word in WORD.findall(caption.lower())}


def word_groups(text: str) -> Grouping:
    """Groups from a list such as "woman|women|girl,man|men|boy": a record speaks of those of which it has any word.

    Raises UsageError unless there are two groups, each of one word or more.
    """
    groups = {
        name: {word.strip().lower() for word in name.split("|")} for name in (part.strip() for part in text.split(","))
    }
    if len(groups) < 2 or any("" in words for words in groups.values()):
        raise ConfigError(f"--groups {text!r} are no two groups of words: give for example 'woman|women,man|men'")
    of = {word: name for name, words in groups.items() for word in words}
    return Grouping(
        by=f"the words {text}",
        names=tuple(groups),
        words=frozenset(of),
        of=lambda words, _: {of[word] for word in words & of.keys()},
    )


def column_groups(column: str) -> Grouping:
    """Groups by the values of a column; a record without it belongs to none."""
    return Grouping(
        f"column {column}", (), frozenset(), lambda _, columns: {columns[column]} if column in columns else set()
    )


def compare(records: Sequence[tuple[set[str], Mapping[str, str]]], grouping: Grouping) -> list[Group]:
    """The groups that (words, columns) of records speak of, the most frequent first.

    A record of several groups counts for each, but not where words are compared.
    """
    counts = Counter(dict.fromkeys(grouping.names, 0))
    alone: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {}
    for own, columns in records:
        groups = grouping.of(own, columns)
        counts.update(groups)
        if len(groups) == 1:
            (name,) = groups
            alone[name] += 1
            words.setdefault(name, Counter()).update(own - grouping.words)
    everything: Counter[str] = sum(words.values(), Counter())
    return [
        Group(name, count, skewed(words.get(name, Counter()), alone[name], everything, alone.total()))
        for name, count in counts.most_common()
    ]


def skewed(own: Counter[str], count: int, everything: Counter[str], total: int) -> list[Skew]:
    """The words that are most surely more frequent with a group: of its ``count`` records, and the ``total`` of all."""
    others = total - count
    if not count or not others:
        return []
    found = []
    for word, times in own.items():
        rate, rest = times / count, (everything[word] - times) / others
        pooled = everything[word] / total
        error = np.sqrt(pooled * (1 - pooled) * (1 / count + 1 / others))
        if times >= LEAST and error > 0 and (rate - rest) / error > Z:
            found.append(((rate - rest) / error, Skew(word, rate, rest)))
    return [skew for _, skew in sorted(found, key=lambda pair: (-pair[0], pair[1].word))[:SKEWED]]
