"""From config files, ConfigDicts and saved configs to typed objects, and back."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, overload

import ml_collections
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from imagen_jax.config import messages
from imagen_jax.config.fields import Group, groups_in
from imagen_jax.config.migrations import migrate
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json
from imagen_jax.io.paths import expand_user

Config = TypeVar("Config", bound=Group)
ConfigSource: TypeAlias = str | Path | ml_collections.ConfigDict | Mapping[str, Any] | Group
# keys that say which other keys their group has
TAGS = ("source", "network")


def default_config(
    schema: type[Group] = StageConfig, *, source: str = "shapes", network: str = "unet"
) -> ml_collections.ConfigDict:
    """Returns all keys of a schema with their defaults, for `get_config()` to change.

    Keys are not locked and values may change their type: `load_config` checks them.

    Args:
        schema: `StageConfig`, `EvaluationConfig` or `PretrainTextConfig`.
        source: the data source whose keys `data` has.
        network: the network whose keys `model` has.
    """
    return ml_collections.ConfigDict(_defaults(schema, (source, network)), type_safe=False)


def _defaults(schema: type[Group], tags: tuple[str, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        groups = groups_in(field.annotation)
        if isinstance(field.default, Group):
            group = next((group for group in groups if messages.tag(group) in tags), groups[0])
            tree[name] = _defaults(group, tags)
        elif field.default is not PydanticUndefined:
            tree[name] = dict(field.default) if isinstance(field.default, Mapping) else field.default
    return tree


@overload
def load_config(source: ConfigSource, overrides: Mapping[str, Any] | None = None) -> StageConfig: ...


@overload
def load_config(
    source: ConfigSource, overrides: Mapping[str, Any] | None = None, *, schema: type[Config]
) -> Config: ...


def load_config(
    source: ConfigSource, overrides: Mapping[str, Any] | None = None, *, schema: type[Any] = StageConfig
) -> Any:
    """Returns a typed, immutable config.

    Args:
        source: path of a config file with `get_config(variant)`, the variant after a colon, such as
            `configs/shapes_base.py:tiny`; files that are not in the working directory are looked up among those that
            come with the package. Or a `config.json`, a ConfigDict, nested dicts, or a typed config.
        overrides: values by dotted keys; strings are read as on a command line.
        schema: `StageConfig`, `EvaluationConfig` or `PretrainTextConfig`.

    Raises:
        ConfigError: the file cannot be used, or with everything that is wrong in the config.
    """
    if isinstance(source, (str, Path)):
        tree = _read(str(source), schema)
    elif isinstance(source, Group):
        tree = source.to_dict()
    else:
        tree = _plain(source)
    for key, value in _tags_first(overrides or {}):
        field = messages.field_at(schema, tree, key.split("."))
        _set(tree, key, read_value(value, field) if isinstance(value, str) else value, schema)
    return validate(tree, schema)


def validate(tree: Any, schema: type[Config]) -> Config:
    """Returns the typed config of nested dicts. Raises ConfigError with everything that is wrong."""
    tree = _plain(tree)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(*messages.problems(error, tree, schema)) from error


def change(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns a config with other values, given by dotted keys. Raises ConfigError."""
    tree = config.to_dict()
    for key, value in _tags_first(changes):
        _set(tree, key, value, type(config))
    return validate(tree, type(config))


