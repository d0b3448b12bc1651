"""Word statistics of captions: frequencies, and how often groups of people or things are mentioned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imagen_jax.errors import ConfigError

_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_MIN_COUNT = 5  # minimum occurrences of a skewed word in a group
_MAX_SKEWED = 10  # skewed words per group
_MIN_Z = 2.0  # standard errors by which a word must be more frequent with a group than without


class Grouping(NamedTuple):
    """A way to assign records to groups.

    Attributes:
        by: description of the criterion.
        names: groups that are known in advance.
        words: words that define the groups, which are not counted as skewed words.
        assign: maps (words, columns) of a record to the names of its groups.
    """

    by: str
    names: tuple[str, ...]
    words: frozenset[str]
    assign: Callable[[set[str], Mapping[str, str]], set[str]]


class Skew(NamedTuple):
    """A word that is more frequent with one group than with the others: the fraction of their records with it."""

    word: str
    with_group: float
    with_others: float


class Group(NamedTuple):
    """A group: the number of records that mention it, and the words that are more frequent with it than without."""

    name: str
    records: int
    skewed: list[Skew]


def caption_words(captions: Sequence[str]) -> set[str]:
    """Returns the words of a record's captions in lower case."""
    return {word for caption in captions for word in _WORD.findall(caption.lower())}


def word_groups(text: str) -> Grouping:
    """Returns a grouping by words: a record belongs to each group of which its captions contain a word.

    Args:
        text: groups of words, such as "woman|women|girl,man|men|boy".

    Raises:
        ConfigError: there are fewer than two groups, or a group has an empty word.
    """
    groups = {
        name: {word.strip().lower() for word in name.split("|")} for name in (part.strip() for part in text.split(","))
    }
    if len(groups) < 2 or any("" in words for words in groups.values()):
        raise ConfigError(f"--groups {text!r} is not a list of two groups or more: give 'woman|women,man|men'")
    group_of = {word: name for name, words in groups.items() for word in words}
    return Grouping(
        by=f"the words {text}",
        names=tuple(groups),
        words=frozenset(group_of),
        assign=lambda words, _: {group_of[word] for word in words & group_of.keys()},
    )


def column_groups(column: str) -> Grouping:
    """Returns a grouping by the values of a column; a record without the column belongs to no group."""
    return Grouping(
        f"column {column}", (), frozenset(), lambda _, columns: {columns[column]} if column in columns else set()
    )


def compare_groups(records: Sequence[tuple[set[str], Mapping[str, str]]], grouping: Grouping) -> list[Group]:
    """Counts the records of each group and finds their skewed words.

    A record of several groups counts for each of them, but is ignored where words are compared.

    Args:
        records: (words, columns) of each record.
        grouping: assigns records to groups.

    Returns:
        The groups, the most frequent first.
    """
    counts = Counter(dict.fromkeys(grouping.names, 0))
    single: Counter[str] = Counter()
    words: dict[str, Counter[str]] = {}
    for record_words, columns in records:
        groups = grouping.assign(record_words, columns)
        counts.update(groups)
        if len(groups) == 1:
            (name,) = groups
            single[name] += 1
            words.setdefault(name, Counter()).update(record_words - grouping.words)
    all_words: Counter[str] = sum(words.values(), Counter())
    return [
        Group(name, count, _skewed_words(words.get(name, Counter()), single[name], all_words, single.total()))
        for name, count in counts.most_common()
    ]


def _skewed_words(words: Counter[str], count: int, all_words: Counter[str], total: int) -> list[Skew]:
    """Returns the words most significantly more frequent with a group.

    Args:
        words: records of the group with each word.
        count: number of records of the group.
        all_words: records of all groups with each word.
        total: number of records of all groups.
    """
    others = total - count
    if not count or not others:
        return []
    candidates = []
    for word, times in words.items():
        rate, other_rate = times / count, (all_words[word] - times) / others
        pooled = all_words[word] / total
        error = np.sqrt(pooled * (1 - pooled) * (1 / count + 1 / others))
        if times >= _MIN_COUNT and error > 0 and (rate - other_rate) / error > _MIN_Z:
            candidates.append(((rate - other_rate) / error, Skew(word, rate, other_rate)))
    return [skew for _, skew in sorted(candidates, key=lambda pair: (-pair[0], pair[1].word))[:_MAX_SKEWED]]
