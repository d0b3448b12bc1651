"""The report on a data set as an HTML page, and its summary for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagen_jax.data.left_out import Finding
from imagen_jax.images.html_page import escape, render_page, table

_MAX_ROWS = 50  # of a table
_MAX_UNREADABLE = 3  # unreadable files in the summary

_STYLE = """
td.number { text-align: right; white-space: nowrap; }
.bar { background: var(--bar); display: inline-block; height: .75em; }
.bad { color: var(--bad); font-weight: bold; } .good { color: var(--good); font-weight: bold; }
"""
# the images are files beside the page
_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"


def render_report(report: Mapping[str, Any], title: str, images: Mapping[str, str]) -> str:
    """Returns the report as HTML.

    Args:
        report: the contents of report.json, see `inspect`.
        title: name of the data set.
        images: title -> file name of images in the folder of the page.
    """
    captions = report["captions"]
    truncated = [(text,) for text in captions["truncated_captions"]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        _verdict(report),
        table((), summary_rows(report)),
        *(f'<h2>{escape(name)}</h2><img src="{escape(file)}" alt="">' for name, file in images.items()),
        *_groups(report["groups"]),
        *_aspects(report["sizes"]),
        *_words(captions),
        *_columns(report["columns"]),
        *_unreadable(report),
        *_left_out(report["left_out"]),
        *_near_duplicates(report["near_duplicates"]),
        *_section("Repeated captions", ("caption", "occurrences"), captions["repeated"]),
        *_section("Truncated captions", ("caption",), truncated),
    ]
    return render_page(title, "".join(parts), style=_STYLE, policy=_POLICY)


def summary_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the most important statistics as (name, value), for the page and the terminal."""
    captions, sizes, duplicates = report["captions"], report["sizes"], report["near_duplicates"]
    if captions["truncated"] is None:
        truncated = captions["not_counted"]
    else:
        truncated = f"{captions['truncated']:,} (over {captions['tokens']} tokens)"
    lengths = f"median {captions['median_characters']:,}, longest {captions['longest_characters']:,}"
    rows = [
        ("records", f"{report['records']:,}, of which {report['scanned']:,} were scanned"),
        ("unreadable", f"{report['unreadable']:,} ({_percentage(report['unreadable'], report['scanned'])})"),
        *[("", f"{file['name']}: {file['reason']}") for file in report["unreadable_files"][:_MAX_UNREADABLE]],
        *[("note", _finding_text(finding)) for finding in report["left_out"]],
        ("captions", f"{captions['captions']:,}, of which {captions['distinct']:,} are distinct"),
        ("records without a caption", f"{captions['records_without']:,}"),
        ("records with several captions", f"{captions['records_with_several']:,}"),
        ("truncated captions", truncated),
        ("characters per caption", lengths),
        ("near-duplicate images", f"{duplicates['images']:,} in {duplicates['groups']:,} groups"),
    ]
    if sizes:
        rows += [
            ("sizes, height × width", f"{sizes['smallest']} … median {sizes['median']} … {sizes['largest']}"),
            (f"smaller than image_size {sizes['image_size']}", f"{sizes['smaller_than_image_size']:,}"),
        ]
    if report["read_per_second_and_core"]:
        rows.append(("read and decoded by one core", f"{report['read_per_second_and_core']:,} images/s"))
    return rows


def _finding_text(finding: Mapping[str, Any]) -> str:
    return Finding(**{**finding, "names": tuple(finding["names"])}).message()


def _verdict(report: Mapping[str, Any]) -> str:
    """Returns whether the data can be used, in one line."""
    if report["unusable"]:
        return f'<p class="bad">Unusable: {escape(report["unusable"])}.</p>'
    return '<p class="good">The data can be used.</p>'


def _groups(comparisons: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yields for each comparison the sizes of its groups, and the words that are more frequent with each group."""
    for comparison in comparisons:
        yield f"<h2>Balance: {escape(comparison['by'])}</h2>"
        ratio = comparison["ratio"]
        balance = (
            "some are never mentioned"
            if ratio is None
            else f"the most frequent has {ratio:g} times the records of the rarest"
        )
        yield f"<p>{len(comparison['groups'])} groups; {balance}.</p>"
        yield _histogram("group", [(group["name"], group["records"]) for group in comparison["groups"]])
        for group in comparison["groups"]:
            skews = group["skewed_words"]
            rows = [(skew["word"], f"{skew['with_group']:.1%}", f"{skew['with_others']:.1%}") for skew in skews]
            if rows:
                yield f"<p>More frequent with <b>{escape(group['name'])}</b>:</p>"
                yield table(("word", "of its records", "of other records"), rows)


def _aspects(sizes: Mapping[str, Any]) -> Iterable[str]:
    """Yields the distribution of aspect ratios."""
    if sizes:
        yield f"<h2>Aspect ratios</h2>{_histogram('width / height', list(sizes['aspects'].items()))}"


def _words(captions: Mapping[str, Any]) -> Iterable[str]:
    """Yields the frequent words."""
    if captions["words"]:
        yield f"<h2>Words</h2><p>{captions['distinct_words']:,} distinct words, by number of records:</p>"
        yield _histogram("word", captions["words"])


def _columns(columns: Mapping[str, Any]) -> Iterable[str]:
    """Yields the frequent values of each column."""
    for column, values in columns.items():
        yield f"<h2>Column {escape(column)}</h2><p>{values['distinct']:,} distinct values:</p>"
        yield _histogram("value", values["values"])


def _unreadable(report: Mapping[str, Any]) -> Iterable[str]:
    """Yields the unreadable records with reasons."""
    rows = [(file["name"], file["reason"]) for file in report["unreadable_files"]]
    return _section("Unreadable files", ("file", "reason"), rows, report["unreadable"])


def _left_out(findings: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yields what the data set has that is not used, with reasons."""
    rows = [
        (f"{finding['count']:,} {finding['what']}", ", ".join(finding["names"]), finding["reason"])
        for finding in findings
    ]
    return _section("Not used", ("what", "such as", "reason"), rows)


def _near_duplicates(duplicates: Mapping[str, Any]) -> Iterable[str]:
    """Yields the groups of near-duplicate images."""
    rows = [(", ".join(names),) for names in duplicates["names"]]
    return _section("Near-duplicate images", ("names",), rows, duplicates["groups"])


def _section(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], total: int | None = None
) -> Iterable[str]:
    """Yields a section with a table, unless it has no rows."""
    if rows:
        count = len(rows) if total is None else total
        yield f"<h2>{escape(title)}</h2>{table(heads, rows[:_MAX_ROWS])}"
        if count > _MAX_ROWS:
            yield f'<p class="note">{count - _MAX_ROWS:,} more.</p>'


def _histogram(head: str, rows: Sequence[tuple[str, int]]) -> str:
    """Returns a table of frequencies with bars."""
    highest = max((count for _, count in rows), default=0)
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{count:,}</td>'
        f'<td><span class="bar" style="width:{count / max(highest, 1) * 18:.2f}em"></span></td></tr>'
        for name, count in rows[:_MAX_ROWS]
    )
    more = f'<p class="note">{len(rows) - _MAX_ROWS:,} more in report.json.</p>' if len(rows) > _MAX_ROWS else ""
    return f"<table><tr><th>{escape(head)}</th><th>records</th></tr>{body}</table>{more}"


def _percentage(part: int, total: int) -> str:
    return f"{part / max(total, 1):.2%}"
