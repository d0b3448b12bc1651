"""What is wrong with a config, in sentences: each names the key, the value given and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from imagen_jax.config.fields import MAX_FLOAT, Group, groups_in, is_too_large
from imagen_jax.config.migrations import OLD_VALUES, RENAMED
from imagen_jax.config.schema import MAX_COUNT
from imagen_jax.errors import ConfigError
from imagen_jax.io.changes import shown

MISSING = object()


def problems(error: ValidationError, tree: Any, schema: type[Group]) -> list[str]:
    """Returns one sentence for each wrong key of a tree, nested dicts, that does not fit a schema."""
    found: dict[str, str] = {}
    foreign: dict[tuple[tuple[str, ...], type[Group]], list[str]] = {}
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # of `fit`: the values by themselves are right
            return list(cause.problems)
        path, field = _locate(schema, detail["loc"])
        key = ".".join(path)
        if detail["type"] in ("extra_forbidden", "invalid_key"):
            name = str(detail["loc"][-1])
            unknown = ".".join([*path, name])
            groups = _groups_at(schema, path)
            if unknown not in RENAMED and any(name in group.model_fields for group in groups):
                # the tree may name no source: the default one is in the location
                group = next(group for group in groups if tag(group) == detail["loc"][-2])
                foreign.setdefault((tuple(path), group), []).append(name)
            else:
                found[unknown] = unknown_key(unknown, schema, tree)
        else:
            found.setdefault(key, _wrong_value(key, _value_at(tree, path), field, schema))
    for (path_of_group, group), names in foreign.items():
        others = _groups_at(schema, path_of_group)
        found[".".join([*path_of_group, names[0]])] = _foreign_keys(path_of_group, names, group, others)
    return [found[key] for key in sorted(found)]


def _foreign_keys(path: Sequence[str], names: Sequence[str], group: type[Group], groups: Sequence[type[Group]]) -> str:
    """Returns the sentence on keys at a path that others of its groups have, and the one that is chosen has not."""
    choice = "network" if "network" in group.model_fields else "source"
    shared = set.intersection(*(set(other.model_fields) for other in groups))
    own = ", ".join(name for name in group.model_fields if name not in shared)
    prefix = ".".join(path)
    keys = [f"{prefix}.{name}" for name in names]
    listed = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    verb, them = ("does", "it") if len(keys) == 1 else ("do", "them")
    fix = ""
    if len(path) == 1:
        fix = (
            f", or replace the group: config.{prefix} = default_config({choice}={tag(group)!r}).{prefix} in a config "
            f"file, or --config.{prefix}.{choice}={tag(group)} on a command line, which drops what does not go with it"
        )
    return (
        f"{listed} {verb} not go with {prefix}.{choice} {tag(group)!r}, which has {own or 'no keys of its own'}: "
        f"remove {them}{fix}"
    )


def unknown_key(key: str, schema: type[Group], tree: Any = None) -> str:
    """Returns the sentence on a key that a schema does not have: its present name, or the nearest key."""
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}: use the new name"
    keys = [name for name, _ in keys_of(schema, tree)]
    known = dict.fromkeys(
        [*keys, *(".".join(name.split(".")[:n]) for name in keys for n in range(1, name.count(".") + 1))]
    )
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    return f"{shown(key)[1:-1]} is not a key of the config: the nearest is {nearest}"


def keys_of(schema: type[Group], tree: Any = None, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields the dotted keys of a schema with their fields: of every source and network, or of those in a tree."""
    for name, field in schema.model_fields.items():
        groups = [] if get_origin(field.annotation) is dict else groups_in(field.annotation)
        value = tree.get(name) if isinstance(tree, Mapping) else None
        if not groups or type(None) in get_args(field.annotation):
            yield f"{prefix}{name}", field
        for group in _chosen(groups, value):
            yield from keys_of(group, value, f"{prefix}{name}.")


def _chosen(groups: list[type[Group]], value: Any) -> list[type[Group]]:
    """Returns the group that a value's source or network chooses; all, if it chooses none."""
    if len(groups) < 2 or not isinstance(value, Mapping):
        return groups
    return [group for group in groups if tag(group) in (value.get("source"), value.get("network"))] or groups


def tag(group: type[Group]) -> Any:
    """Returns the source or network of a group, None of others."""
    field = group.model_fields.get("source") or group.model_fields.get("network")
    return field.default if field else None


