"""The tables of a report: what runs have of the same kind, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from imagen_jax.evaluation.report.cells import better, figure_cell, mean_cell, metric_name, rate_cell
from imagen_jax.evaluation.report.contents import Benchmark, Mean, Rate, Stage
from imagen_jax.evaluation.report.runs import Run
from imagen_jax.evaluation.report.table import LESS, MORE, NEITHER, Cell, Detail, Row, Table
from imagen_jax.images.array import format_height_width

_LOSS = "validation_loss_at_noise/"
_INTERVALS = "Intervals are 95%."
_Value = TypeVar("_Value")


def side_by_side(
    title: str, runs: Sequence[Run], columns: Sequence[Mapping[str, tuple[Cell, int]]], *notes: str
) -> Table:
    """Returns a table with a column for each run; rows are the names in order, "–" where a run has none.

    Args:
        title: of the table.
        runs: by column.
        columns: for each run, cells by label, and which values are better.
        notes: of the table.
    """
    directions = {label: direction for cells in columns for label, (_, direction) in cells.items()}
    rows = [
        Row(label, [cells[label][0] if label in cells else None for cells in columns], direction)
        for label, direction in directions.items()
    ]
    return Table(title, [run.name for run in runs], rows, notes)


def grouped(runs: Iterable[Run], key: Callable[[Run], _Value | None]) -> dict[_Value, list[Run]]:
    """Returns the runs by a key, in order, without those of which it is None."""
    groups: dict[_Value, list[Run]] = {}
    for run in runs:
        value = key(run)
        if value is not None:
            groups.setdefault(value, []).append(run)
    return groups


def _numbered(title: str, before: Sequence[Table]) -> str:
    """Returns a title that no table before has."""
    return f"{title} {len(before) + 1}" if before else title


def judge_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns the judges' rates: for each judge those of all captions, and those by kind of caption."""
    tables: list[Table] = []
    for (judge, _), group in grouped(runs, _judge_of).items():
        title = f"Alignment by the judge {judge}" if judge else _numbered("Alignment", tables)
        for is_part, name in ((False, title), (True, f"{title}, by kind of caption")):
            columns = [
                {
                    label: (rate_cell(row, _captions(run)), MORE)
                    for label, row in run.rates.items()
                    if (": " in label) == is_part
                }
                for run in group
            ]
            if any(columns):
                tables.append(side_by_side(name, group, columns, "Correct images; intervals are Wilson's, 95%."))
    return tables


def _judge_of(run: Run) -> tuple[str, tuple[str, ...]] | None:
    """Returns the judge of a run; the names of the rows where it is not known."""
    if not run.rates:
        return None
    return (run.origin.judge, ()) if run.origin.judge else ("", tuple(sorted(run.rates)))


def _captions(run: Run) -> dict[str, Detail]:
    """Returns what rates of a judge depend on: the captions, by which each row has its number of images."""
    count, digest = max(row.total for row in run.rates.values()), run.origin.captions
    return {"captions": Detail((count, digest), f"{count:,} ({digest[:12] or 'which is not known'})")}


def metric_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns the figures of metrics, with what they depend on."""
    found = [run for run in runs if run.figures]
    if not found:
        return []
    columns = [{metric_name(key): (figure_cell(row), better(key)) for key, row in run.figures.items()} for run in found]
    has_spread = any(cell.spread for cells in columns for cell, _ in cells.values())
    notes = ["± is the deviation over subsets or splits, or a mean's standard error."] if has_spread else []
    return [side_by_side("Metrics", found, columns, *notes)]


def benchmark_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns the scores of benchmarks by category, a table for each set of prompts and each kind of score."""
    tables = []
    for name, group in grouped(runs, lambda run: run.benchmark and run.benchmark.prompts.name).items():
        scored = [run for run in group if run.benchmark and run.benchmark.geneval]
        if scored:
            columns = [_question_cells(run.benchmark) for run in scored if run.benchmark]
            tables.append(side_by_side(f"Prompts {name}: questions answered", scored, columns, _INTERVALS))
        scored = [run for run in group if run.benchmark and run.benchmark.clip]
        if scored:
            columns = [_clip_cells(run.benchmark) for run in scored if run.benchmark]
            tables.append(side_by_side(f"Prompts {name}: CLIP score", scored, columns, _INTERVALS))
    return tables


def _prompt_details(benchmark: Benchmark, **more: str) -> dict[str, Detail]:
    prompts = benchmark.prompts
    return {
        "prompts": Detail((prompts.sha256, prompts.count), f"{prompts.count:,} ({prompts.sha256[:12]})"),
        "images of each": Detail(prompts.images_of_each, str(prompts.images_of_each)),
        **{name.replace("_", " "): Detail(value, value) for name, value in more.items()},
    }


def _question_cells(benchmark: Benchmark) -> dict[str, tuple[Cell, int]]:
    questions = benchmark.geneval
    assert questions is not None
    details = _prompt_details(benchmark, judge=questions.judge)
    rows = {**questions.categories, **questions.challenges, "all images": questions.all}
    cells = {label: (rate_cell(row, details), MORE) for label, row in rows.items()}
    overall = questions.overall
    mean = Rate(total=benchmark.prompts.count, rate=overall.mean, low=overall.low, high=overall.high)
    return cells | {"overall, the mean of categories": (rate_cell(mean, details), MORE)}


