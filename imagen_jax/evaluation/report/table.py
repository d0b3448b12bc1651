"""Tables of figures: runs side by side, the best of what can be compared, and footnotes on what cannot."""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MORE, LESS, NEITHER = 1, -1, 0  # which values of a row are better
_ARROWS = {MORE: " ↑", LESS: " ↓", NEITHER: ""}


class Detail(NamedTuple):
    """Something that a figure depends on.

    Attributes:
        identity: equal where the figures can be compared.
        text: of it, to read.
    """

    identity: Any
    text: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        value: by which it is compared.
        text: the value as text.
        spread: its interval or deviation as text; empty for none.
        interval: the ends of its interval; None for none.
        details: what it depends on, by name. Figures are compared if all of these are equal.
    """

    value: float
    text: str
    spread: str = ""
    interval: tuple[float, float] | None = None
    details: Mapping[str, Detail] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of one name, a cell for each column, None where there is none."""

    label: str
    cells: Sequence[Cell | None]
    better: int = NEITHER

    @property
    def head(self) -> str:
        """The label, with an arrow in the better direction."""
        return self.label + _ARROWS[self.better]


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures by row and column.

    Attributes:
        title: of the table.
        columns: names of the columns, such as runs.
        rows: with as many cells.
        notes: what is said below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = ()


class Shown(NamedTuple):
    """A cell as it is shown: whether it is in bold, and the letter of its footnote, or ""."""

    text: str
    spread: str
    is_best: bool
    mark: str


class Footnote(NamedTuple):
    """A note on the cells with a letter; on all of them for ""."""

    mark: str
    text: str


class Layout(NamedTuple):
    """A table as it is shown: for each row a cell, None for an empty one, for each column; and the footnotes."""

    rows: list[list[Shown | None]]
    notes: list[Footnote]


def lay_out(table: Table) -> Layout:
    """Returns what is in bold and what is marked.

    In each row, the best of the figures that can be compared is in bold, where there are two at least. If not all of
    them can, each has the letter of a footnote that says in what they differ: bold is the best of its letter.
    """
    letters: dict[str, str] = {}
    rows = [_lay_out_row(row, letters) for row in table.rows]
    notes = [Footnote("", note) for note in table.notes]
    if any(cell is not None and cell.is_best for row in rows for cell in row):
        among = " among those of the same letter, which alone can be compared" if letters else ""
        notes.append(Footnote("", f"Bold: the best of a row{among}."))
    notes += [Footnote("", text) for text in _shared_notes(table.rows)]
    notes += [Footnote(letter, text) for text, letter in letters.items()]
    return Layout(rows, notes)


def _lay_out_row(row: Row, letters: dict[str, str]) -> list[Shown | None]:
    groups = _groups(row)
    marks, best = {}, set()
    for members in groups:
        if len(groups) > 1:
            text = _difference(row, members[0])
            mark = letters.setdefault(text, _letter(len(letters)))
            marks.update(dict.fromkeys(members, mark))
        best.update(_best(row, members))
    return [
        None if cell is None else Shown(cell.text, cell.spread, index in best, marks.get(index, ""))
        for index, cell in enumerate(row.cells)
    ]


def _groups(row: Row) -> list[list[int]]:
    """Returns the indices of the cells that can be compared with each other."""
    groups: dict[Any, list[int]] = {}
    for index, cell in enumerate(row.cells):
        if cell is not None:
            identity = tuple(sorted((name, repr(detail.identity)) for name, detail in cell.details.items()))
            groups.setdefault(identity, []).append(index)
    return list(groups.values())


def _best(row: Row, members: Sequence[int]) -> list[int]:
    """Returns which of some cells are the best, all that look alike; none if all do."""
    cells = {index: cell for index in members if (cell := row.cells[index]) is not None and math.isfinite(cell.value)}
    if row.better == NEITHER or len(cells) < 2:
        return []
    best = max(cells.values(), key=lambda cell: row.better * cell.value)
    chosen = [index for index, cell in cells.items() if cell.text == best.text]
    return chosen if len(chosen) < len(cells) else []


def _difference(row: Row, index: int) -> str:
    """Returns those of a cell's details that are not the same in all cells of the row."""
    cells = [cell for cell in row.cells if cell is not None]
    own = row.cells[index]
    assert own is not None
    parts = []
    for name in dict.fromkeys(name for cell in cells for name in cell.details):
        identities = {repr(cell.details[name].identity) if name in cell.details else None for cell in cells}
        if len(identities) > 1:
            parts.append(f"{name}: {own.details[name].text if name in own.details else 'not known'}")
    return "; ".join(parts)


def _shared_notes(rows: Sequence[Row]) -> list[str]:
    """Returns what all figures of a row depend on, once for all rows of which it is true."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        labels.setdefault("; ".join(_shared_details([cell for cell in row.cells if cell])), []).append(row.label)
    labels.pop("", None)
    whole = len(labels) == 1 and len(next(iter(labels.values()))) == len(rows)
    return [text if whole else f"{', '.join(names)} – {text}" for text, names in labels.items()]


def _shared_details(cells: Sequence[Cell]) -> list[str]:
    """Returns the details that all of some cells have."""
    return [
        f"{name}: {detail.text}"
        for name, detail in (cells[0].details if cells else {}).items()
        if all(name in cell.details and cell.details[name].identity == detail.identity for cell in cells)
    ]


def _letter(index: int) -> str:
    """Returns the letter of a footnote: a to z, then aa, ab and so on."""
    more, rest = divmod(index, len(string.ascii_lowercase))
    return (_letter(more - 1) if more else "") + string.ascii_lowercase[rest]
