"""What the cascade is and can be asked: `/v1/cascade`, from which a page builds its form."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from imagen_jax.config.messages import expected
from imagen_jax.config.schema import SamplingConfig
from imagen_jax.io.version import VERSION
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.serving.client_settings import CLIENT_SETTINGS
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.uploads import useful_side
from imagen_jax.serving.views import finite


class SettingView(BaseModel):
    """A sampling setting of a stage."""

    name: str
    type: Literal["integer", "number", "boolean", "choice", "range", "size"] = Field(
        description="`range` is a list of two numbers, `size` an integer or a list [height, width]."
    )
    default: Any = Field(description="What this cascade uses unless a job says otherwise.")
    minimum: float | None
    maximum: float | None
    choices: list[Any] | None
    unit: str
    description: str
    expected: str = Field(description="What values are allowed, in words.")


class StageView(BaseModel):
    """A stage of the cascade."""

    width: int = Field(description="Of its images, in pixels.")
    height: int
    step: int = Field(description="The training step of its weights.")
    settings: list[SettingView]


class LimitsView(BaseModel):
    """What a job may ask for."""

    max_prompts: int = Field(description="Prompts of a job.")
    max_count: int = Field(description="Images for each prompt.")
    max_images: int = Field(description="Images of a job.")
    max_prompt_length: int = Field(description="Characters of a prompt.")
    max_steps: int = Field(description="Sampling steps of a stage.")
    max_side: int = Field(description="Pixels of a side.")
    max_upload_bytes: int = Field(description="Of a PNG whose settings are read.")
    max_edit_bytes: int = Field(description="Of a request with images to edit.")
    max_edit_pixels: int = Field(description="Of an image to edit.")


class FinetuningLimitsView(BaseModel):
    """What a fine-tuning may ask for."""

    max_images: int
    max_bytes: int = Field(description="Of the form with all of them.")
    useful_side: int = Field(description="Pixels of the shorter side of an image that are of use; more are reduced.")


class CascadeView(BaseModel):
    """The cascade."""

    name: str
    version: str = Field(description="Of this package.")
    stages: list[StageView] = Field(description="Base first.")
    limits: LimitsView
    examples: list[str] = Field(description="Prompts to begin with.")
    negative_prompt: bool = Field(description="Whether a negative prompt has an effect with the default settings.")
    safety_checker: bool = Field(description="Whether images are black that a safety checker flags; no previews then.")
    finetuning: FinetuningLimitsView | None = Field(description="Whether it can be taught; null where it cannot.")


def cascade_view(
    pipeline: ImagenPipeline, name: str, examples: Sequence[str], limits: HttpLimits, is_taught: bool
) -> CascadeView:
    """Returns the description of a cascade; `is_taught` says whether the server does fine-tuning."""
    finetuning = FinetuningLimitsView(
        max_images=limits.finetune_images, max_bytes=limits.finetune_bytes, useful_side=useful_side(pipeline)
    )
    stages = [_stage_view(trained) for trained in pipeline.stages]
    scales = [trained.stage.config.sampling.guidance_scale for trained in pipeline.stages]
    return CascadeView(
        name=name,
        version=VERSION,
        stages=[_with_max_steps(stage, limits) for stage in stages],
        limits=LimitsView(
            max_prompts=limits.prompts,
            max_count=limits.count,
            max_images=limits.images,
            max_prompt_length=limits.prompt_length,
            max_steps=limits.steps,
            max_side=limits.side,
            max_upload_bytes=limits.upload_bytes,
            max_edit_bytes=limits.edit_bytes,
            max_edit_pixels=limits.upload_pixels,
        ),
        examples=list(examples),
        negative_prompt=any(scale != 1 for scale in scales),
        safety_checker=pipeline.safety_checker is not None,
        finetuning=finetuning if is_taught else None,
    )


def _stage_view(trained: Any) -> StageView:
    height, width, _ = trained.stage.image_shape
    values = finite(trained.stage.config.sampling.to_dict())
    fields = [(name, SamplingConfig.model_fields[name]) for name in CLIENT_SETTINGS]
    return StageView(
        width=width, height=height, step=trained.step, settings=[_setting(*field, values[field[0]]) for field in fields]
    )


def _setting(name: str, field: FieldInfo, value: Any) -> SettingView:
    extra = typing.cast(dict[str, Any], field.json_schema_extra)
    limits = {
        key: getattr(bound, key) for bound in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(bound, key)
    }
    return SettingView(
        name=name,
        type=_type(field.annotation, extra["choices"]),
        default=value,
        minimum=limits.get("ge", limits.get("gt")),
        maximum=limits.get("le", limits.get("lt")),
        choices=list(extra["choices"]) or None,
        unit=extra["unit"],
        description=field.description or "",
        expected=expected(field),
    )


def _type(annotation: Any, choices: list[Any]) -> Any:
    if choices:
        return "choice"
    simple = {int: "integer", float: "number", bool: "boolean"}
    return simple.get(annotation) or ("range" if str(annotation).startswith("tuple") else "size")


def _with_max_steps(stage: StageView, limits: HttpLimits) -> StageView:
    """Returns a stage whose number of steps is limited as the server's."""
    settings = [
        setting.model_copy(update={"maximum": float(limits.steps)})
        if setting.name == "num_inference_steps"
        else setting
        for setting in stage.settings
    ]
    return stage.model_copy(update={"settings": settings})
