"""The shares of groups as an HTML page, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.images.html_page import escape, render_page

NONE = ""  # the name of no group

# after that of all pages
_STYLE = """
.scroll { overflow-x: auto; }
td, th { padding: .25em .9em .25em 0; vertical-align: middle; }
.number { text-align: right; white-space: nowrap; }
.chart { display: block; width: 14em; height: 1.3em; }
.bar { fill: var(--bar); } .interval { stroke: var(--text); stroke-width: 1.5; }
.target { stroke: var(--text); stroke-width: 2; stroke-dasharray: 3 2; } .frame { fill: none; stroke: var(--control); }
.images { display: flex; flex-wrap: wrap; gap: .4em; } .images img { width: 96px; image-rendering: pixelated; }
"""


def render_report(result: Mapping[str, Any], shown: Mapping[str, Sequence[str]]) -> str:
    """Returns the page.

    Args:
        result: see `measure.measure`.
        shown: some images of each group, and of none, as URLs.
    """
    body = "".join([_summary(result), _groups(result), _prompts(result), _images(shown)])
    return render_page("Shares of groups", f"<main>{body}</main>", style=_STYLE)


def _summary(result: Mapping[str, Any]) -> str:
    none = result["none"]
    images = none["of"] - none["images"]
    outside = [name for name, row in result["groups"].items() if not row["within"]]
    verdict = (
        f"The target is outside of the interval of {', '.join(map(escape, outside))}."
        if outside
        else "The target is within the interval of each group."
    )
    return (
        f"<h1>How open attributes come out</h1><p><b>{verdict}</b> {images} of {none['of']} images belong to one of "
        f"the groups; the judge is {escape(result['judge'])}. Intervals are Wilson's, 95%, without errors of the "
        "judge; one of 20 misses by chance.</p>"
    )


def _groups(result: Mapping[str, Any]) -> str:
    """Returns the table of groups: shares with bars, target, and the data's shares."""
    data = result.get("data", {})
    heads = ["group", "images", "share", "95% interval", "target", *data, ""]
    top = "".join(f'<th scope="col"{_align(number)}>{head}</th>' for number, head in enumerate(heads))
    rows = []
    for name, row in result["groups"].items():
        values = [
            f"{row['correct']:.0f}",
            f"{row['rate']:.1%}",
            f"{row['low']:.1%} – {row['high']:.1%}",
            f"{row['target']:.1%}",
            *(f"{one['shares'][name]:.1%}" for one in data.values()),
        ]
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}<td>{_chart(row)}</td></tr>')
    distances = (
        f"Distance to the target (total variation): {result['distance_to_target']:.3f}; so many images drawn from the "
        f"target would have {result['distance_by_chance']:.3f}"
    )
    if data:
        distances += f"; to what training draws: {result['distance_to_training']:.3f}"
    return (
        f'<h2>Groups</h2><div class="scroll"><table><tr>{top}</tr>{"".join(rows)}</table></div>'
        f'<p class="note">Bars are shares with their intervals, dashed lines are targets. {distances}.</p>'
    )


def _align(column: int) -> str:
    """Returns the attribute of a column's head: all but the first have numbers."""
    return ' class="number"' if column else ""


def _chart(row: Mapping[str, float]) -> str:
    """Returns a bar with its interval and the target, as SVG."""
    rate, low, high, target = (100 * row[key] for key in ("rate", "low", "high", "target"))
    return (
        '<svg class="chart" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar" width="{rate:.2f}" height="10"/><rect class="frame" width="100" height="10"/>'
        f'<path class="interval" vector-effect="non-scaling-stroke" d="M{low:.2f} 5H{high:.2f}"/>'
        f'<path class="target" vector-effect="non-scaling-stroke" d="M{target:.2f} 0V10"/></svg>'
    )


def _prompts(result: Mapping[str, Any]) -> str:
    """Returns the counts by prompt."""
    names = [*result["groups"], NONE]
    heads = ["prompt", *(escape(name or "none of them") for name in names)]
    top = "".join(f'<th scope="col"{_align(number)}>{head}</th>' for number, head in enumerate(heads))
    rows = []
    for prompt, counts in result["prompts"].items():
        cells = "".join(f'<td class="number">{counts.get(name, 0)}</td>' for name in names)
        rows.append(f'<tr><th scope="row">{escape(prompt)}</th>{cells}</tr>')
    return f'<h2>Prompts</h2><div class="scroll"><table><tr>{top}</tr>{"".join(rows)}</table></div>'


def _images(shown: Mapping[str, Sequence[str]]) -> str:
    """Returns some images of each group."""
    parts = []
    for name, urls in shown.items():
        title = escape(name or "none of them")
        pictures = "".join(f'<img src="{url}" alt="{title}, image {number}">' for number, url in enumerate(urls, 1))
        parts.append(f'<h2>{title}</h2><div class="images">{pictures or "no images"}</div>')
    return "".join(parts)
