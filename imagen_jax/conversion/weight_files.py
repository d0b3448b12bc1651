"""Weights in a folder of a diffusers pipeline: one file or several with an index, of one variant or another.

unet/diffusion_pytorch_model.safetensors                    unet/diffusion_pytorch_model.fp16.safetensors
unet/diffusion_pytorch_model.safetensors.index.json         unet/diffusion_pytorch_model.safetensors.index.fp16.json
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imagen_jax.errors import ConfigError
from imagen_jax.io.tensor_files import pickle_files, pickled_error, read_weight_map
from imagen_jax.io.text import printable

UNET, TEXT_ENCODER = "diffusion_pytorch_model", "model"  # how their files begin
SAFETY_CHECKER = TEXT_ENCODER
NO_VARIANT = "none"  # as a user names the files without one
_SHARD = r"-\d{5}-of-\d{5}"


class WeightFiles(NamedTuple):
    """Weights of a component.

    Attributes:
        variant: such as "fp16"; "" for none.
        file: the name of the one file, or of the index.
        is_index: whether it is an index.
    """

    variant: str
    file: str
    is_index: bool


def choose(names: Iterable[str], stem: str, wanted: str, component: str, pipeline: str) -> WeightFiles:
    """Returns which weights of a component's folder to take.

    Args:
        names: of the files in the folder.
        stem: `UNET` or `TEXT_ENCODER`.
        wanted: the variant, `NO_VARIANT`, or "" for the only one that there is.
        component: the folder's name, for errors.
        pipeline: the folder or the name of the pipeline, for errors.

    Raises:
        ConfigError: there are no safetensors, not of this variant, or of several without one being asked for.
    """
    names, where = sorted(names), f"{component} of {pipeline}"
    there = _variants(names, stem)
    if not there:
        raise _nothing(names, stem, where, pipeline)
    labels = [variant or NO_VARIANT for variant in there]
    if not wanted and len(there) > 1:
        others = [label for label in labels if label != NO_VARIANT]
        raise ConfigError(
            f"{where} has weights of several variants ({', '.join(labels)}): give one of them, such as "
            f"--variant={others[0]}; {NO_VARIANT} is that of the files without one in their names"
        )
    if wanted and wanted not in labels:
        raise ConfigError(f"{where} has no weights of the variant {printable(wanted)!r}: give {' or '.join(labels)}")
    return there["" if wanted == NO_VARIANT else wanted] if wanted else next(iter(there.values()))


def choose_near(names: Iterable[str], stem: str, variant: str) -> WeightFiles | None:
    """Returns the weights of a variant or, as diffusers does, those of none, or of any other; None without weights."""
    there = _variants(sorted(names), stem)
    return there.get(variant) or there.get("") or next(iter(there.values()), None)


def _variants(names: Iterable[str], stem: str) -> dict[str, WeightFiles]:
    """Returns the weights of each variant; a single file counts before an index, as in diffusers."""
    single = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    there = {}
    for is_index, pattern in ((True, index), (False, single)):
        for name in names:
            if match := pattern.fullmatch(name):
                variant = match[1] or ""
                there[variant] = WeightFiles(variant, name, is_index)
    return dict(sorted(there.items()))


def _nothing(names: Iterable[str], stem: str, where: str, pipeline: str) -> ConfigError:
    """Returns the error for a folder without weights, or with those that are not read."""
    for part in filter(None, (re.fullmatch(rf"{stem}(\.\w+)?{_SHARD}\.safetensors", name) for name in names)):
        index = f"{stem}.safetensors.index{part[1] or ''}.json"
        return ConfigError(f"{where} has parts of weights and no {index}: copy that file there")
    pickled = pickle_files(names)
    if pickled:
        return pickled_error(where, pickled, _resave_command(pipeline))
    return ConfigError(f"{where} has neither {stem}.safetensors nor an index: copy the weights there")


def _resave_command(pipeline: str) -> str:
    """Returns the command by which diffusers writes a pipeline with pickled weights again, as safetensors."""
    new = json.dumps(f"{Path(pipeline).name}-safetensors", ensure_ascii=False)
    old = json.dumps(pipeline, ensure_ascii=False)
    code = (
        "from diffusers import DiffusionPipeline as P; from diffusers.pipelines.deepfloyd_if import IFSafetyChecker; "
        # without it, diffusers 0.42 cannot load its checker with transformers 5
        "IFSafetyChecker.all_tied_weights_keys = {}; "
        f"P.from_pretrained({old}, watermarker=None).save_pretrained({new})"
    )
    return f"python -c {shlex.quote(code)}"


def parts(folder: Path, weights: WeightFiles) -> list[Path]:
    """Returns the files with the tensors. Raises ConfigError if the index is damaged or one is missing."""
    if not weights.is_index:
        return [folder / weights.file]
    index = folder / weights.file
    names = sorted(set(read_weight_map(index).values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{index} names files that are not in {folder}: {printable(', '.join(missing[:3]))}: copy them there"
        )
    return [folder / name for name in names]
