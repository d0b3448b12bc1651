"""Files of JSON values, one a line, that grow while a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import bucket_path
from imagen_jax.io.uploads import append_text, read_appended, replace_appended


def append_json_line(file: Path, value: Any) -> None:
    """Appends a value as one line."""
    append_text(file, json.dumps(value) + "\n")


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Returns the objects of a file, [] if there is none.

    A line that is not a JSON object, as a kill or a flipped bit leaves it, is skipped: it costs that line.
    """
    try:
        data = read_appended(file)
    except FileNotFoundError:
        return []
    values = []
    for line in data.split(b"\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            values.append(value)
    return values


def write_json_lines(file: Path, values: list[dict[str, Any]]) -> None:
    """Replaces a file by these values, atomically."""
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    if bucket_path(file) is None:
        atomic_write(file, data)
    else:
        replace_appended(file, data)
