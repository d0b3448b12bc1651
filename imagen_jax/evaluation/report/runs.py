"""The runs of a report: their folders are read and checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.evaluation.report.contents import Benchmark, Fairness, FigureRow, Origin, Rate, Stage, Sweep, Votes
from imagen_jax.io.atomic import read_json
from imagen_jax.io.paths import as_path, bucket_path

MADE_BY = "imagen evaluate, sweep, benchmark_prompts, fairness, or votes --out"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has to report; empty or None for what it has not.

    Attributes:
        name: of its column.
        path: its folder, or the one file that was given.
        rates: rows of the judge of `imagen evaluate`.
        origin: of these.
        figures: of metrics, by name.
    """

    name: str
    path: Path
    rates: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    origin: Origin = Origin()
    figures: Mapping[str, FigureRow] = dataclasses.field(default_factory=dict)
    benchmark: Benchmark | None = None
    diagnostics: Sequence[Stage] = ()
    sweep: Sweep | None = None
    fairness: Fairness | None = None
    votes: Votes | None = None

    @property
    def folder(self) -> Path | None:
        """The folder; None if a file was given."""
        return None if self.path.suffix == ".json" else self.path

    def kinds(self) -> list[str]:
        """Returns what it has, by name."""
        return [
            kind
            for kind in ("rates", "figures", "benchmark", "sweep", "votes", "fairness", "diagnostics")
            if getattr(self, kind)
        ]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Returns what runs have to report, in order.

    Args:
        paths: folders of runs, or single JSON files.

    Raises:
        ConfigError: there are none, one is given twice, is missing or damaged, or has nothing to report.
    """
    if not paths:
        raise ConfigError("there are no runs: give folders, such as --runs=runs/scores,runs/sweep")
    places = [as_path(path) for path in paths]
    real = [str(path) if bucket_path(path) else str(path.resolve()) for path in places]
    for path, place in zip(paths, real, strict=True):
        if real.count(place) > 1:
            raise ConfigError(f"the run {path!r} is given twice: name each folder once")
    return [_read_run(name, path) for name, path in zip(_names(places), places, strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the ends of paths, as long as it takes to tell them apart."""
    parts = [[*path.absolute().parts[:-1], path.stem if path.suffix == ".json" else path.name] for path in paths]
    if any(bucket_path(path) for path in paths):
        parts = [str(path).split("/") for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_run(name: str, path: Path) -> Run:
    if path.suffix == ".json":
        files = [path]
        if not path.is_file():
            raise ConfigError(f"there is no file {str(path)!r}: give a folder of {MADE_BY}, or its JSON file")
    elif path.is_dir():
        files = sorted(path.glob("*.json"))
    else:
        raise ConfigError(f"there is no folder {str(path)!r}: give one of {MADE_BY}")
    found: dict[str, Any] = {}
    for file in files:
        found.update(_read_file(file))
    run = Run(name, path, **found)
    if not run.kinds():
        raise ConfigError(f"{str(path)!r} has nothing to report: give a folder of {MADE_BY}")
    return run


def _read_file(path: Path) -> dict[str, Any]:
    """Returns what a JSON file has, by attribute of `Run`; nothing for a file of another kind. Raises ConfigError."""
    try:
        value = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or first_line(error)}): give another run") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged ({first_line(error)}): run the command that wrote it again, or remove it"
        ) from error
    if path.name == "scores.json" and isinstance(value, dict):
        if isinstance(value.get("prompts"), dict) and "count" in value["prompts"]:
            return {"benchmark": _parse(path, Benchmark, value)}
        rates = {name: row for name, row in value.items() if name != "metrics"}
        return {
            "rates": _parse(path, dict[str, Rate], rates),
            "figures": _parse(path, dict[str, FigureRow], value.get("metrics", {})),
        }
    if path.name == "evaluation.json" and isinstance(value, dict):
        config = value.get("config")
        judge = config.get("judge") if isinstance(config, dict) else ""
        return {"origin": _parse(path, Origin, {"captions": value.get("captions", ""), "judge": judge or ""})}
    kinds = {"diagnostics.json": list[Stage], "sweep.json": Sweep, "fairness.json": Fairness, "scores.json": Benchmark}
    if path.name in kinds:
        return {path.stem: _parse(path, kinds[path.name], value)}
    if isinstance(value, dict) and {"models", "raters", "questions"} <= set(value):
        return {"votes": _parse(path, Votes, value)}
    return {}


def _parse(path: Path, kind: Any, value: Any) -> Any:
    """Returns a value of a file as a type. Raises ConfigError if it is of another."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        what = "is missing" if first["type"] == "missing" else "is of another type"
        raise ConfigError(
            f"{path} is not what the command of its name writes ({where} {what}): run that again, or remove the file"
        ) from error
