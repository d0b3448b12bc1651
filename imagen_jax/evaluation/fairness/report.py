"""The shares of groups as an HTML page, in one file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.io.text import printable

NONE = ""  # the name of no group

_STYLE = """
:root { --ground: #fff; --text: #1b1b1f; --soft: #5a5a63; --line: #c9c9d1; --bar: #6a93c8; --mark: #1b1b1f; }
@media (prefers-color-scheme: dark) { :root { --ground: #16161a; --text: #ececf1; --soft: #a9a9b4; --line: #45454f;
--bar: #4f7cb8; --mark: #fff; } }
body { font: 16px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 62em; padding: 0 1em;
background: var(--ground); color: var(--text); }
h1 { font-size: 1.4em; } h2 { font-size: 1.1em; margin-top: 1.8em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .25em .9em .25em 0; text-align: left; vertical-align: middle; }
.number { text-align: right; white-space: nowrap; }
.soft { color: var(--soft); } .chart { display: block; width: 14em; height: 1.3em; }
.bar { fill: var(--bar); } .interval { stroke: var(--mark); stroke-width: 1.5; }
.target { stroke: var(--mark); stroke-width: 2; stroke-dasharray: 3 2; } .frame { fill: none; stroke: var(--line); }
.images { display: flex; flex-wrap: wrap; gap: .4em; } .images img { width: 96px; image-rendering: pixelated;
border: 1px solid var(--line); }
"""


def render_report(result: Mapping[str, Any], shown: Mapping[str, Sequence[str]]) -> str:
    """Returns the page.

    Args:
        result: see `measure.measure`.
        shown: some images of each group, and of none, as URLs.
    """
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Shares of groups</title><meta '
        f'name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
    )
    body = "".join([_summary(result), _groups(result), _prompts(result), _images(shown)])
    return f"{head}<body><main>{body}</main></body></html>\n"


def _summary(result: Mapping[str, Any]) -> str:
    none = result["none"]
    images = none["of"] - none["images"]
    outside = [name for name, row in result["groups"].items() if not row["within"]]
    verdict = (
        f"The target is outside of the interval of {', '.join(map(_escape, outside))}."
        if outside
        else "The target is within the interval of each group."
    )
    return (
        f"<h1>How open attributes come out</h1><p><b>{verdict}</b> {images} of {none['of']} images belong to one of "
        f"the groups; the judge is {_escape(result['judge'])}. Intervals are Wilson's, 95%, without errors of the "
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
        rows.append(f'<tr><th scope="row">{_escape(name)}</th>{cells}<td>{_chart(row)}</td></tr>')
    distances = (
        f"Distance to the target (total variation): {result['distance_to_target']:.3f}; so many images drawn from the "
        f"target would have {result['distance_by_chance']:.3f}"
    )
    if data:
        distances += f"; to what training draws: {result['distance_to_training']:.3f}"
    return (
        f'<h2>Groups</h2><div class="scroll"><table><tr>{top}</tr>{"".join(rows)}</table></div>'
        f'<p class="soft">Bars are shares with their intervals, dashed lines are targets. {distances}.</p>'
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
    heads = ["prompt", *(_escape(name or "none of them") for name in names)]
    top = "".join(f'<th scope="col"{_align(number)}>{head}</th>' for number, head in enumerate(heads))
    rows = []
    for prompt, counts in result["prompts"].items():
        cells = "".join(f'<td class="number">{counts.get(name, 0)}</td>' for name in names)
        rows.append(f'<tr><th scope="row">{_escape(prompt)}</th>{cells}</tr>')
    return f'<h2>Prompts</h2><div class="scroll"><table><tr>{top}</tr>{"".join(rows)}</table></div>'


def _images(shown: Mapping[str, Sequence[str]]) -> str:
    """Returns some images of each group."""
    parts = []
    for name, urls in shown.items():
        title = _escape(name or "none of them")
        pictures = "".join(f'<img src="{url}" alt="{title}, image {number}">' for number, url in enumerate(urls, 1))
        parts.append(f'<h2>{title}</h2><div class="images">{pictures or "no images"}</div>')
    return "".join(parts)


def _escape(text: str) -> str:
    return html.escape(printable(text))
