"""Measures the shares of groups among the images of prompts that leave them open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.datasets.shapes.judge import rate_row
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.fairness.data_shares import DataShares
from imagen_jax.evaluation.fairness.groups import Group, distance_by_chance, total_variation
from imagen_jax.evaluation.fairness.judges import Judge
from imagen_jax.evaluation.fairness.report import NONE, render_report
from imagen_jax.evaluation.prompts.benchmark import BenchmarkFolder
from imagen_jax.evaluation.prompts.prompt_set import BenchmarkPrompt, PromptSet
from imagen_jax.images.html_page import image_uri
from imagen_jax.io.atomic import atomic_write, write_json
from imagen_jax.io.text import printable

RESULT, PAGE = "fairness.json", "fairness.html"
CATEGORY = "fairness"  # of the prompts, in GenEval's layout
_SHOWN = 12  # images of each group on the page
_SHOWN_SIZE = 128  # pixels of their longer side, at most


def open_prompts(prompts: Sequence[str], groups: Sequence[Group]) -> PromptSet:
    """Returns prompts as a set. Raises ConfigError for one that names a group."""
    for prompt in prompts:
        words = [word for group in groups for word in group.words]
        named = [word for word in words if re.search(rf"\b{re.escape(word)}\b", prompt, re.IGNORECASE)]
        if named:
            raise ConfigError(f"the prompt {prompt!r} names the group {named[0]!r}: give prompts that leave it open")
    return PromptSet(CATEGORY, [BenchmarkPrompt(prompt, CATEGORY) for prompt in dict.fromkeys(prompts)])


def measure(
    folder: BenchmarkFolder,
    groups: Sequence[Group],
    judge: Judge,
    judge_name: str,
    target: Mapping[str, float],
    data: Mapping[str, DataShares] | None = None,
) -> dict[str, Any]:
    """Judges the images of a folder, and writes `fairness.json` and `fairness.html` into it.

    Intervals are Wilson's, 95%, of the images; errors of the judge are not in them.

    Args:
        folder: of images.
        groups: the groups.
        judge: tells the group of an image.
        judge_name: for the report.
        target: the share that each group should have.
        data: see `data_shares`; None if it is not known.

    Returns:
        What `fairness.json` has: `groups`, by name the `correct` images of `total` that belong to one of the groups,
        `rate`, `low`, `high`, `target` and whether it is `within` the interval; `none`, images that belong to none;
        `prompts`, counts by prompt; `distance_to_target` and, with data, `data` and `distance_to_training`, total
        variations; `distance_by_chance`, what images drawn from the target would have.

    Raises:
        ConfigError: no image belongs to a group.
    """
    by_prompt, shown = _judge_all(folder, groups, judge)
    counts = sum(by_prompt.values(), Counter[str]())
    total = sum(counts[group.name] for group in groups)
    if not total:
        raise ConfigError(
            f"none of {counts[NONE]} images belongs to one of the groups {', '.join(group.name for group in groups)}: "
            "look at the images, and give other groups or another judge"
        )
    rows = {}
    for group in groups:
        row = rate_row(counts[group.name], total)
        share = target[group.name]
        rows[group.name] = {**row, "target": share, "within": row["low"] <= share <= row["high"]}
    shares = {name: row["rate"] for name, row in rows.items()}
    result: dict[str, Any] = {
        "judge": judge_name,
        "groups": rows,
        "none": {"images": counts[NONE], "of": total + counts[NONE]},
        "prompts": {prompt: dict(row) for prompt, row in by_prompt.items()},
        "distance_to_target": total_variation(shares, target),
        "distance_by_chance": distance_by_chance(target, total),
    }
    if data is not None:
        result["data"] = {name: one.to_json() for name, one in data.items()}
        result["distance_to_training"] = total_variation(shares, data["training"].shares())
    write_json(folder.path / RESULT, result)
    atomic_write(folder.path / PAGE, render_report(result, shown).encode())
    return result


def _judge_all(
    folder: BenchmarkFolder, groups: Sequence[Group], judge: Judge
) -> tuple[dict[str, Counter[str]], dict[str, list[str]]]:
    """Returns counts of groups by prompt, and some images of each group as data URLs."""
    by_prompt: dict[str, Counter[str]] = {}
    shown: dict[str, list[str]] = {name: [] for name in (*(group.name for group in groups), NONE)}
    for index, prompt in enumerate(folder.prompts):
        images = folder.images(index)
        names = [name or NONE for name in judge(images)]
        by_prompt.setdefault(prompt.text, Counter()).update(names)
        for name, image in zip(names, images, strict=True):
            if len(shown[name]) < _SHOWN:
                shown[name].append(image_uri(image, _SHOWN_SIZE))
    return by_prompt, shown


def format_result(result: Mapping[str, Any]) -> str:
    """Returns the shares as a table."""
    data = result.get("data")
    width = max(len(name) for name in result["groups"])
    columns = "    data  training" if data else ""
    lines = [f"{'':{width}}   images   share  95% interval     target{columns}"]
    for name, row in result["groups"].items():
        interval = f"{row['low']:.1%} – {row['high']:.1%}"
        known = "".join(f"{data[key]['shares'][name]:9.1%}" for key in ("data", "training")) if data else ""
        counts = f"{row['correct']:7.0f} {row['rate']:7.1%}"
        lines.append(f"{printable(name):{width}}  {counts}  {interval:15} {row['target']:7.1%}{known}")
    none = result["none"]
    lines.append(f"{none['images']} of {none['of']} images belong to none of them; judge: {printable(result['judge'])}")
    lines.append(
        f"distance to the target: {result['distance_to_target']:.3f}; {result['distance_by_chance']:.3f} by chance"
    )
    if data:
        lines.append(f"distance to what training draws: {result['distance_to_training']:.3f}")
    return "\n".join(lines)
