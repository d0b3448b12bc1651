"""What clients send, and how it becomes a request of the engine: types by pydantic, limits of the server here."""

from __future__ import annotations

import math
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from imagen_jax.diffusion.keys import MAX_SEED
from imagen_jax.errors import unknown_name_error
from imagen_jax.serving.client_settings import CLIENT_SETTINGS
from imagen_jax.serving.http_errors import HttpError, shown
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.jobs import EditKind, JobRequest

# A JavaScript number holds every integer below it, so that a page can show the seed that was chosen.
_RANDOM_SEEDS = 2**53
_MAX_KEY = 255  # characters of an idempotency key
_KEPT_CONTROLS = "\t\n\r"


def _expect(is_right: Any, expected: str) -> BeforeValidator:
    """Returns a validator that refuses values for which `is_right` is false."""

    def check(value: Any) -> Any:
        if value is not None and not is_right(value):
            raise PydanticCustomError("expected", "{expected}", {"expected": expected})
        return value

    return BeforeValidator(check)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_seed(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and len(value) <= 20
    return _is_integer(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(text, str) for text in value))


def _is_seeds(value: Any) -> bool:
    return all(map(_is_seed, value)) if isinstance(value, list) else _is_seed(value)


def _is_settings(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(part, dict) for part in value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, list) and all(map(_is_number, value)))


def _is_ends(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(isinstance(end, str) for end in value) or all(map(_is_integer, value))


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and abs(n) < 2**31 for n in value)


def _schema(*kinds: Mapping[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [dict(kind) for kind in kinds]})


_TEXT, _INTEGER, _NUMBER, _OBJECT, _NULL = (
    {"type": kind} for kind in ("string", "integer", "number", "object", "null")
)
_DECIMAL = {"type": "string", "pattern": "^[0-9]+$"}
Text = Annotated[str, _expect(lambda value: isinstance(value, str), "text")]
Integer = Annotated[int, _expect(_is_integer, "an integer")]
Number = Annotated[float, _expect(_is_number, "a number")]
Texts = Annotated[
    str | list[str], _expect(_is_texts, "text, or a list of texts"), _schema(_TEXT, {"type": "array", "items": _TEXT})
]
Seed = Annotated[
    Any,
    _expect(_is_seed, "an integer in [0, 2^64), or null for a random one"),
    _schema(_INTEGER, _DECIMAL, _NULL),
]
Seeds = Annotated[
    Any,
    _expect(_is_seeds, "an integer in [0, 2^64), a list of them, or null for random ones"),
    _schema(_INTEGER, _DECIMAL, {"type": "array", "items": {"anyOf": [_INTEGER, _DECIMAL]}}, _NULL),
]
Settings = Annotated[
    Any,
    _expect(_is_settings, "an object of sampling settings for all stages, or a list with one for each stage"),
    _schema(_OBJECT, {"type": "array", "items": _OBJECT}, _NULL),
]
Strength = Annotated[
    Any,
    _expect(_is_numbers, "a number from 0 to 1, or a list with one for each stage"),
    _schema(_NUMBER, {"type": "array", "items": _NUMBER}, _NULL),
]
Position = Annotated[
    Any,
    _expect(_is_place, "a list [top, left] of two integers"),
    _schema({"type": "array", "items": _INTEGER}, _NULL),
]


Ends = Annotated[
    Any,
    _expect(_is_ends, "a list of two prompts or two seeds"),
    _schema({"type": "array", "items": {"anyOf": [_TEXT, _INTEGER]}}, _NULL),
]


