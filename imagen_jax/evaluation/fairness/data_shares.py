"""The shares of groups in the data that a stage is trained on: of its records, and of those that training draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from imagen_jax.config.schema import StageConfig
from imagen_jax.data.record import CorruptRecordError, Source, read_columns
from imagen_jax.data.shuffle import OrderedSource, shuffled_epochs, training_order
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.fairness.groups import Group
from imagen_jax.inspection.word_stats import caption_words

_THREADS = 8


class DataShares(NamedTuple):
    """Counts of records by group.

    Attributes:
        records: that were looked at.
        counts: of those of one group alone, by its name.
    """

    records: int
    counts: dict[str, int]

    def shares(self) -> dict[str, float]:
        """Returns the share of each group among records of one group."""
        total = sum(self.counts.values())
        return {name: count / total for name, count in self.counts.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns counts and shares."""
        return {"records": self.records, "counts": self.counts, "shares": self.shares()}


def data_shares(
    config: StageConfig, groups: Sequence[Group], column: str | None = None, records: int = 10_000, split: str = ""
) -> dict[str, DataShares]:
    """Counts groups in the data of a config.

    Args:
        config: of the stage.
        groups: that a record belongs to by the words of its captions.
        column: of the metadata, by whose values records belong to groups, in place of words; None for words.
        records: how many to look at, at most.
        split: of the data; the config's by default.

    Returns:
        `data`, of records chosen at random, and `training`, of those that training begins with: the same unless the
        data set is a mixture or balanced.

    Raises:
        ConfigError: the data cannot be read, or no record belongs to a group.
    """
    source = make_source(config.data, split or config.data.split, config.image_hw)
    count = min(records, len(source))
    orders = {"data": shuffled_epochs(len(source), config.seed)}
    if isinstance(source, OrderedSource):
        orders["training"] = training_order(source, config.seed)
    assign = _by_words(groups) if column is None else _by_column(groups, column)
    found = {
        name: _count(source, [int(order[i]) for i in range(count)], groups, assign) for name, order in orders.items()
    }
    if not any(found["data"].counts.values()):
        where = "captions of" if column is None else f"column {column!r} of"
        raise ConfigError(
            f"no group, {', '.join(group.name for group in groups)} is in the {where} {count:,} records of "
            f"{source!r}: give the words that they have, such as 'woman|women,man|men', or another --column"
        )
    return {"data": found["data"], "training": found.get("training", found["data"])}


def _count(
    source: Source, indices: Sequence[int], groups: Sequence[Group], assign: Callable[[Source, int], set[str]]
) -> DataShares:
    """Counts the records of one group alone."""

    def group_of(index: int) -> str | None:
        try:
            names = assign(source, index)
        except CorruptRecordError:
            return None
        return names.pop() if len(names) == 1 else None

    with ThreadPoolExecutor(_THREADS) as threads:
        counts = Counter(threads.map(group_of, indices))
    return DataShares(len(indices), {group.name: counts[group.name] for group in groups})


def _by_words(groups: Sequence[Group]) -> Callable[[Source, int], set[str]]:
    group_of = _names_by_word(groups)

    def assign(source: Source, index: int) -> set[str]:
        words = caption_words(source.captions(index))
        return {group_of[word] for word in words & group_of.keys()}

    return assign


def _by_column(groups: Sequence[Group], column: str) -> Callable[[Source, int], set[str]]:
    group_of = _names_by_word(groups)

    def assign(source: Source, index: int) -> set[str]:
        value = str(read_columns(source, index).get(column, "")).lower()
        return {group_of[value]} if value in group_of else set()

    return assign


def _names_by_word(groups: Sequence[Group]) -> Mapping[str, str]:
    return {word.lower(): group.name for group in groups for word in group.words}