def _clip_cells(benchmark: Benchmark) -> dict[str, tuple[Cell, int]]:
    clip = benchmark.clip
    assert clip is not None
    details = _prompt_details(benchmark, CLIP=clip.model, kind_of_score=clip.kind)
    rows: dict[str, Mean] = {**clip.categories, **clip.challenges, "all images": clip.all}
    return {label: (mean_cell(row, details), MORE) for label, row in rows.items()}


def vote_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns how raters have voted, each comparison in a column."""
    found = [run for run in runs if run.votes]
    if not found:
        return []
    columns, notes = [], ["Shares of votes; A of decided leaves ties out. Intervals are 95%, pairs taken as groups."]
    for run in found:
        votes = run.votes
        assert votes is not None
        models = f"A is {votes.models.get('a')}, B is {votes.models.get('b')}"
        notes.append(f"{run.name}: {models}; raters: {len(votes.raters)}; pairs: {votes.pairs}")
        cells: dict[str, tuple[Cell, int]] = {}
        for question, table in votes.questions.items():
            for category, row in table.rows.items():
                shares = {"A": row.a, "tie": row.tie, "B": row.b} if category == "all" else {}
                for name, share in {**shares, "A of decided": row.a_of_decided}.items():
                    if share is not None:
                        cells[f"{question}, {category}: {name}"] = (rate_cell(share), NEITHER)
            if table.left is not None:
                cells[f"{question}: left of decided"] = (rate_cell(table.left), NEITHER)
            alpha = table.agreement.alpha
            if alpha is not None:
                cells[f"{question}: Krippendorff's alpha"] = (Cell(alpha, f"{alpha:.3f}"), NEITHER)
        columns.append(cells)
    return [side_by_side("Blind comparisons", found, columns, *notes)]


def fairness_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns the shares of groups, a table for each set of groups and targets."""
    tables: list[Table] = []
    for groups, found in grouped(runs, _groups_of).items():
        columns = []
        for run in found:
            fairness = run.fairness
            assert fairness is not None
            details = {
                "judge": Detail(fairness.judge, fairness.judge),
                "prompts": Detail(sorted(fairness.prompts), ", ".join(fairness.prompts)),
            }
            cells: dict[str, tuple[Cell, int]] = {
                name: (rate_cell(row), NEITHER) for name, row in fairness.groups.items()
            }
            images = details | {"images": Detail(fairness.none.of, f"{fairness.none.of:,}")}
            for label, distance, direction in (
                ("distance to the target", fairness.distance_to_target, LESS),
                ("the same, of images drawn from the target", fairness.distance_by_chance, NEITHER),
                ("distance to what training draws", fairness.distance_to_training, NEITHER),
            ):
                if distance is not None:
                    cells[label] = (Cell(distance, f"{distance:.3f}", details=images), direction)
            none = fairness.none
            cells["images of no group"] = (Cell(none.images, f"{none.images} of {none.of}"), NEITHER)
            columns.append(cells)
        target = "Targets: " + ", ".join(f"{name} {share:.1%}" for name, share in groups) + "."
        note = f"{target} Intervals are Wilson's, 95%; distances are total variation."
        tables.append(side_by_side(_numbered("Shares of groups", tables), found, columns, note))
    return tables


def _groups_of(run: Run) -> tuple[tuple[str, float], ...] | None:
    if run.fairness is None:
        return None
    return tuple((name, row.target) for name, row in run.fairness.groups.items())


def diagnostic_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns the diagnostics of stages, and their validation losses by noise level."""
    found = [run for run in runs if run.diagnostics]
    tables = []
    for is_loss, title in ((False, "Diagnostics of the stages"), (True, "Validation loss by noise level")):
        columns = [_diagnostic_cells(run.diagnostics, is_loss) for run in found]
        if any(columns):
            steps = [
                f"{run.name}: "
                + ", ".join(f"{name} at step {stage.step:,}" for name, stage in _by_size(run.diagnostics).items())
                for run in found
            ]
            tables.append(side_by_side(title, found, columns, *steps))
    return tables


def _diagnostic_cells(stages: Sequence[Stage], is_loss: bool) -> dict[str, tuple[Cell, int]]:
    return {
        f"{size}: {name.removeprefix(_LOSS).replace('_', ' ')}": (Cell(value, f"{value:.4g}"), NEITHER)
        for size, stage in _by_size(stages).items()
        for name, value in stage.metrics.items()
        if name.startswith(_LOSS) == is_loss
    }


def _by_size(stages: Sequence[Stage]) -> dict[str, Stage]:
    """Returns stages by the size of their images; one that refines images has the size of the stage before it."""
    named: dict[str, Stage] = {}
    for stage in stages:
        size: Any = stage.image_size
        name = format_height_width((size, size) if isinstance(size, int) else tuple(size))
        named[f"{name} refined" if name in named else name] = stage
    return named
