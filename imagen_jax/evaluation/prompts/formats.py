"""The files of prompts that their authors publish: PartiPrompts (TSV), GenEval (JSON lines), DrawBench (CSV).

A format is known by the suffix of the file and the names of its columns. Anyone's own prompts can be in any of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.errors import ConfigError, first_line, require
from imagen_jax.evaluation.prompts.questions import check_question

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
_MAX_BYTES = 2**26
_MAX_CHARACTERS = 10_000  # of a prompt
_PROMPT_COLUMNS = ("Prompt", "Prompts", "prompt", "prompts")
_CATEGORY_COLUMNS = ("Category", "category", "tag")
_CHALLENGE_COLUMNS = ("Challenge", "challenge")


class Row(NamedTuple):
    """A row of a file, see `BenchmarkPrompt`."""

    prompt: str
    category: str
    challenge: str = ""
    question: Mapping[str, Any] | None = None


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of a file of prompts.

    Args:
        path: a `.tsv` file with the columns Prompt, Category and, if it has them, Challenge and Note, as
            PartiPrompts.tsv has; a `.csv` file with Prompts and Category, as DrawBench's; a `.jsonl` file with `prompt`
            and `tag` in each line, and for GenEval's questions `include` and `exclude`; or a `.parquet` file with such
            columns.

    Raises:
        ConfigError: it cannot be read, has another format, or has no prompts.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path} is not a file of prompts: expected {', '.join(SUFFIXES)}, such as PartiPrompts.tsv, GenEval's "
            "evaluation_metadata.jsonl or DrawBench's .csv"
        )
    records: Iterable[tuple[str, Mapping[str, Any]]]
    if path.suffix == ".parquet":
        records = _read_parquet(path)
    else:
        text = _read_text(path)
        records = _json_records(text, path) if path.suffix == ".jsonl" else _table_records(text, path)
    rows = [_row(record, f"{path}, {place}") for place, record in records]
    if not rows:
        raise ConfigError(f"{path} has no prompts: give a file with one at least")
    return rows


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_BYTES // 2**20} MiB: give a file of prompts")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({first_line(error)}): copy it again") from error


def _json_records(text: str, path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields the objects of the lines."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number} is not JSON ({first_line(error)}): copy the file again"
            ) from error
        if not isinstance(value, dict):
            raise ConfigError(f"{path}, line {number} is not an object: expected {{'tag': …, 'prompt': …}}")
        yield f"line {number}", value


def _table_records(text: str, path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields the rows of a table by the names of its columns."""
    if path.suffix == ".tsv":  # quotation marks are characters of prompts there
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for record in reader:
            yield f"line {reader.line_num}", record
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num} is damaged ({error}): copy the file again") from error


def _read_parquet(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the rows of a Parquet file."""
    parquet = require("pyarrow.parquet", "data")
    try:
        records = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's own
        raise ConfigError(f"{path} cannot be read as Parquet ({first_line(error)}): copy it again") from error
    return [(f"row {number}", record) for number, record in enumerate(records)]


def _row(record: Mapping[str, Any], place: str) -> Row:
    """Returns the row of a record. Raises ConfigError."""
    prompt, category = _value(record, _PROMPT_COLUMNS), _value(record, _CATEGORY_COLUMNS)
    if not prompt or not category:
        missing = ("prompt", "Prompt or Prompts") if not prompt else ("category", "Category or tag")
        columns = ", ".join(str(name) for name in record) or "none"
        raise ConfigError(f"{place} has no {missing[0]}: expected a column {missing[1]}, and it has {columns}")
    if len(prompt) > _MAX_CHARACTERS:
        raise ConfigError(f"{place} has a prompt of {len(prompt):,} characters, more than {_MAX_CHARACTERS:,}: cut it")
    question = None
    if "include" in record or "exclude" in record:
        question = {**record, "tag": category, "prompt": prompt}
        check_question(question, place)
    return Row(prompt, category, _value(record, _CHALLENGE_COLUMNS), question)


def _value(record: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the text of the first of the columns that a record has."""
    values = (record[name] for name in names if isinstance(record.get(name), str))
    return next(values, "").strip()
