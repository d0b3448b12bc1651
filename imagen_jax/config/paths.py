"""The paths in a config: the values of keys whose type is `fields.PathText`.

A saved config has them as they were given: hosts that share a run may have different home folders. `~` is expanded
where a path is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic.fields import FieldInfo

from imagen_jax.config.fields import Group, IsPath

AnyGroup = TypeVar("AnyGroup", bound=Group)


def map_paths(group: AnyGroup, change: Callable[[str], str]) -> AnyGroup:
    """Returns a copy of a group of keys in which each path, also of groups in it, is replaced by `change(path)`.

    Args:
        group: a config, or a part of one.
        change: such as `io.paths.expand_user`. What it raises is passed on.
    """
    update = {}
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        changed = _change_texts(value, change) if holds_paths(field) else _change_groups(value, change)
        if changed != value:
            update[name] = changed
    return group.model_copy(update=update)


def holds_paths(field: FieldInfo) -> bool:
    """Returns whether the value of a key is a path, or has paths within tuples or dicts."""
    return any(isinstance(item, IsPath) for item in (*field.metadata, *_annotations(field.annotation)))


def _annotations(annotation: Any) -> Iterator[Any]:
    """Yields what an annotation consists of, the metadata of `Annotated` included; groups are not entered."""
    for part in get_args(annotation):
        yield part
        yield from _annotations(part)


def _change_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _change_texts(item, change) for name, item in value.items()}
    return tuple(_change_texts(item, change) for item in value) if isinstance(value, tuple) else value


def _change_groups(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, Group):
        return map_paths(value, change)
    if isinstance(value, Mapping):
        return {name: _change_groups(item, change) for name, item in value.items()}
    return value
