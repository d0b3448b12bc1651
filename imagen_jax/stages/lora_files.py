"""Files of adapters: safetensors with the tensors of PEFT, so that diffusers loads those of DeepFloyd IF's network.

FOLDER/pytorch_lora_weights.safetensors          the adapter of one stage
FOLDER/stage_N/pytorch_lora_weights.safetensors  that of stage N of a cascade

`unet.MODULE.lora_A.weight` is [rank, in], or [rank, in, height, width], and `unet.MODULE.lora_B.weight` is [out, rank],
or [out, rank, 1, 1]; MODULE is a module's name in diffusers for its networks, otherwise the path of one here with dots,
and a stack of scanned layers has one more axis before these. `lora_adapter_metadata` in the header has rank and alpha,
as diffusers writes it, and `imagen_jax` what the adapter was trained beside and a checksum of it all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import format_size
from imagen_jax.io.atomic import sha256_file
from imagen_jax.io.tensor_files import TensorFiles, TensorSpec, write_tensors
from imagen_jax.io.text import printable
from imagen_jax.models.if_names import tensor_name
from imagen_jax.parallel.scan_params import is_stacked
from imagen_jax.stages.lora import KERNEL, LORA_A, LORA_B, Factors, factor_shapes, with_axes
from imagen_jax.stages.trainable import Tree

FILE = "pytorch_lora_weights.safetensors"
_STAGE = re.compile(r"stage_(\d{1,2})")
_PREFIX = "unet."
_OURS, _PEFT = "imagen_jax", "lora_adapter_metadata"
# how tensors of A, B and alpha end; the later ones are those of earlier versions of diffusers
_ENDS = {
    "lora_A.weight": LORA_A,
    "lora_B.weight": LORA_B,
    "lora.down.weight": LORA_A,
    "lora.up.weight": LORA_B,
    "alpha": "alpha",
}
_PROCESSOR = re.compile(r"\.processor\.(to_(?:q|k|v|out)|add_[kv]_proj)_lora\.(down|up)\.weight$")
_MAX_LISTED = 3


class Origin(BaseModel):
    """What an adapter was trained for: the network, the size of its images, and what identifies weights beside it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    network: str
    image_size: tuple[int, int]
    base: str = ""
    step: int = Field(ge=0)
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """The adapter in a file.

    Attributes:
        path: the file.
        digest: SHA-256 of the file.
        modules: module name -> its tensors, in the layout of the file, by what they are: `lora_a`, `lora_b`, `alpha`.
        settings: what PEFT has written of the adapter.
        origin: what it was trained for; None for a file of another program.
        stage: the number in the name of its folder; None without one.
    """

    path: Path
    digest: str
    modules: Mapping[str, Mapping[str, np.ndarray]]
    settings: Mapping[str, Any]
    origin: Origin | None
    stage: int | None

    def factors(self, params: Tree, network: str) -> dict[str, Factors]:
        """Returns the change of each kernel of a network, by the path of its module.

        Args:
            params: of the network; arrays or abstract arrays.
            network: `model.network`, which decides the names of its modules.

        Raises:
            ConfigError: the adapter is of another network.
        """
        names, leaves = _tensor_names(network), traverse_util.flatten_dict(params, sep="/")
        end = f"/{KERNEL}"
        kernels = {path.removesuffix(end): leaf.shape for path, leaf in leaves.items() if path.endswith(end)}
        known = {names(module): module for module in kernels}
        unknown = sorted(self.modules.keys() - known.keys())
        if unknown:
            raise self._not_of(f"the network {network!r} has no {_listed(unknown)}")
        factors = {}
        for name, parts in self.modules.items():
            module = known[name]
            stacked = is_stacked(f"{module}/")
            a, b = (_from_torch(parts[half], stacked) for half in (LORA_A, LORA_B))
            rank = a.shape[-1]
            if math.prod(b.shape[int(stacked) : -2]) == 1:  # a convolution of 1×1
                b = b.reshape(*b.shape[: int(stacked)], *b.shape[-2:])
            if (a.shape, b.shape) != factor_shapes(module, kernels[module], rank):
                raise self._not_of(f"{printable(name)} has {a.shape} and {b.shape} for {kernels[module]}")
            alpha = float(parts["alpha"].reshape(())) if "alpha" in parts else _alpha(self.settings, name, rank)
            factors[module] = Factors(a, b, alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank))
        return factors

    def _not_of(self, problem: str) -> ConfigError:
        """Returns the error for a network that the adapter is not of."""
        what = ""
        if self.origin is not None:
            size = format_size(self.origin.image_size)
            what = f", which was trained for images of {size} by the network {self.origin.network!r}"
        return ConfigError(
            f"{self.path} is no adapter of this stage{what}: {problem}; give the stage that it was trained for"
        )


