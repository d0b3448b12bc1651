"""Configs as text: a full listing, the difference of two, and the reference of all keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from imagen_jax.config.fields import Group, groups_in
from imagen_jax.config.messages import bounds, tag
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.io.changes import flatten

INTRODUCTION = """# Configuration

Every key of a config, by group, as the schema declares it (`imagen_jax/config/schema.py`). This file is generated:
`imagen config --reference > docs/configuration.md`.

A config file, such as `configs/shapes_base.py`, has a function `get_config(variant="")` that starts from
`default_config()` and changes what its experiment changes. `--config=configs/shapes_base.py:tiny` chooses a variant,
`--config.training.steps=100` changes a key, and `imagen config --config=FILE` prints the full config. Wrong values and
unknown keys are reported all at once. A saved `config.json` has a schema version: configs of earlier versions are
migrated when they are loaded.

A size is one number for a square, or a pair (height, width).
"""
HEADER = "| key | type | default | range or choices | unit | meaning | source |\n|---|---|---|---|---|---|---|"


def describe(config: Group) -> str:
    """Returns all keys of a config with their values, one per line; `*` marks values that are not the default."""
    values, defaults = flatten(config.to_dict()), flatten(_defaults(config))
    lines = [
        f"{'*' if key not in defaults or value != defaults[key] else ' '} {key} = {value!r}"
        for key, value in values.items()
    ]
    return "\n".join(lines)


def diff(a: Group, b: Group) -> str:
    """Returns the keys that differ between two configs with both values, one per line."""
    first, second = flatten(a.to_dict()), flatten(b.to_dict())
    keys = [key for key in {**first, **second} if first.get(key, first) != second.get(key, second)]
    width = max(map(len, keys), default=0)
    lines = [f"{key:{width}}  {_value(first, key)} -> {_value(second, key)}" for key in keys]
    return "\n".join(lines) or "the configs are equal"


def _value(flat: dict[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "(no such key)"


def _defaults(config: Group) -> dict[str, Any]:
    """Returns the defaults of a config's keys, nested, those of its own source and network among them."""
    tree = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        tree[name] = _defaults(value) if isinstance(value, Group) else field.default
    return tree


def reference_markdown() -> str:
    """Returns docs/configuration.md: a table of keys for each group of the schema."""
    parts = [INTRODUCTION]
    for schema, title in (
        (StageConfig, "A stage"),
        (EvaluationConfig, "An evaluation (`imagen evaluate`)"),
        (PretrainTextConfig, "The text encoder of shapes (`imagen pretrain_text`)"),
    ):
        parts += [f"## {title}\n", *_tables(schema, "")]
    return "\n".join(parts)


def _tables(schema: type[Group], prefix: str) -> Iterator[str]:
    """Yields the table of a group's own keys, then those of the groups in it."""
    own = {name: field for name, field in schema.model_fields.items() if not _is_group(field)}
    yield _table(own)
    for name, field in schema.model_fields.items():
        if not _is_group(field):
            continue
        groups = groups_in(field.annotation)
        if prefix == "" and name == "data" and schema is EvaluationConfig:
            yield "### `data`\n\nThe keys are those of a stage's `data`.\n"
            continue
        yield f"### `{prefix}{name}`\n\n{field.description}\n"
        if len(groups) == 1:
            yield from _tables(groups[0], f"{prefix}{name}.")
            continue
        shared = set.intersection(*(set(group.model_fields) for group in groups))
        choice = "network" if "network" in shared else "source"
        yield _table(
            {name: groups[0].model_fields[name] for name in groups[0].model_fields if name in shared - {choice}}
        )
        for group in groups:
            rest = {name: field for name, field in group.model_fields.items() if name not in shared}
            yield f'With `{choice} = "{tag(group)}"`: {(group.__mro__[1].__doc__ or "").strip()}\n'
            if rest:
                yield _table({name: field for name, field in rest.items() if not _is_group(field)})
    for name, field in schema.model_fields.items():
        if prefix == "" and name == "data" and schema is StageConfig:
            seen: set[type[Group]] = set()
            for group in groups_in(field.annotation):
                for inner, inner_field in group.model_fields.items():
                    for nested in groups_in(inner_field.annotation):
                        if nested not in seen and inner in ("transform", "balance"):
                            seen.add(nested)
                            yield f"### `data.{inner}`\n\n{inner_field.description}\n"
                            yield _table(dict(nested.model_fields))


def _is_group(field: FieldInfo) -> bool:
    return isinstance(field.default, Group)


def _table(fields: dict[str, FieldInfo]) -> str:
    return "\n".join([HEADER, *(_row(name, field) for name, field in fields.items())]) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = "(required)" if field.is_required() else f"`{field.default!r}`"
    cells = [f"`{name}`", _type_name(field), default, _range(field), extra.get("unit"), field.description]
    return "| " + " | ".join(str(cell or "").replace("|", "\\|") for cell in [*cells, extra.get("source")]) + " |"


def _type_name(field: FieldInfo) -> str:
    annotation = field.annotation
    if annotation in (int, float, str, bool):
        return {int: "int", float: "float", str: "text", bool: "bool"}[annotation]  # type: ignore[index]
    if get_origin(annotation) is Literal:
        return "int"
    if groups_in(annotation):
        return "groups" if get_origin(annotation) is dict else "group or None"
    if get_origin(annotation) in (tuple, dict):
        return get_origin(annotation).__name__  # type: ignore[union-attr]
    return " or ".join(
        "tuple" if get_origin(one) is tuple else getattr(one, "__name__", "text") for one in get_args(annotation)
    )


def _range(field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    if choices := extra.get("choices"):
        return ", ".join(f"`{choice}`" if choice != "" else "empty" for choice in choices)  # type: ignore[union-attr]
    return str(extra.get("expected") or bounds(field).removeprefix("in "))
