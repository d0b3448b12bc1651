"""Tables: what is in bold, footnotes, and text of unknown origin in LaTeX, Markdown and HTML."""

import math
import re

import pytest

from imagen_jax.evaluation.report.interval_chart import interval_chart
from imagen_jax.evaluation.report.page import Section, render_sections
from imagen_jax.evaluation.report.paper import escape_latex, latex_table, markdown_table
from imagen_jax.evaluation.report.table import LESS, MORE, NEITHER, Cell, Detail, Row, Table, lay_out

HOSTILE = r"50%_a & #1 $x^2$ ~{b} \input{c} <script>|*d*[e] ± ↑"


def cell(value, text=None, **details):
    details = {name: Detail(value, str(value)) for name, value in details.items()}
    return Cell(value, f"{value:g}" if text is None else text, details=details)


def shown(*cells, better=MORE):
    """Returns which cells of a row are in bold, their marks, and the notes."""
    layout = lay_out(Table("t", [str(index) for index in range(len(cells))], [Row("r", cells, better)]))
    (row,) = layout.rows
    best = [index for index, one in enumerate(row) if one and one.is_best]
    return best, "".join(one.mark if one else "-" for one in row), [note.text for note in layout.notes if note.mark]


def test_best_of_a_row():
    assert shown(cell(1), cell(3), None, cell(2))[0] == [1]
    assert shown(cell(1), cell(3), cell(2), better=LESS)[0] == [0]
    assert shown(cell(1), cell(3), better=NEITHER)[0] == []
    assert shown(cell(3), None)[0] == []  # nothing to compare with
    assert shown(cell(3), cell(3), cell(2))[0] == [0, 1]
    assert shown(cell(3), cell(3))[0] == []
    assert shown(cell(3.0001, "3"), cell(3, "3"), cell(1))[0] == [0, 1]  # they look alike
    assert shown(cell(math.nan), cell(3), cell(1))[0] == [1]


def test_what_differs_is_not_compared():
    best, marks, notes = shown(cell(1, size=64), cell(9, size=32), cell(2, size=64))
    assert (best, marks, notes) == ([2], "aba", ["size: 64", "size: 32"])
    best, marks, notes = shown(cell(1, size=64, network="x"), cell(9, network="x"))
    assert (best, marks, notes) == ([], "ab", ["size: 64", "size: not known"])


def test_letters_are_of_differences():
    """Rows that differ in the same have the same letters; what all have in common is said once."""
    rows = [Row(name, [cell(1, size=64, net="x"), cell(2, size=32, net="x")], MORE) for name in "pq"]
    notes = lay_out(Table("t", ["m", "n"], rows)).notes
    assert [tuple(note) for note in notes] == [("", "net: x"), ("a", "size: 64"), ("b", "size: 32")]
    many = [Row("r", [cell(1, size=index), cell(2, size=-index - 1)], MORE) for index in range(14)]
    assert [note.mark for note in lay_out(Table("t", ["m", "n"], many)).notes][-2:] == ["aa", "ab"]


def test_latex_is_escaped():
    table = Table(HOSTILE, [HOSTILE, "b"], [Row(HOSTILE, [Cell(1, "1%", "± 2", details={}), None], LESS)], [HOSTILE])
    text = latex_table(table)
    bare = re.sub(r"\\[%_&#${}]", "", text)
    assert bare.count("{") == bare.count("}") and "%" not in bare and "#" not in bare
    assert bare.count("$") % 2 == 0 and "^" not in bare and "~" not in bare and "<" not in bare and "±" not in bare
    assert [line.count("&") for line in bare.splitlines() if line.endswith(r"\\")] == [2, 2]
    begun = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert [name for kind, name in begun if kind == "begin"] == ["table", "tabular", "minipage"]
    assert [name for kind, name in begun if kind == "end"] == ["tabular", "minipage", "table"]
    notes = text[text.index(r"\begin{minipage}") : text.index(r"\end{minipage}")].splitlines()[1:]
    assert notes and all(note.endswith(r"\par") and r"\\" not in note for note in notes)
    assert text.count("rule\n") == 3 and r"\input" not in text
    assert escape_latex("100% of A_1 & B #2 ± 3") == r"100\% of A\_1 \& B \#2 $\pm$ 3"


def test_markdown_and_page_are_escaped():
    table = Table("t", [HOSTILE], [Row(HOSTILE, [cell(1)], MORE)], [HOSTILE])
    for line in markdown_table(table).splitlines()[2:5]:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    page = render_sections("t", [(HOSTILE, "p", "k")], [Section(HOSTILE, [table])])
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize("name", ["[x", "*x"])
def test_row_is_no_argument_of_the_end_of_that_before(name):
    table = Table("t", ["m"], [Row("a", [cell(1)]), Row(name, [cell(2)])])
    assert f"\\\\\n{{{name[0]}}}x & 2" in latex_table(table)


def rate(value, low, high):
    return Cell(value, f"{value:.1%}", interval=(low, high))


@pytest.mark.parametrize(
    "cells, ticks",
    [
        ([rate(0.95, 0.9, 0.98)], "75% 80% 85% 90% 95% 100%"),
        ([rate(1, 0.97, 1), None], "75% 80% 85% 90% 95% 100%"),
        ([rate(0, 0, 0)], "0% 5% 10% 15% 20% 25%"),
        ([rate(0.3, 0.2, 0.45)], "0% 10% 20% 30% 40% 50%"),
        ([rate(0.3, 0.2, 0.45), rate(0.9, 0.8, 0.99)], "0% 25% 50% 75% 100%"),
    ],
)
def test_chart_has_all_intervals(cells, ticks):
    chart = interval_chart(Table("t", ["m"] * len(cells), [Row("a", cells), Row("b", [cell(3)])]))
    assert re.findall(r"(\d+%)</text>", chart) == ticks.split()
    first, *_, last = (float(x) for x in re.findall(r'class="tick" x="([\d.]+)"', chart))
    ends = [float(x) for pair in re.findall(r'whisker" d="M([\d.]+) [\d.]+H([\d.]+)"', chart) for x in pair]
    assert len(ends) == 2 * sum(one is not None for one in cells)
    assert all(first <= x <= last for x in ends)
    (share,) = [cells[0].interval[0] * 100 - int(ticks.split("%")[0])]
    span = int(ticks.split()[-1][:-1]) - int(ticks.split("%")[0])
    assert ends[0] == pytest.approx(first + share / span * (last - first), abs=0.1)


def test_chart_of_no_rates():
    assert interval_chart(Table("t", ["m"], [Row("b", [cell(3)])])) == ""