def write_lora(folder: Path, adapter: Tree, config: StageConfig, base: str, step: int) -> Path:
    """Writes an adapter, and returns its file.

    Args:
        folder: the folder of the file, on a disk.
        adapter: from a run, see `adapter.split_adapter`; arrays on any devices of this process.
        config: of the run.
        base: identifies the weights that it was trained beside.
        step: the training step.

    Raises:
        OSError: the file cannot be written.
    """
    rank, alpha = config.adapter.rank, config.adapter.scale * config.adapter.rank
    names = _tensor_names(config.model.network)
    tensors: dict[str, np.ndarray] = {}
    leaves = traverse_util.flatten_dict(adapter, sep="/")
    for path in sorted({path.rpartition("/")[0] for path in leaves}):
        a, b = (np.asarray(jax.device_get(leaves[f"{path}/{half}"])) for half in (LORA_A, LORA_B))
        for end, factor in (("lora_A", a), ("lora_B", with_axes(b, a.ndim))):
            tensor = np.ascontiguousarray(_to_torch(factor, is_stacked(f"{path}/")))
            tensors[f"{_PREFIX}{names(path)}.{end}.weight"] = tensor
    targets = sorted(name.removeprefix(_PREFIX).removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name)
    peft = {"r": rank, "lora_alpha": alpha, "target_modules": targets, "peft_type": "LORA", "bias": "none"}
    metadata = {
        "format": "pt",
        _PEFT: json.dumps({f"{_PREFIX}{key}": value for key, value in peft.items()}, sort_keys=True),
    }
    origin = Origin(network=config.model.network, image_size=config.image_hw, base=base, step=step)
    digest = _digest(origin, metadata[_PEFT], tensors)
    metadata[_OURS] = origin.model_copy(update={"sha256": digest}).model_dump_json()
    specs = {name: TensorSpec("F32", tensor.shape) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, specs, tensors.__getitem__, metadata)
    return folder / FILE


def find_loras(folder: Path) -> list[Path]:
    """Returns the files of adapters in a folder and in its folders `stage_N`."""
    return [file for file in (folder / FILE, *sorted(folder.glob(f"stage_*/{FILE}"))) if file.is_file()]


def lora_paths(path: Path) -> list[Path]:
    """Returns the files of an adapter, that file or those of a folder. Raises ConfigError if there is none."""
    found = [path] if path.is_file() else find_loras(path)
    if not found:
        raise ConfigError(
            f"{path} has no adapter: give a safetensors file, or a folder with {FILE} or stage_N/{FILE}, as imagen "
            "convert --to=lora writes them"
        )
    return found


def read_lora(path: Path) -> LoraFile:
    """Returns the adapter in a safetensors file of this package, of diffusers or of PEFT.

    Raises ConfigError if it is damaged, has a value that is not finite, or is an adapter of something else.
    """
    files = TensorFiles([path])
    tensors = {name: files.read(name, tuple(slice(None) for _ in shape)) for name, shape in files.shapes.items()}
    metadata = files.metadata[path.name]
    origin = _read_origin(path, metadata, tensors)
    wrong = sorted(name for name, tensor in tensors.items() if not np.isfinite(tensor.astype(np.float32)).all())
    if wrong:
        raise ConfigError(f"{path} has values that are not finite, in {_listed(wrong)}: train the adapter again")
    modules, stage = _by_module(path, tensors), _STAGE.fullmatch(path.parent.name)
    number = None if stage is None else int(stage[1])
    return LoraFile(path, sha256_file(path), modules, _read_peft(path, metadata), origin, number)