def _tags_first(changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns changes by dotted keys in the order to make them: a source or network drops keys, and so comes first."""
    return sorted(changes.items(), key=lambda item: item[0].rpartition(".")[2] not in TAGS)


def to_json(config: Group) -> dict[str, Any]:
    """Returns a config as JSON can hold it: nested dicts and lists."""
    return _jsonable(config.to_dict())


def from_json(tree: Any, schema: type[Config] = StageConfig) -> Config:  # type: ignore[assignment]
    """Returns the typed config of a saved one, of this or an earlier schema version.

    Raises:
        ConfigError: it is of a later version, or with everything that is wrong.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError("a saved config must be a JSON object: restore it from a checkpoint's metadata")
    try:
        return validate(migrate(tree), schema)
    except RecursionError as error:
        raise ConfigError("the saved config is nested too deeply: restore it from a checkpoint's metadata") from error


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _jsonable(item) for name, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    """Returns ConfigDicts as dicts and lists as tuples, however nested."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Group):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


# files


def _read(source: str, schema: type[Group]) -> dict[str, Any]:
    """Returns what a config file describes, as nested dicts. Raises ConfigError."""
    name, suffix, variant = source.partition(".py:")
    path = _find_file(name + (".py" if suffix else ""))
    if path.suffix == ".json":
        try:
            tree = read_json(path)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{source!r} cannot be read as JSON ({error}): restore it") from error
        return migrate(tree) if schema is StageConfig and isinstance(tree, dict) else tree
    module = _run(path)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config file {source!r} has no function get_config(variant): see configs/shapes_base.py")
    variants = getattr(module, "VARIANTS", None)
    if variant and not inspect.signature(module.get_config).parameters:
        raise ConfigError(f"{path} takes no variant, and {variant!r} is given: leave it out")
    if variant and variants is not None and variant not in variants:
        named = ", ".join(f":{name}" for name in variants if name)
        raise ConfigError(f"{path} has no variant {variant!r}: give none{', or ' if named else ''}{named}")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise _failed(path, error) from error
    if not isinstance(config, (Mapping, ml_collections.ConfigDict, Group)):
        raise ConfigError(f"get_config() of {path} returns {type(config).__name__}: return a ConfigDict")
    return _plain(config)


def schema_of(source: str) -> type[Group]:
    """Returns the schema of a config file, told by its keys. Raises ConfigError if the file cannot be used."""
    keys = _read(source, StageConfig).keys()
    schemas: tuple[type[Group], ...] = (StageConfig, EvaluationConfig, PretrainTextConfig)
    return max(schemas, key=lambda schema: len(schema.model_fields.keys() & keys))


def _find_file(name: str) -> Path:
    """Returns the path of a config file: as given, or among those that come with the package.

    Raises:
        ConfigError: there is none.
    """
    path = Path(expand_user(name))
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"config {name!r} is a folder: give a file in it")
    if not path.is_absolute():
        relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
        for folder in _own_folders():
            if (folder / relative).is_file():
                return folder / relative
    raise ConfigError(f"config file {name!r} does not exist: give a path such as configs/shapes_base.py")


def _own_folders() -> list[Path]:
    """Returns where configs of the package are: installed with it, or beside it in a checkout."""
    spec = importlib.util.find_spec("imagen_jax.configs")
    installed = list(spec.submodule_search_locations or ()) if spec else []
    return [*map(Path, installed), Path(__file__).parents[2] / "configs"]


def _run(path: Path) -> ModuleType:
    """Returns a config file as a module. Raises ConfigError for whatever it raises."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {str(path)!r} is not a Python file: give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _failed(path, error) from error
    return module


def _failed(path: Path, error: Exception) -> ConfigError:
    """Returns the error on a config file that raised another."""
    if isinstance(error, ConfigError):
        return error
    text = " ".join(str(error).split())
    return ConfigError(f"config file {str(path)!r} fails with {type(error).__name__}: {text or 'no message'}")


# overrides


def _set(tree: dict[str, Any], key: str, value: Any, schema: type[Group]) -> None:
    """Sets a dotted key of nested dicts; unknown keys are left to `validate`.

    Raises ConfigError for a key within a value.
    """
    *path, name = key.split(".")
    group: Any = tree
    for step in path:
        if isinstance(group, dict) and group.get(step) is None:
            group[step] = {}
        group = group.get(step) if isinstance(group, dict) else None
    if not isinstance(group, dict):
        raise ConfigError(messages.unknown_key(key, schema, tree))
    if name in TAGS and group.get(name) != value:
        # what the new source or network does not have, goes with the old one
        known = messages.field_names(schema, path, value)
        for other in [other for other in group if known and other not in known]:
            del group[other]
    group[name] = _plain(value)


def read_value(text: str, field: FieldInfo | None) -> Any:
    """Returns the value that a text of a command line stands for, by the type of its field.

    What cannot be read stays text: `validate` says what is expected.
    """
    annotation = field.annotation if field else None
    if annotation is str:
        return text
    if annotation is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if annotation is float else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
