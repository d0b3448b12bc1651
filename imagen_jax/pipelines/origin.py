"""What stages keep of a pipeline of diffusers that `imagen convert` read, also stages that were trained from such ones.

It is the JSON value of stage_N/diffusers.json, which `conversion/origin.py` describes and checks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.published import is_published_stage, read_origin
from imagen_jax.stages.stage_folder import read_config

LICENSE_FILE = re.compile(r"LICEN[CS]E[\w.-]*", re.IGNORECASE | re.ASCII)
LICENSE_KEYS = ("license", "license_name", "license_link")
_MAX_LINKS = 10  # of `training.init_from` that are followed to the pipeline that a stage was converted from


def find_origin(folder: Path, config: StageConfig) -> Any:
    """Returns what a stage keeps of a pipeline, or the stage that it started from; None without one, as that."""
    found = find_converted(folder, config)
    return None if found is None else found[1]


def find_converted(folder: Path, config: StageConfig) -> tuple[Path, Any] | None:
    """Returns the stage that keeps something of a pipeline: a stage itself, or the one that it started from.

    Args:
        folder: of the stage.
        config: of the stage.

    Returns:
        Its folder, and the JSON value, as it was read; None if the stage comes from no pipeline, or its first stage is
        not there.

    Raises:
        ConfigError: the stage has one, and it is damaged.
    """
    origin = _own_origin(folder)
    for _ in range(_MAX_LINKS):
        if origin is not None or not config.training.init_from:
            break
        try:
            name = config.training.init_from
            folder = find_stages(name, weights=False, text_encoder=False, safety_checker=True)[0]
            origin, config = _own_origin(folder), read_config(folder, lambda text: None)
        except ConfigError:
            return None
    return None if origin is None else (folder, origin)


def _own_origin(folder: Path) -> Any:
    return read_origin(folder) if is_published_stage(folder) else None


def license_texts(origin: Any) -> dict[str, str]:
    """Returns the texts of licenses that a stage keeps of its pipeline, by the names of their files."""
    texts = origin.get("texts") if isinstance(origin, Mapping) else None
    if not isinstance(texts, Mapping):
        return {}
    return {name: text for name, text in texts.items() if LICENSE_FILE.fullmatch(name) and isinstance(text, str)}


def license_fields(origin: Any) -> dict[str, str]:
    """Returns what the header of the pipeline's card says of the license, some of `LICENSE_KEYS`."""
    fields = origin.get("license") if isinstance(origin, Mapping) else None
    if not isinstance(fields, Mapping):
        return {}
    return {key: printable(fields[key])[:500] for key in LICENSE_KEYS if isinstance(fields.get(key), str)}
