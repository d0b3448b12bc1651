"""The page of a report, in one file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.evaluation.report.interval_chart import interval_chart
from imagen_jax.evaluation.report.paper import latex_table, markdown_table
from imagen_jax.evaluation.report.pictures import Picture
from imagen_jax.evaluation.report.table import Footnote, Row, Shown, Table, lay_out
from imagen_jax.images.html_page import escape, read_asset, render_page

_ASSETS = Path(__file__).parents[1] / "page"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: of it.
        tables: in it, each with a chart if it has rates.
        plots: wide images.
        pictures: small ones, in rows with a title each.
    """

    title: str
    tables: Sequence[Table] = ()
    plots: Sequence[Picture] = ()
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.tables or self.plots or self.pictures)


def render_sections(title: str, sources: Sequence[tuple[str, str, str]], sections: Sequence[Section]) -> str:
    """Returns the page.

    Args:
        title: of the page.
        sources: of each run its name, its path and what it has.
        sections: that are not empty.
    """
    links = "".join(f'<a href="#part{index}">{escape(part.title)}</a>' for index, part in enumerate(sections))
    items = "".join(
        f"<li><b>{escape(name)}</b> <span class='note'>{escape(path)}: {escape(kinds)}</span></li>"
        for name, path, kinds in sources
    )
    parts = [_section(f"part{index}", part) for index, part in enumerate(sections)]
    body = f'<main><h1>{escape(title)}</h1><ul class="runs">{items}</ul><nav>{links}</nav>{"".join(parts)}</main>'
    style, script = (read_asset(name, _ASSETS) for name in ("report.css", "report.js"))
    return render_page(title, body, style=style, script=script)


def _section(name: str, section: Section) -> str:
    plots = "".join(map(_figure, section.plots))
    rows = "".join(f"<h3>{escape(title)}</h3>{_images(pictures)}" for title, pictures in section.pictures)
    tables = "".join(map(_table, section.tables))
    return f'<section id="{name}"><h2>{escape(section.title)}</h2>{tables}{plots}{rows}</section>'


def _images(pictures: Sequence[Picture]) -> str:
    return f'<div class="images">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    title = escape(picture.title)
    return f'<figure><img src="{picture.uri}" alt="{title}"><figcaption>{title}</figcaption></figure>'


def _table(table: Table) -> str:
    layout = lay_out(table)
    heads = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{_head(row)}</th>{"".join(map(_cell, cells))}</tr>'
        for row, cells in zip(table.rows, layout.rows, strict=True)
    )
    notes = "".join(map(_note, layout.notes))
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll" tabindex="0"><table><tr><td></td>{heads}</tr>{rows}</table>'
        f'</div><div class="note">{notes}</div>{interval_chart(table)}'
        f"{_source('LaTeX', latex_table(table))}{_source('Markdown', markdown_table(table))}"
    )


def _head(row: Row) -> str:
    """Returns the label; its arrow is not alone on a line."""
    label, arrow = escape(row.label), row.head.removeprefix(row.label).strip()
    return f"{label}&nbsp;{arrow}" if arrow else label


def _cell(cell: Shown | None) -> str:
    if cell is None:
        return '<td class="number">–</td>'
    text = f"<b>{escape(cell.text)}</b>" if cell.is_best else escape(cell.text)
    spread = f' <span class="spread">{escape(cell.spread)}</span>' if cell.spread else ""
    return f'<td class="number">{text}{_superscript(cell.mark)}{spread}</td>'


def _note(note: Footnote) -> str:
    return f"<p>{_superscript(note.mark)}{escape(note.text)}</p>"


def _superscript(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def _source(name: str, text: str) -> str:
    """Returns a table as text to copy."""
    lines = "\n".join(map(escape, text.split("\n")))
    return (
        f'<details><summary>{name}</summary><button type="button" class="copy">Copy</button>'
        f'<pre tabindex="0" aria-label="{name}">{lines}</pre></details>'
    )