class EditBody(BaseModel):
    """How images are made from another one, or between two ends."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"kind": "image_to_image", "image": "6tB0m2vP3nYcXq8e-0.png", "strength": 0.5}]
        },
    )
    kind: EditKind = Field(
        description="`image_to_image`: images like it; `inpaint`: what the mask covers is drawn anew; `outpaint`: what "
        "is around it, on a canvas of `height` × `width`; `variations`: images like it, the prompt may be empty; "
        "`upscale`: the super-resolution stages alone enlarge it; `edit`: what the prompt says otherwise than "
        "`source_prompt` is changed, and the rest kept; `interpolate`: images on the way between `ends`, without an "
        "image."
    )
    image: Text | None = Field(
        default=None,
        description="A PNG or JPEG in base64, or the name of an image of this server, from its `url`. It has the "
        "aspect of the images to sample, and is resized to them. Of all kinds but `interpolate`.",
    )
    mask: Text | None = Field(
        default=None,
        description="Of `inpaint`: a PNG in base64 of the image's size. White is drawn anew, black is kept; or, "
        "where it has transparent areas, these are drawn anew.",
    )
    strength: Strength = Field(
        default=None,
        description="How much changes, from 0 to 1, for all stages or for each: the noise that the image gets, and the "
        "share of the steps that is taken. 0.6 for `image_to_image`, 0.5 for `variations` and `edit`, and 1 for "
        "`inpaint`, where it is what was below the mask that is not seen then, unless it is given.",
    )
    resample: Integer = Field(
        default=1, description="Of `inpaint` and `outpaint`: how often each step is taken; 1 to 16. More fits better."
    )
    feather: Integer | None = Field(
        default=None,
        description="Of both: pixels inside of the mask over which new parts are faded in; 1/32 of the shorter side "
        "unless it is given.",
    )
    position: Position = Field(
        default=None, description="Of `outpaint`: [top, left] of the image on the canvas; null for the middle."
    )
    source_prompt: Text | None = Field(
        default=None,
        description="Of `edit`: what the image shows. Best in the words of the prompt but for what changes. Settings "
        "that are not given are then `ddim` with 16 steps, and twice the guidance.",
    )
    ends: Ends = Field(
        default=None,
        description="Of `interpolate`: two seeds, or two prompts in place of `prompts`. The `count` images are at "
        "equal distances, both ends included.",
    )


class LoraBody(BaseModel):
    """An adapter of a fine-tuning of this server."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "sks-dog", "scale": 0.8}]})
    name: Text = Field(description="Of a fine-tuning that is done, from `/v1/finetunings`.")
    scale: Number = Field(default=1.0, description="What its changes are multiplied by: 1 as trained, 0 for none.")


class JobBody(BaseModel):
    """A job: images for prompts."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompts": "a red circle"},
                {
                    "prompts": ["a red circle", "two blue squares"],
                    "count": 2,
                    "seeds": 7,
                    "settings": [{"num_inference_steps": 16, "guidance_scale": 3.0}, {}],
                },
            ]
        },
    )
    prompts: Texts = Field(description="A prompt, or several.")
    negative_prompt: Text | None = Field(default=None, description="What the images should not show.")
    count: Integer = Field(default=1, description="Images for each prompt, each with a seed of its own.")
    seeds: Seeds = Field(
        default=None,
        description="Seeds in [0, 2^64), one for each image, the images of a prompt one after the other; or one, which "
        "the first image has, the next one has the next integer and so on; null for random ones. A string of digits is "
        "a number, too: JavaScript has no integers beyond 2^53.",
    )
    settings: Settings = Field(
        default=None,
        description="Sampling settings in place of the cascade's, see `/v1/cascade`: an object for all stages, or one "
        "for each stage.",
    )
    height: Integer | None = Field(default=None, description="Of the images in pixels; null for the cascade's.")
    width: Integer | None = Field(default=None, description="Likewise.")
    priority: Integer = Field(
        default=0, description="Of this client's jobs, those with a higher one are first; -100 to 100."
    )
    idempotency_key: Text | None = Field(
        default=None,
        description="A name of this request: sent again, it returns the same job, and none is added. The header "
        "Idempotency-Key is the same.",
    )
    edit: EditBody | None = Field(
        default=None, description="How the images are made from another one; null for images from prompts alone."
    )
    lora: list[LoraBody] | None = Field(
        default=None,
        description="Adapters of fine-tunings of this server, at most 4: their changes are added to the cascade.",
    )


def to_request(body: JobBody, stages: int, limits: HttpLimits, key: str | None = None) -> JobRequest:
    """Returns the engine's request for a body, without its edit and adapters, see `Service.edit` and `with_lora`.

    Args:
        body: from a client.
        stages: of the cascade.
        limits: of a job.
        key: the header Idempotency-Key.

    Raises:
        HttpError: a value is out of range, or numbers of values do not fit.
    """
    prompts = [body.prompts] if isinstance(body.prompts, str) else body.prompts
    if not 1 <= len(prompts) <= limits.prompts:
        raise HttpError(400, f"prompts has {len(prompts)} prompts: give 1 to {limits.prompts}", "prompts")
    is_list = not isinstance(body.prompts, str)
    for index, prompt in enumerate(prompts):
        check_prompt(prompt, f"prompts[{index}]" if is_list else "prompts", limits, body.edit is not None)
    if body.negative_prompt is not None:
        check_prompt(body.negative_prompt, "negative_prompt", limits, may_be_empty=True)
    check_range("count", body.count, 1, limits.count)
    images = len(prompts) * body.count
    if images > limits.images:
        raise HttpError(
            400,
            f"{len(prompts)} prompts × count {body.count} are {images} images: ask for {limits.images} at most",
            "count",
        )
    check_range("priority", body.priority, -100, 100)
    for name in ("height", "width"):
        if getattr(body, name) is not None:
            check_range(name, getattr(body, name), 1, limits.side)
    return JobRequest(
        prompts=prompts,
        negative_prompt=body.negative_prompt or None,
        count=body.count,
        seeds=read_seeds(body.seeds, images),
        settings=read_settings(body.settings, stages, limits),
        height=body.height,
        width=body.width,
        priority=body.priority,
        idempotency_key=_key(body.idempotency_key, key),
        seeds_are_random=body.seeds is None,
    )


def check_prompt(text: str, name: str, limits: HttpLimits, may_be_empty: bool = False) -> None:
    """Raises HttpError for a text that is empty, too long, or has characters that are not text."""
    if not text.strip() and not may_be_empty:
        raise HttpError(400, f"{name} is empty: say what the image should show", name)
    check_text(text, name, limits.prompt_length)


def check_text(text: str, name: str, length: int | None = None) -> None:
    """Raises HttpError for a text that is longer than `length`, or has characters that are not text."""
    if length is not None and len(text) > length:
        raise HttpError(400, f"{name} has {len(text):,} characters: give {length:,} at most", name)
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in _KEPT_CONTROLS):
            raise HttpError(
                400, f"{name} has the character U+{ord(character):04X}, which is not text: leave it out", name
            )


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raises HttpError for an integer out of range."""
    if not low <= value <= high:
        raise HttpError(400, f"{name} is {shown(value)}: give an integer from {low} to {high}", name)