def _read_origin(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> Origin | None:
    """Returns what a file of this package was trained for, once its checksum is right; None for another program's."""
    if _OURS not in metadata:
        return None
    try:
        origin = Origin.model_validate_json(metadata[_OURS])
    except ValidationError as error:
        raise ConfigError(f"{path} is damaged: its header does not say what it is of; copy it again") from error
    unsigned = origin.model_copy(update={"sha256": ""})
    if origin.sha256 != _digest(unsigned, metadata.get(_PEFT, ""), tensors):
        raise ConfigError(f"{path} is damaged: its checksum is not that of its tensors; copy it again")
    return origin


def _digest(origin: Origin, peft: str, tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of all that a file says."""
    digest = hashlib.sha256(origin.model_dump_json().encode() + peft.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _by_module(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the tensors of each module by what they are. Raises ConfigError for those that are no LoRA of a U-Net."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("base_model.model.").removeprefix(_PREFIX)
        short = _PROCESSOR.sub(r".\1.lora.\2.weight", short)
        end = next((end for end in _ENDS if short.endswith(f".{end}")), None)
        if end is None or short.startswith(("text_encoder.", "text_model.")):
            raise ConfigError(
                f"{path} has {printable(name)}, and adapters are of the kernels of a U-Net, as tensors such as "
                "unet.MODULE.lora_A.weight: give a LoRA that was trained without the text encoder, biases or DoRA"
            )
        # attention's last projection is the first of two modules in diffusers
        module = re.sub(r"\.to_out$", ".to_out.0", short.removesuffix(f".{end}"))
        modules.setdefault(module, {})[_ENDS[end]] = tensor.astype(np.float32)
    if not modules:
        raise ConfigError(f"{path} has no tensors: copy it again")
    for name, parts in modules.items():
        if not {LORA_A, LORA_B} <= parts.keys():
            raise ConfigError(f"{path} has one half of the change of {printable(name)}: copy it again")
    return modules


def _read_peft(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings that PEFT has of a U-Net's adapter. Raises ConfigError for ones that change its meaning."""
    try:
        given = json.loads(metadata.get(_PEFT, "{}"))
        settings = {key.removeprefix(_PREFIX): value for key, value in given.items()}
        float(settings.get("lora_alpha", 0))
        dict(settings.get("alpha_pattern") or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} has no settings of PEFT under {_PEFT} ({error}): copy it again") from error
    if settings.get("use_dora"):
        raise ConfigError(f"{path} is trained with DoRA, which is not supported: give a LoRA without it")
    return settings


def _alpha(settings: Mapping[str, Any], name: str, rank: int) -> float:
    """Returns the alpha of a module: that of a pattern for its name, that of all modules, or its rank."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?{pattern}", name):
            return float(alpha)
    return float(settings.get("lora_alpha", rank))


def _listed(names: Iterable[str]) -> str:
    """Returns some names as text, the others counted."""
    names = [printable(name) for name in names]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


# names and layouts


def _tensor_names(network: str) -> Callable[[str], str]:
    """Returns what gives a module's name in files from its path."""
    if network == "if_unet":
        return lambda path: tensor_name((*path.split("/"), KERNEL)).removesuffix(".weight")
    return lambda path: path.replace("/", ".")


def _to_torch(factor: np.ndarray, stacked: bool) -> np.ndarray:
    """Returns a factor [..., in, out] in torch's layout, [out, in, ...]; layers of a stack stay first."""
    first = int(stacked)
    spatial = range(first, factor.ndim - 2)
    return factor.transpose(*range(first), factor.ndim - 1, factor.ndim - 2, *spatial)


def _from_torch(tensor: np.ndarray, stacked: bool) -> np.ndarray:
    """Returns a factor in Flax's layout, the inverse of `_to_torch`."""
    first = int(stacked)
    spatial = range(first + 2, tensor.ndim)
    return tensor.transpose(*range(first), *spatial, first + 1, first)
