"""Scores of a benchmark's images: by category and challenge, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax.evaluation.clip_score import ClipScore
from imagen_jax.evaluation.intervals import mean_of_groups, mean_of_rates, rate_of_groups
from imagen_jax.evaluation.prompts.prompt_set import BenchmarkPrompt
from imagen_jax.text.clip import CLIP

ALL = "all"


def question_scores(prompts: Sequence[BenchmarkPrompt], correct: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Returns scores of answers to GenEval's questions.

    Args:
        prompts: of the benchmark.
        correct: whether each image of each prompt is.

    Returns:
        `overall`, the mean of the categories' rates, as GenEval has it; `categories`, `challenges` if there are any,
        and `all`, with rates over images; intervals see `intervals.rate_of_groups`.
    """
    tables = _tables(prompts, correct, rate_of_groups)
    return {"overall": mean_of_rates(list(tables["categories"].values())), **tables}


def clip_scores(
    prompts: Sequence[BenchmarkPrompt],
    load_images: Callable[[int], Sequence[np.ndarray]],
    clip: CLIP,
    kind: str,
    batch_size: int,
) -> dict[str, Any]:
    """Returns CLIP scores of images, see `clip_score.SCORE_KINDS`.

    Args:
        prompts: of the benchmark.
        load_images: returns the images of the prompt of an index, [H, W, C] each.
        clip: the CLIP.
        kind: of the score.
        batch_size: images and texts to encode at once.

    Returns:
        `categories`, `challenges` if there are any, and `all`, with means and intervals.
    """
    score = ClipScore(kind)
    texts = clip.encode_text(score.prompts([prompt.text for prompt in prompts]), batch_size)
    values = []
    for index, text in enumerate(texts):
        vectors = clip.encode_images(load_images(index), batch_size)
        values.append(score.each(vectors, np.broadcast_to(text, vectors.shape)).tolist())
    return {"kind": kind, **_tables(prompts, values, mean_of_groups)}


def _tables(
    prompts: Sequence[BenchmarkPrompt], values: Sequence[Sequence[Any]], row: Callable[[list], Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the rows of categories, of challenges and of all."""

    def rows(names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        groups: dict[str, list] = {}
        for name, group in zip(names, values, strict=True):
            groups.setdefault(name, []).append(group)
        return {name: row(group) for name, group in groups.items() if name}

    tables: dict[str, Any] = {"categories": rows([prompt.category for prompt in prompts])}
    challenges = rows([prompt.challenge for prompt in prompts])
    if challenges:
        tables["challenges"] = challenges
    return {**tables, ALL: row(list(values))}


def format_question_scores(scores: Mapping[str, Any]) -> str:
    """Returns the rates as a table."""
    lines = ["correct / images     rate  95% interval    prompts"]
    for name, row in _named_rows(scores):
        counts = f"{row['correct']:7.0f} / {row['total']:<6.0f}"
        interval = f"{row['low']:.1%} – {row['high']:.1%}"
        lines.append(f"{counts}  {row['rate']:7.1%}  {interval:15} {row['groups']:6.0f}  {name}")
    overall = scores["overall"]
    lines.append(
        f"overall, the mean of {overall['parts']} categories: {overall['mean']:.4f} "
        f"({overall['low']:.4f} – {overall['high']:.4f})"
    )
    return "\n".join(lines)


def format_clip_scores(scores: Mapping[str, Any]) -> str:
    """Returns the CLIP scores as a table."""
    lines = [f"CLIP score ({scores['kind']})  95% interval       images  prompts"]
    for name, row in _named_rows(scores):
        interval = "-" if row["low"] is None else f"{row['low']:.4f} – {row['high']:.4f}"
        lines.append(f"{row['mean']:19.4f}  {interval:18} {row['total']:6.0f}  {row['groups']:6.0f}  {name}")
    return "\n".join(lines)


def _named_rows(scores: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the rows of categories, challenges and all, in order."""
    challenges = scores.get("challenges", {})
    return [*scores["categories"].items(), *challenges.items(), (ALL, scores[ALL])]