def read_seeds(value: Any, images: int) -> list[int]:
    """Returns a seed for each image, see `JobBody.seeds`.

    Raises:
        HttpError: a seed is out of range, or there is another number of them than images.
    """
    if value is None:
        return [secrets.randbelow(_RANDOM_SEEDS) for _ in range(images)]
    given = value if isinstance(value, list) else [value]
    seeds = [int(seed) for seed in given]
    for index, seed in enumerate(seeds):
        if not 0 <= seed <= MAX_SEED:
            name = f"seeds[{index}]" if isinstance(value, list) else "seeds"
            raise HttpError(400, f"{name} is {shown(seed)}: give an integer in [0, 2^64)", name)
    if not isinstance(value, list):
        return [(seeds[0] + index) % (MAX_SEED + 1) for index in range(images)]
    if len(seeds) != images:
        raise HttpError(
            400, f"seeds has {len(seeds)} seeds for {images} images: give one for each, or one integer", "seeds"
        )
    return seeds


def read_settings(value: Any, stages: int, limits: HttpLimits) -> list[dict[str, Any]]:
    """Returns the settings of each stage; their values are checked by the engine, but for the number of steps.

    Raises:
        HttpError: there are settings for another number of stages, of an unknown name, or with too many steps.
    """
    parts: Sequence[Mapping[str, Any]] = value if isinstance(value, list) else [value or {}] * stages
    if len(parts) != stages:
        raise HttpError(
            400, f"settings has {len(parts)} objects for {stages} stages: give one for each, or one for all", "settings"
        )
    read = []
    for index, part in enumerate(parts):
        for name, setting in part.items():
            where = f"settings[{index}].{name}" if isinstance(value, list) else f"settings.{name}"
            if name not in CLIENT_SETTINGS:
                error = unknown_name_error("settings", name[:80], CLIENT_SETTINGS)
                raise HttpError(400, error.problems[0], where[:80])
            if name == "num_inference_steps" and _is_integer(setting):
                check_range(where, setting, 1, limits.steps)
        # null is as if it were not given; the one setting that may be infinite is text in JSON
        settings = {name: setting for name, setting in part.items() if setting is not None}
        read.append({name: math.inf if setting == "inf" else setting for name, setting in settings.items()})
    return read


def _key(in_body: str | None, in_header: str | None) -> str | None:
    """Returns the idempotency key of a request. Raises HttpError if there are two, or it is not a plain name."""
    if in_body is not None and in_header is not None and in_body != in_header:
        raise HttpError(400, "idempotency_key and the header Idempotency-Key differ: give one", "idempotency_key")
    key = in_body if in_header is None else in_header
    if key is not None and not (1 <= len(key) <= _MAX_KEY and key.isascii() and key.isprintable()):
        raise HttpError(
            400,
            f"idempotency_key is not 1 to {_MAX_KEY} printable ASCII characters: give for example a UUID",
            "idempotency_key",
        )
    return key
