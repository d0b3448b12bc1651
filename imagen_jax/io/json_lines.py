"""Files of JSON objects, one a line, that grow while a run writes them: a damaged line costs that line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen_jax.io.atomic import atomic_write
from imagen_jax.io.paths import bucket_path
from imagen_jax.io.uploads import append_text, read_appended, replace_appended

DAMAGED_SUFFIX = ".damaged"
_MAX_LISTED = 5
# where a damaged line break has joined two lines: json.dumps puts no single character between objects
_JOINED = re.compile(rb"(?<=\})[^{}](?=\{\")")
# a step or count beyond it is damage
_MAX_INTEGER = 2**53

IsValid = Callable[[dict[str, Any]], bool]


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """The lines of a file.

    Attributes:
        values: the objects, in order.
        lines: the bytes of each object's line, without the line break.
        damaged: the other lines, by number from 1. A last line that a kill has truncated is not one of them.
        content: all bytes of the file.
    """

    values: list[dict[str, Any]]
    lines: list[bytes]
    damaged: dict[int, bytes]
    content: bytes


def append_json_line(file: Path, value: Any) -> None:
    """Appends a value as one line. Raises OSError."""
    append_text(file, json.dumps(value) + "\n")


def scan_json_lines(file: Path, is_valid: IsValid = lambda value: True) -> JsonLines:
    """Returns the lines of a file; none if there is no such file.

    Args:
        file: its path.
        is_valid: whether an object has the shape of those that were written; a flipped bit may leave another one.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = read_appended(file)
    except FileNotFoundError:
        return JsonLines([], [], {}, b"")
    values, lines, damaged = [], [], {}
    *ended, last = content.split(b"\n")
    for number, line in enumerate([*ended, last], start=1):
        pieces = [line] if _parse(line, is_valid) is not None else _JOINED.split(line)
        for piece in pieces:
            value = _parse(piece, is_valid)
            if value is not None:
                values.append(value)
                lines.append(piece)
            elif piece and number <= len(ended):
                damaged[number] = line
    return JsonLines(values, lines, damaged, content)


def read_json_lines(file: Path, is_valid: IsValid = lambda value: True) -> list[dict[str, Any]]:
    """Returns the objects of a file, [] if there is none; damaged lines are left out, as in `scan_json_lines`."""
    return scan_json_lines(file, is_valid).values


def write_json_lines(file: Path, values: list[dict[str, Any]]) -> None:
    """Replaces a file by these values, atomically. Raises OSError."""
    replace_lines(file, [json.dumps(value).encode() for value in values])


def replace_lines(file: Path, lines: list[bytes]) -> None:
    """Replaces a file by these lines, atomically. Raises OSError."""
    data = join_lines(lines)
    if bucket_path(file) is None:
        atomic_write(file, data)
    else:
        replace_appended(file, data)


def join_lines(lines: list[bytes]) -> bytes:
    """Returns the content of a file with these lines."""
    return b"".join(line + b"\n" for line in lines)


def damage_message(file: Path, damaged: dict[int, bytes]) -> str:
    """Returns the sentence about damaged lines, which are moved to another file beside it."""
    numbers = sorted(damaged)
    more = f" and {len(numbers) - _MAX_LISTED} more" if len(numbers) > _MAX_LISTED else ""
    listed = ", ".join(map(str, numbers[:_MAX_LISTED])) + more
    return (
        f"{file} has {len(numbers)} damaged line(s), {listed}: they are moved to {file.name}{DAMAGED_SUFFIX}, and all "
        "others are kept"
    )


def is_count(value: Any) -> bool:
    """Returns whether a JSON value is a step or another count: an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INTEGER


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a number that fits a float; infinity and NaN are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= _MAX_INTEGER


def is_seconds(value: Any) -> bool:
    """Returns whether a JSON value is a finite number of at least 0."""
    return is_number(value) and math.isfinite(value) and value >= 0


def _parse(line: bytes, is_valid: IsValid) -> dict[str, Any] | None:
    """Returns the object of a line; None if it is not one, as a kill or a flipped bit leaves it."""
    try:
        # decoded strictly: json.loads takes bytes with a NUL for UTF-16
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_valid(value) else None
