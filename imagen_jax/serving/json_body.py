"""JSON bodies of strangers: parsed with bounds on depth and numbers, and strictly."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from imagen_jax.serving.http_errors import HttpError, shown

_MAX_DIGITS = 400  # of a number: the largest double has 309
_MAX_DEPTH = 32
_FILE = re.compile(rb'"[A-Za-z0-9+/=:;,]{1024,}"')  # a long text in base64, which costs no more than its length


def check_size(body: bytes | bytearray, limit: int) -> None:
    """Raises HttpError for a JSON text that has more than `limit` bytes besides the files in it, in base64."""
    if len(body) > limit and len(_FILE.sub(b'""', body)) > limit:
        text = f"the body is larger than {limit:,} bytes, without the images in it: send a smaller one"
        raise HttpError(413, text, code="too_large")


def parse(body: bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        HttpError: it is not JSON in UTF-8, or nested or numbered beyond what any request needs.
    """

    def bounded(kind: type[int] | type[float]) -> Any:
        def read(text: str) -> int | float:
            if len(text) > _MAX_DIGITS:
                raise HttpError(
                    400, f"the body has the number {text[:20]}… of {len(text):,} characters: give a shorter"
                )
            return kind(text)

        return read

    def constant(text: str) -> Any:
        raise HttpError(400, f"the body has {text}, which is not JSON: give a finite number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise HttpError(400, f"the body has the field {shown(twice)} more than once: give it once")
        return tree

    try:
        tree = json.loads(
            body.decode("utf-8-sig"),
            parse_int=bounded(int),
            parse_float=bounded(float),
            parse_constant=constant,
            object_pairs_hook=unique,
        )
        _check_depth(tree)
    except UnicodeDecodeError as error:
        raise HttpError(400, "the body is not UTF-8: send JSON in UTF-8") from error
    except RecursionError as error:
        raise HttpError(400, f"the body is nested deeper than {_MAX_DEPTH} levels: send less") from error
    except ValueError as error:
        raise HttpError(400, f"the body is not JSON ({error}): send a JSON object, see /openapi.json") from error
    return tree


def _check_depth(tree: Any) -> None:
    """Raises HttpError if lists and objects are nested too deeply."""
    level = [tree]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, (list, dict))
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise HttpError(400, f"the body is nested deeper than {_MAX_DEPTH} levels: send less")
