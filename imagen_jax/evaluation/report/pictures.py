"""The images that a report shows of each run: grids of samples, plots, images of prompts and of optimal points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts.benchmark import GRID, METADATA
from imagen_jax.evaluation.prompts.formats import read_rows
from imagen_jax.evaluation.report.runs import Run
from imagen_jax.evaluation.report.sweeps import results_of
from imagen_jax.evaluation.sweep_folder import POINTS
from imagen_jax.images.grid import is_valid_png, read_png
from imagen_jax.images.html_page import image_uri, png_uri

_GRIDS = {"correct.png": "correct", "incorrect.png": "incorrect", "samples.png": "samples"}
_PROMPTS = 12  # of a benchmark, one of each category first
_PROMPT_SIDE = 256  # pixels
_POINT_IMAGES = 6
_POINTS = 8  # of a sweep


class Picture(NamedTuple):
    """An image: what it is of, and the image as a data URI."""

    title: str
    uri: str


def grids(run: Run) -> list[Picture]:
    """Returns the grids of samples of an evaluation. Raises ConfigError for a damaged one."""
    return list(_files(run, _GRIDS))


def diagnostic_plots(run: Run) -> list[Picture]:
    """Returns the plot of diagnostics. Raises ConfigError if it is damaged."""
    return list(_files(run, {"diagnostics.png": "diagnostics"})) if run.diagnostics else []


def _files(run: Run, names: dict[str, str]) -> Iterator[Picture]:
    for file, title in names.items():
        path = None if run.folder is None else run.folder / file
        if path is not None and path.exists():
            yield Picture(f"{run.name}: {title}", png_uri(_sound(path)))


def _sound(path: Path) -> Path:
    if not is_valid_png(path):
        raise ConfigError(f"{path} is damaged: run the command that wrote it again, or remove the file")
    return path


def prompt_images(run: Run) -> list[Picture]:
    """Returns images of some prompts in GenEval's layout, of each category first. Raises ConfigError."""
    if run.folder is None or not (run.benchmark or run.fairness):
        return []
    first: dict[str, list[tuple[str, Path]]] = {}
    for grid in sorted(run.folder.glob(f"[0-9]*/{GRID}")):
        if (grid.parent / METADATA).is_file():
            row = read_rows(grid.parent / METADATA)[0]
            first.setdefault(row.category, []).append((row.prompt, grid))
    chosen = [group[index] for index in range(_PROMPTS) for group in first.values() if index < len(group)]
    return [Picture(prompt, image_uri(read_png(_sound(path)), _PROMPT_SIDE)) for prompt, path in chosen[:_PROMPTS]]


def point_images(run: Run) -> list[tuple[str, list[str]]]:
    """Returns for the optimal points of a sweep their settings, and some of their images as data URIs."""
    if run.sweep is None or run.folder is None:
        return []
    results = results_of(run)
    optimal = sorted({index for curve in results.curves for index in curve.optimal})
    shown: list[tuple[str, list[str]]] = []
    for index in optimal[:_POINTS]:
        point = results.points[index]
        files: Sequence[Any] = sorted((run.folder / POINTS / point.name / "images").glob("*.png"))[:_POINT_IMAGES]
        if files:
            shown.append((point.label, [image_uri(read_png(_sound(file))) for file in files]))
    return shown
