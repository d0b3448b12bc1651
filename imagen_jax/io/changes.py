"""What has changed between two trees of settings, in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 80


def shown(value: Any) -> str:
    """Returns a value's repr, cut to a length that a sentence can hold."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one dict with dotted keys; an empty dict is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, Mapping) and len(value) > 0
        flat |= flatten(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return flat


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Returns a sentence for each key of two flat dicts whose value has changed, in the order of `now`."""
    return {
        key: f"{key} was {shown(before.get(key, 'absent'))} and is now {shown(now.get(key, 'absent'))}"
        for key in {**now, **before}
        if before.get(key) != now.get(key)
    }
