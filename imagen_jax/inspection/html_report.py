"""The findings about a data set for a person: a page of HTML, its pictures beside it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagen_jax.io.text import printable

SHOWN = 50  # rows of a table
NAMED = 3  # files that cannot be read, among the figures

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .6em 0; } td, th { padding: .15em .9em .15em 0; text-align: left;
vertical-align: top; overflow-wrap: anywhere; } td.number { text-align: right; white-space: nowrap; }
.bar { background: #6a93c8; display: inline-block; height: .75em; } .bad { color: #a40000; font-weight: bold; }
.good { color: #1a6b1a; font-weight: bold; } .note { color: #666; } img { max-width: 100%; border: 1px solid #ccc; }
"""


def page(found: Mapping[str, Any], title: str, pictures: Mapping[str, str]) -> str:
    """The report as HTML.

    Args:
        found: see ``findings``.
        title: what was looked at.
        pictures: file names beside the page by what they show.
    """
    parts = [
        f"<h1>{escaped(title)}</h1>",
        verdict(found),
        summary(found),
        *(f'<h2>{escaped(what)}</h2><img src="{escaped(file)}" alt="">' for what, file in pictures.items()),
        *groups(found["groups"]),
        *aspects(found["sizes"]),
        *words(found["captions"]),
        *columns(found["columns"]),
        *unreadable(found),
        *near(found["near_duplicates"]),
        *listed("Captions that come several times", ("caption", "times"), found["captions"]["repeated"]),
        *listed("Captions that are cut", ("caption",), [(text,) for text in found["captions"]["cut_captions"]]),
    ]
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def escaped(text: Any) -> str:
    """Text as HTML shows it, whatever is in it."""
    return html.escape(printable(str(text)))


def verdict(found: Mapping[str, Any]) -> str:
    """Whether the data can be used, in one line."""
    if found["unusable"]:
        return f'<p class="bad">Unusable: {escaped(found["unusable"])}.</p>'
    return '<p class="good">The data can be used.</p>'


def summary(found: Mapping[str, Any]) -> str:
    """The figures of all sections in one table."""
    return table((), lines(found))


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that matter most, as (what, how many), for the page and the screen."""
    said, size, near = found["captions"], found["sizes"], found["near_duplicates"]
    cut = said["not_counted"] if said["cut"] is None else f"{said['cut']:,} (over {said['tokens']} tokens)"
    rows = [
        ("records", f"{found['records']:,}, of which {found['looked_at']:,} were looked at"),
        ("cannot be read", f"{found['unreadable']:,} ({share(found['unreadable'], found['looked_at'])})"),
        *[("", f"{file['name']}: {file['reason']}") for file in found["unreadable_files"][:NAMED]],
        ("captions", f"{said['captions']:,}, of which {said['distinct']:,} are distinct"),
        ("records without a caption", f"{said['records_without']:,}"),
        ("records with several captions", f"{said['records_with_several']:,}"),
        ("captions that are cut", cut),
        ("characters of a caption", f"median {said['median_characters']:,}, longest {said['longest_characters']:,}"),
        ("pictures that look alike", f"{near['pictures']:,} in {near['groups']:,} groups"),
    ]
    if size:
        rows += [
            ("sizes, height × width", f"{size['smallest']} … median {size['median']} … {size['largest']}"),
            (f"smaller than image_size {size['image_size']}", f"{size['smaller_than_image_size']:,}"),
        ]
    if found["read_per_second_and_core"]:
        rows.append(("read and decoded by one core", f"{found['read_per_second_and_core']:,} pictures a second"))
    return rows


def groups(compared: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Of each comparison a table of its groups, and the words that come with each more often than with the others."""
    for comparison in compared:
        yield f"<h2>How even: {escaped(comparison['by'])}</h2>"
        ratio = comparison["ratio"]
        said = "some are never spoken of" if ratio is None else f"the most frequent has {ratio:g} times the rarest"
        yield f"<p>{len(comparison['groups'])} groups; {said}.</p>"
        yield counted("group", [(group["name"], group["records"]) for group in comparison["groups"]])
        for group in comparison["groups"]:
            skews = group["skewed_words"]
            rows = [(skew["word"], f"{skew['with_group']:.1%}", f"{skew['with_others']:.1%}") for skew in skews]
            if rows:
                yield f"<p>More often with <b>{escaped(group['name'])}</b>:</p>"
                yield table(("word", "of its records", "of the others'"), rows)


def aspects(size: Mapping[str, Any]) -> Iterable[str]:
    """How many pictures are of each shape."""
    if size:
        yield f"<h2>Aspects</h2>{counted('width / height', list(size['aspects'].items()))}"


def words(said: Mapping[str, Any]) -> Iterable[str]:
    """The frequent words."""
    if said["words"]:
        yield f"<h2>Words</h2><p>{said['distinct_words']:,} different ones, by how many records have them:</p>"
        yield counted("word", said["words"])


def columns(found: Mapping[str, Any]) -> Iterable[str]:
    """The frequent values of each column."""
    for column, values in found.items():
        yield f"<h2>Column {escaped(column)}</h2><p>{values['distinct']:,} different values:</p>"
        yield counted("value", values["values"])


def unreadable(found: Mapping[str, Any]) -> Iterable[str]:
    """The records that cannot be read, each with the reason."""
    rows = [(file["name"], file["reason"]) for file in found["unreadable_files"]]
    return listed("Files that cannot be read", ("file", "reason"), rows, found["unreadable"])


def near(found: Mapping[str, Any]) -> Iterable[str]:
    """The groups of pictures that look alike."""
    rows = [(", ".join(names),) for names in found["names"]]
    return listed("Pictures that look alike", ("names",), rows, found["groups"])


def listed(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], total: int | None = None) -> Iterable[str]:
    """A section with a table, if it has rows."""
    if rows:
        count = len(rows) if total is None else total
        yield f"<h2>{escaped(title)}</h2>{table(heads, rows[:SHOWN])}"
        if count > SHOWN:
            yield f'<p class="note">{count - SHOWN:,} more.</p>'


def counted(head: str, rows: Sequence[tuple[str, int]]) -> str:
    """A table of frequencies with bars."""
    longest = max((count for _, count in rows), default=0)
    body = "".join(
        f'<tr><td>{escaped(name)}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{count / max(longest, 1) * 18:.2f}em"></span></td></tr>'
        for name, count in rows[:SHOWN]
    )
    more = f'<p class="note">{len(rows) - SHOWN:,} more in the JSON file.</p>' if len(rows) > SHOWN else ""
    return f"<table><tr><th>{escaped(head)}</th><th>records</th></tr>{body}</table>{more}"


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as HTML."""
    top = "".join(f"<th>{escaped(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def share(part: int, whole: int) -> str:
    """A share in per cent."""
    return f"{part / max(whole, 1):.2%}"
