"""Saved configs of earlier schema versions, brought up to the present one.

Version 0 has no `schema_version`: its keys have the names on the left of `RENAMED`. Versions 0 and 1 did not convert
color profiles. A key that a file lacks gets the schema's default, so that a new key never makes a checkpoint
unloadable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from imagen_jax.config.data_schema import DataConfig, FileKeys, PartConfig
from imagen_jax.config.fields import groups_in
from imagen_jax.config.schema import SCHEMA_VERSION
from imagen_jax.errors import ConfigError

RENAMED = {
    "data.max_broken": "data.max_corrupt",
    "data.validation_share": "data.validation_fraction",
    "data.examples": "data.num_examples",
    "model.patch": "model.patch_size",
    "model.multipliers": "model.channel_mult",
    "model.blocks": "model.num_res_blocks",
    "model.attention": "model.attention_types",
    "model.middle_attention": "model.middle_attention_types",
    "model.attention_mlp": "model.mlp_ratio",
    "model.embedding_multiplier": "model.cond_dim_mult",
    "model.text_heads": "model.text_pool_heads",
    "model.norm_groups": "model.num_groups",
    "diffusion.prediction": "diffusion.prediction_type",
    "diffusion.weight": "diffusion.loss_weighting",
    "diffusion.weight_bias": "diffusion.loss_weighting_bias",
    "diffusion.variance": "diffusion.variance_type",
    "diffusion.unconditional": "diffusion.null_text",
    "diffusion.caption_dropout": "diffusion.cond_drop_prob",
    "training.accumulation": "training.grad_accum_steps",
    "training.max_bad_steps": "training.max_skipped_updates",
    "sampling.grid": "sampling.timestep_spacing",
    "sampling.variance": "sampling.variance_type",
    "sampling.churn": "sampling.s_churn",
    "sampling.churn_range": "sampling.s_tmin and sampling.s_tmax",
    "sampling.churn_noise": "sampling.s_noise",
    "sampling.steps": "sampling.num_inference_steps",
    "sampling.guidance": "sampling.guidance_scale",
    "sampling.guidance_from": "sampling.guidance_interval (low, high)",
    "sampling.guidance_to": "sampling.guidance_interval (low, high)",
    "sampling.guidance_oscillates": "sampling.oscillating_guidance",
    "sampling.guidance_constant_steps": "sampling.guidance_warmup_steps",
    "sampling.percentile": "sampling.dynamic_threshold_percentile",
    "count": "num_samples",
}
OLD_VALUES = {
    "data.transform.crop": ("centre", "center"),
    "training.on_failed_save": ("go on", "continue"),
}
_FILE_SOURCES = {group.model_fields["source"].default for group in groups_in(DataConfig) if issubclass(group, FileKeys)}


def migrate(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a saved config, nested dicts, in the present schema version.

    Raises:
        ConfigError: the config is of a later version.
    """
    migrated = copy.deepcopy(dict(tree))
    version = migrated.get("schema_version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise ConfigError(
            f"schema_version {version!r} is not a version: restore the config from a checkpoint's metadata"
        )
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"schema_version {version} is later than {SCHEMA_VERSION}, the latest that this version of imagen_jax "
            "reads: upgrade it, pip install --upgrade imagen_jax"
        )
    for step in (_from_0, _from_1)[version:]:
        step(migrated)
    return migrated | {"schema_version": SCHEMA_VERSION}


def _from_0(tree: dict[str, Any]) -> None:
    """Renames the keys and values of version 0 in place."""
    data = tree.get("data")
    if isinstance(data, dict) and data.get("source") in ("shapes", "digits") and not data.get("buckets"):
        data.pop("buckets", None)
    for group in (tree.get("data"), *_parts(tree.get("data"))):
        _rename(group, "data.")
        _replace_values(group, "data.")
        if isinstance(group, dict):
            _replace_values(group.get("transform"), "data.transform.")
    for part in _parts(tree.get("data")):
        _keep_known(part)
    sampling = tree.get("sampling")
    if isinstance(sampling, dict):
        ends = sampling.get("churn_range")
        if isinstance(ends, (list, tuple)) and len(ends) == 2:
            sampling["s_tmin"], sampling["s_tmax"] = sampling.pop("churn_range")
        if {"guidance_from", "guidance_to"} <= sampling.keys():
            sampling["guidance_interval"] = (sampling.pop("guidance_from"), sampling.pop("guidance_to"))
    for name in ("model", "diffusion", "training", "sampling"):
        _rename(tree.get(name), f"{name}.")
        _replace_values(tree.get(name), f"{name}.")


def _from_1(tree: dict[str, Any]) -> None:
    """Leaves colors as they are stored, in data sets of files: a run that resumes reads the images it began with."""
    data = tree.get("data")
    if isinstance(data, dict) and data.get("source") in _FILE_SOURCES:
        transform = data.setdefault("transform", {})
        if isinstance(transform, dict):
            transform.setdefault("convert_profile", False)


def _parts(data: Any) -> list[dict[str, Any]]:
    """Returns the parts of a mixture, those of mixtures in it included."""
    parts = data.get("parts") if isinstance(data, dict) else None
    own = [part for part in parts.values() if isinstance(part, dict)] if isinstance(parts, dict) else []
    return [*own, *(inner for part in own for inner in _parts(part))]


def _rename(group: Any, prefix: str) -> None:
    if isinstance(group, dict):
        for old in list(group):
            new = RENAMED.get(f"{prefix}{old}", "")
            if new and " " not in new:
                group[new.removeprefix(prefix)] = group.pop(old)


def _replace_values(group: Any, prefix: str) -> None:
    if isinstance(group, dict):
        for key, (old, new) in OLD_VALUES.items():
            name = key.removeprefix(prefix)
            if group.get(name) == old:
                group[name] = new


def _keep_known(part: dict[str, Any]) -> None:
    """Removes the keys of a part that its source does not have: version 0 ignored them."""
    for group in groups_in(PartConfig):
        if group.model_fields["source"].default == part.get("source"):
            for name in part.keys() - group.model_fields.keys():
                del part[name]
