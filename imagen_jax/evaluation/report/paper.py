"""Tables for a paper: LaTeX, with the package booktabs, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from imagen_jax.evaluation.report.table import Shown, Table, lay_out
from imagen_jax.io.text import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # at the start of a row, it and the star would be arguments of the row's end before
    "*": "{*}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}
_NOTES = r"\begin{minipage}{\linewidth}\footnotesize\raggedright"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def escape_latex(text: str) -> str:
    """Returns text of unknown origin for LaTeX; letters of other scripts need an engine that has them."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def escape_markdown(text: str) -> str:
    """Returns text of unknown origin for a cell of a table in Markdown."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def latex_table(table: Table) -> str:
    """Returns a table for LaTeX, which needs `\\usepackage{booktabs}`."""
    layout = lay_out(table)
    rows = [
        _latex_line([escape_latex(row.head), *map(_latex_cell, cells)])
        for row, cells in zip(table.rows, layout.rows, strict=True)
    ]
    notes = [rf"{_superscript(note.mark)}{escape_latex(note.text)}\par" for note in layout.notes]
    label = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.title)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            _latex_line(["", *map(escape_latex, table.columns)]),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip", _NOTES, *notes, r"\end{minipage}"] if notes else []),
            r"\end{table}",
        ]
    )


def _latex_line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _latex_cell(cell: Shown | None) -> str:
    if cell is None:
        return "--"
    text = escape_latex(cell.text)
    text = rf"\textbf{{{text}}}" if cell.is_best else text
    spread = rf" {{\scriptsize {escape_latex(cell.spread)}}}" if cell.spread else ""
    return f"{text}{_superscript(cell.mark)}{spread}"


def _superscript(mark: str) -> str:
    return rf"\textsuperscript{{{mark}}}" if mark else ""


def markdown_table(table: Table) -> str:
    """Returns a table in Markdown, as GitHub has it."""
    layout = lay_out(table)
    lines = [
        f"### {escape_markdown(table.title)}",
        "",
        f"| {' | '.join(['', *map(escape_markdown, table.columns)])} |",
        f"|{'---|'}{'---:|' * len(table.columns)}",
    ]
    for row, cells in zip(table.rows, layout.rows, strict=True):
        lines.append(f"| {' | '.join([escape_markdown(row.head), *map(_markdown_cell, cells)])} |")
    notes = [f"- {f'<sup>{note.mark}</sup> ' * bool(note.mark)}{escape_markdown(note.text)}" for note in layout.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _markdown_cell(cell: Shown | None) -> str:
    if cell is None:
        return "–"
    text = escape_markdown(cell.text)
    text = f"**{text}**" if cell.is_best else text
    mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
    return f"{text}{mark}{f' {escape_markdown(cell.spread)}' if cell.spread else ''}"
