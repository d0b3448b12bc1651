"""What a key is: how it is declared, which types it may have, and groups of keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Self, get_args

import jax.numpy as jnp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from imagen_jax.models.layers import ATTENTION_TYPES

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Beyond these a number is a typing error: memory or time would end before the run does.
MAX_SIDE = 8192
MAX_CHANNELS = 2**16
MAX_COUNT = 2**40
MAX_EXAMPLES = 2**63 - 1
MAX_FLOAT = 3e38  # float32 and bfloat16 hold little more; beyond it a number would be infinite on the device


def key(
    default: Any,
    text: str,
    *,
    unit: str = "",
    source: str = "",
    choices: Collection[Any] = (),
    expected: str = "",
    **limits: Any,
) -> Any:
    """Declares a key.

    Args:
        default: of the key; `...` if it has none.
        text: one sentence that says what the key is.
        unit: of the value.
        source: paper and equation or section.
        choices: the values allowed, if they can be listed.
        expected: what is allowed, where type, range and choices do not say it.
        **limits: `ge`, `gt`, `le`, `lt`, `min_length` and others of pydantic's `Field`.

    Returns:
        The field.
    """
    extra: dict[str, Any] = {"unit": unit, "source": source, "choices": list(choices), "expected": expected}
    if "min_length" in limits:
        limits.setdefault("validate_default", True)
    return Field(default, description=text, json_schema_extra=extra, **limits)


def _all_of(check: Callable[[Any], bool]) -> AfterValidator:
    """Makes a validator that refuses values for which `check` is false; the field's `expected` is the message."""

    def validated(value: Any) -> Any:
        if not check(value):
            raise ValueError("expected")
        return value

    return AfterValidator(validated)


def _is_size(value: int | tuple[int, ...]) -> bool:
    sides = value if isinstance(value, tuple) else (value,)
    return len(sides) in (1, 2) and all(0 <= side <= MAX_SIDE for side in sides)


def _is_background(value: int | tuple[int, int, int]) -> bool:
    return all(0 <= level <= 255 for level in (value if isinstance(value, tuple) else (value,)))


def _are_attention_types(value: tuple[str, ...]) -> bool:
    return all(kind in ATTENTION_TYPES for kind in value)


def _is_suffix(value: str | tuple[str, ...]) -> bool:
    suffixes = (value,) if isinstance(value, str) else value
    return all(len(suffix) > 1 and suffix[0] in "._-" and not set("/, ") & set(suffix) for suffix in suffixes)


SizeValue = Annotated[int | tuple[int, ...], _all_of(_is_size)]
Text = Annotated[str, _all_of(lambda text: "\0" not in text)]
Texts = tuple[Text, ...]


class IsPath:
    """Marks the type of a key whose text names a file or a folder, in which `paths.map_paths` expands `~`."""


PathText = Annotated[Text, IsPath()]
SuffixValue = Annotated[Text | Texts, _all_of(_is_suffix)]
AttentionTypes = Annotated[tuple[str, ...], _all_of(_are_attention_types)]
Counts = Annotated[tuple[int, ...], _all_of(lambda counts: all(0 <= count <= 256 for count in counts))]
Widths = Annotated[tuple[int, ...], _all_of(lambda widths: all(1 <= width <= MAX_CHANNELS for width in widths))]
Multiples = Annotated[tuple[int, ...], _all_of(lambda multiples: all(1 <= multiple <= 64 for multiple in multiples))]
Levels = Annotated[tuple[float, float], _all_of(lambda pair: 0 <= pair[0] <= pair[1] <= 1)]
Interval = Annotated[tuple[float, float], _all_of(lambda pair: 0 <= pair[0] < pair[1] <= 1)]
Background = Annotated[int | tuple[int, int, int], _all_of(_is_background)]
ThresholdMax = Annotated[float, _all_of(lambda most: most == 0 or most >= 1)]
RateFactors = Annotated[
    tuple[tuple[Text, float], ...], _all_of(lambda pairs: all(0 <= factor <= 1000 for _, factor in pairs))
]
SpikeFactor = Annotated[float, _all_of(lambda factor: factor == 0 or factor > 1)]
Devices = Annotated[int, _all_of(lambda count: count == -1 or count > 0)]
SIZE = f"an integer for a square, or a pair (height, width), each up to {MAX_SIDE}"
KINDS = ", ".join(ATTENTION_TYPES)


class Group(BaseModel):
    """A group of keys, immutable. Integers are accepted for floats, lists for tuples; nothing else is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_overflow(cls, value: Any) -> Any:
        """Refuses a finite number that float32 does not hold; keys that may be infinite say so themselves."""
        if is_too_large(value):
            raise ValueError("expected")
        return value

    @field_validator("*")
    @classmethod
    def _check_choice(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses a value that is not among the field's choices."""
        extra = cls.model_fields[str(info.field_name)].json_schema_extra
        choices = extra["choices"] if isinstance(extra, dict) else None
        # by type too: True is not 1
        if isinstance(choices, list) and choices and not any(value == c and type(value) is type(c) for c in choices):
            raise ValueError("expected")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Returns the group as nested dicts; sequences are tuples."""
        return self.model_dump()

    def with_changes(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """Returns a copy with other values.

        Args:
            changes: values by dotted keys, such as `{"training.steps": 7}`. Where `data.source` or `model.network`
                changes, the keys that the new one does not have are dropped.
            **more: values by keys of this group.

        Raises:
            ConfigError: a key is unknown or a value is wrong.
        """
        from imagen_jax.config.load import change

        return change(self, {**(changes or {}), **more})


def is_too_large(value: Any) -> bool:
    """Returns whether a value is a finite number that float32 does not hold."""
    return isinstance(value, (int, float)) and MAX_FLOAT < abs(value) < float("inf")


def groups_in(annotation: Any) -> list[type[Group]]:
    """Returns the groups that an annotation consists of: one, several that a tag chooses from, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Group):
        return [annotation]
    return [group for argument in get_args(annotation) for group in groups_in(argument)]