def _locate(schema: type[Group], location: Sequence[int | str]) -> tuple[list[str], FieldInfo | None]:
    """Returns the key that an error's location is at or within, as a path, and its field; None at the root."""
    path: list[str] = []
    groups, field = [schema], None
    named = False  # whether the next step is a name that the config chooses, as of a part
    for step in location:
        if named:
            path.append(str(step))
            named = False
        elif fields := [group.model_fields[str(step)] for group in groups if step in group.model_fields]:
            field = fields[0]
            path.append(str(step))
            groups = groups_in(field.annotation)
            named = get_origin(field.annotation) is dict and bool(groups)
        elif any(tag(group) == step for group in groups):
            groups = [group for group in groups if tag(group) == step]
        else:
            break
    return path, field


def field_at(schema: type[Group], tree: Any, path: Sequence[str]) -> FieldInfo | None:
    """Returns the field of a key, a path, in a tree that says which source and network there is; None if unknown."""
    location: list[str] = []
    groups = [schema]
    for step in path:
        tree = tree.get(step) if isinstance(tree, Mapping) else None
        location.append(step)
        chosen = _locate(schema, location)[1]
        groups = groups_in(chosen.annotation) if chosen else []
        if len(groups) > 1 and len(narrowed := _chosen(groups, tree)) == 1 and location != [*path]:
            location.append(str(tag(narrowed[0])))
    known, field = _locate(schema, location)
    return field if known == [*path] or (field and get_origin(field.annotation) is dict) else None


def field_names(schema: type[Group], path: Sequence[str], value: Any) -> Collection[str]:
    """Returns the keys of the group at a path that a source or network has; none if it is not known."""
    field = _locate(schema, path)[1]
    groups = groups_in(field.annotation) if field else []
    return next((group.model_fields for group in groups if tag(group) == value), {})


def _groups_at(schema: type[Group], path: Sequence[str]) -> list[type[Group]]:
    """Returns the groups that a source or network chooses from at a path; none at other paths."""
    field = _locate(schema, path)[1]
    groups = groups_in(field.annotation) if field else []
    return groups if len(groups) > 1 else []


def _value_at(tree: Any, path: list[str]) -> Any:
    for name in path:
        tree = tree.get(name, MISSING) if isinstance(tree, Mapping) else tree
    return tree


def _wrong_value(key: str, value: Any, field: FieldInfo | None, schema: type[Group]) -> str:
    """Returns the sentence on a value that is not of its field's type, range or choices."""
    if field is None:
        return f"the config {shown(value)} is not a group of keys: {', '.join(schema.model_fields)}"
    if key in OLD_VALUES and value == OLD_VALUES[key][0]:
        return f"{key} {value!r} is now {OLD_VALUES[key][1]!r}: use the new value"
    groups = groups_in(field.annotation)
    if groups and isinstance(value, Mapping) and tag(groups[0]):
        name = "network" if "network" in groups[0].model_fields else "source"
        names = ", ".join(str(tag(group)) for group in groups)
        given = f"{shown(value[name])} is not known" if name in value else "is missing"
        return f"{key}.{name} {given}: choose one of {names}"
    if value is MISSING:
        return f"{key} is missing: give {expected(field)}"
    limit = f", up to {MAX_FLOAT:g}, as float32 holds" if field.annotation is float and is_too_large(value) else ""
    return f"{key} {shown(value)} is not valid: expected {expected(field)}{limit}"


def expected(field: FieldInfo | None) -> str:
    """Returns what values a field accepts, as a phrase."""
    if field is None:
        return "a group of keys"
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    groups = groups_in(field.annotation)
    if text := extra.get("expected"):
        return str(text)
    if groups:
        return f"a group of keys, such as {', '.join(groups[0].model_fields)}"
    if isinstance(choices := extra.get("choices"), list) and choices:
        return f"one of {', '.join(repr(choice) if choice == '' else str(choice) for choice in choices)}"
    if field.annotation is bool:
        return "True or False"
    if field.annotation is str:
        return "text, not empty" if bounds(field) else "text"
    kind = "an integer" if field.annotation is int else "a finite number"
    return f"{kind} {bounds(field)}".rstrip()


def bounds(field: FieldInfo) -> str:
    """Returns the range of a field as a phrase; empty if it has none."""
    limits: dict[str, Any] = {}
    for item in field.metadata:
        limits |= {name: getattr(item, name) for name in ("ge", "gt", "le", "lt", "min_length") if hasattr(item, name)}
    if "min_length" in limits:
        return "not empty"
    low = f"[{limits['ge']:g}" if "ge" in limits else f"({limits['gt']:g}" if "gt" in limits else ""
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})" if "lt" in limits else ""
    if low and high and limits.get("le") != MAX_COUNT:  # which is no limit that a user would meet
        return f"in {low}, {high}"
    if low:
        return f"{'of at least' if low[0] == '[' else 'above'} {low[1:]}"
    return ""
