"""The fields of diffusers' `DDPMScheduler`, as scheduler_config.json has them, and the keys of a stage's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion.unet_config import VERSION
from imagen_jax.diffusion.schedules import DISCRETE_STEPS
from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable

CLASS = "DDPMScheduler"
SCHEDULE = "discrete_cosine"  # in a stage's config
NOISE_LEVEL = 250  # of the low-resolution image, where diffusers' pipeline is not told another
_FIXED: dict[str, Any] = {
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": DISCRETE_STEPS,
    "rescale_betas_zero_snr": False,
    "steps_offset": 0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
# what diffusers takes for fields that a file lacks
_DEFAULTS: dict[str, Any] = {
    **_FIXED,
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "thresholding": False,
    "variance_type": "fixed_small",
}
_NO_LIMIT = 1e6
_PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
_VARIANCE_TYPES = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}
_SAMPLING = (
    "variance_type",
    "threshold",
    "dynamic_threshold_percentile",
    "dynamic_threshold_max",
)  # the keys of `sampling` that a scheduler has


def stage_keys(fields: Mapping[str, Any], name: str, learns_variance: bool) -> dict[str, Any]:
    """Returns the keys of a stage's config that a scheduler_config.json decides.

    Fields that `DDPMScheduler` does not have, as those of other schedulers that a file may also have, are passed over,
    as diffusers does.

    Args:
        fields: the content of the file.
        name: of the file, for errors.
        learns_variance: whether the network predicts variances.

    Raises:
        ConfigError: it is of another class, or a field has a value that no key expresses.
    """
    values = _checked(fields, name)
    variance = _one_of(values, "variance_type", _VARIANCE_TYPES, name)
    if variance == "learned" and not learns_variance:
        raise _refuse(values, "variance_type", "fixed_small or fixed_large where the U-Net has 3 out_channels", name)
    return {
        "diffusion.schedule": SCHEDULE,
        "diffusion.prediction_type": _one_of(values, "prediction_type", _PREDICTION_TYPES, name),
        "sampling.sampler": "ddpm",
        "sampling.timestep_spacing": "leading",
        "sampling.variance_type": variance,
        **{f"sampling.{key}": value for key, value in _threshold(values, name).items()},
    }


def check_noising(fields: Mapping[str, Any], name: str) -> None:
    """Raises ConfigError unless an image_noising_scheduler adds noise as `diffusion.aug_schedule` does."""
    _checked(fields, name)


def _checked(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the fields with diffusers' defaults. Raises ConfigError."""
    values = {**_DEFAULTS, "_class_name": CLASS, **fields}
    for field, supported in {"_class_name": CLASS, **_FIXED}.items():
        if values[field] != supported:
            raise _refuse(values, field, repr(supported), name)
    return values


def _one_of(values: Mapping[str, Any], field: str, supported: Mapping[str, str], name: str) -> str:
    if values[field] not in supported:
        raise _refuse(values, field, " or ".join(supported), name)
    return supported[values[field]]


def _threshold(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the keys of thresholding."""
    if values["thresholding"]:
        ratio = values["dynamic_thresholding_ratio"]
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0.01 < ratio <= 1:
            raise _refuse(values, "dynamic_thresholding_ratio", "a share in (0.01, 1]", name)
        percentile = round(100.0 * ratio, 10)  # 0.95 is not 95 percent in every float
        most = values["sample_max_value"]
        if isinstance(most, bool) or not isinstance(most, (int, float)) or most < 1:
            raise _refuse(values, "sample_max_value", "a number of 1 or more", name)
        return {
            "threshold": "dynamic",
            "dynamic_threshold_percentile": percentile,
            "dynamic_threshold_max": float(most),
        }
    if not values["clip_sample"]:
        return {"threshold": "none"}
    if values["clip_sample_range"] != 1:
        raise _refuse(values, "clip_sample_range", "1.0", name)
    return {"threshold": "static"}


def _refuse(values: Mapping[str, Any], field: str, supported: str, name: str) -> ConfigError:
    given = printable(repr(values[field]))[:100]
    return ConfigError(f"{name} has {given} for {field}, and {supported} is supported: it cannot be converted")


def scheduler_fields(config: StageConfig, original: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the content of scheduler_config.json for a stage.

    Args:
        config: of the stage.
        original: that which the stage was converted from; its fields are kept where the config says the same. None for
            none.
    """
    fields = dict(original) if original is not None else _new_fields()
    keys = stage_keys(fields, "the scheduler", learns_variance=True)
    wanted = {key: getattr(config.sampling, key) for key in _SAMPLING}
    threshold = wanted["threshold"]
    if any(keys[f"sampling.{key}"] != wanted[key] for key in _SAMPLING if f"sampling.{key}" in keys):
        fields["thresholding"], fields["clip_sample"] = threshold == "dynamic", threshold != "none"
        if threshold == "dynamic":
            fields["dynamic_thresholding_ratio"] = wanted["dynamic_threshold_percentile"] / 100
            # diffusers always has a limit
            fields["sample_max_value"] = wanted["dynamic_threshold_max"] or _NO_LIMIT
        fields["variance_type"] = _key_of(_VARIANCE_TYPES, wanted["variance_type"], "fixed_small")
    if keys["diffusion.prediction_type"] != config.diffusion.prediction_type:
        fields["prediction_type"] = _key_of(_PREDICTION_TYPES, config.diffusion.prediction_type, "epsilon")
    return fields


def _key_of(names: Mapping[str, str], value: str, default: str) -> str:
    return next((key for key, name in names.items() if name == value), default)


def noising_fields() -> dict[str, Any]:
    """Returns the content of the image_noising_scheduler's file."""
    return _new_fields()


def _new_fields() -> dict[str, Any]:
    others = {"_class_name": CLASS, "_diffusers_version": VERSION, "beta_start": 0.0001, "beta_end": 0.02}
    return dict(sorted({**_DEFAULTS, **_FIXED, **others}.items()))
