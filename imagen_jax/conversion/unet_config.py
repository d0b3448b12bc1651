"""The fields of diffusers' `UNet2DConditionModel`, as unet/config.json has them, and the keys of a stage's config.

Every field of a file is either one that the keys of `IFUNetConfig` express, or has to have the one value with which the
U-Net of DeepFloyd IF works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagen_jax.config.schema import IFUNetConfig, StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable
from imagen_jax.models.if_unet import TEXT_NORM_GROUPS

CLASS = "UNet2DConditionModel"
VERSION = "0.42.1"  # of diffusers, whose defaults and fields these are
ATTENTION_DOWN, RES_DOWN = "SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"
ATTENTION_UP, RES_UP = "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"
_DOWN, _UP = {ATTENTION_DOWN: True, RES_DOWN: False}, {ATTENTION_UP: True, RES_UP: False}
_ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "swish": "silu"}
# whose values the blocks above do not read
_UNREAD = ("_class_name", "_diffusers_version", "_name_or_path", "downsample_padding", "transformer_layers_per_block")
# fields with the one value that is supported
_FIXED: dict[str, Any] = {
    "addition_embed_type": "text",
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": "group_norm",
    "dual_cross_attention": False,
    "encoder_hid_dim_type": "text_proj",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "scale_shift",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": False,
    "use_linear_projection": False,
}
# what diffusers takes for fields that a file lacks, where it is not the supported value or the field has several
_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "attention_head_dim": 8,
    "class_embed_type": None,
    "cross_attention_dim": 1280,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "encoder_hid_dim": None,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_num_groups": 32,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
}
_REQUIRED = ("block_out_channels", "down_block_types", "up_block_types")
_MAX_SHOWN = 100  # characters of a value in a message


class _Fields:
    """The fields of a unet/config.json, with diffusers' defaults; `name` is what errors call the file."""

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        self.name = name
        missing = [field for field in _REQUIRED if field not in fields]
        if missing:
            raise ConfigError(f"{name} lacks {', '.join(missing)}: copy the file that came with the weights")
        self._given = dict(fields)
        self._values = {**_FIXED, **_DEFAULTS, **fields}

    def __getitem__(self, field: str) -> Any:
        return self._values[field]

    def refuse(self, field: str, supported: str) -> ConfigError:
        """Returns the error for a value that is not supported."""
        given = "has no" if field not in self._given else f"has {_show(self[field])} for"
        return ConfigError(
            f"{self.name} {given} {field}, and the network `if_unet` has {supported}: it cannot be converted"
        )

    def check(self) -> None:
        """Raises ConfigError for the first field that is not known, or has another value than the supported one."""
        known = {*_FIXED, *_DEFAULTS, *_REQUIRED, *_UNREAD}
        for field, value in self._given.items():
            if field not in known and value not in (None, False):
                raise ConfigError(
                    f"{self.name} has the field {printable(str(field))[:_MAX_SHOWN]} with {_show(value)}, which the "
                    "network `if_unet` does not have: it cannot be converted"
                )
        for field, supported in _FIXED.items():
            if not _is_same(self[field], supported):
                raise self.refuse(field, _show(supported))

    def number(self, field: str, least: float) -> Any:
        """Returns a number. Raises ConfigError if it is below `least`, or none."""
        value = self[field]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
            raise self.refuse(field, f"a number of {least} or more")
        return value

    def per_level(self, field: str, levels: int) -> tuple[int, ...]:
        """Returns an integer for each level; the file may have one for all."""
        value = self[field]
        values = [value] * levels if _is_count(value) else value
        if not isinstance(values, Sequence) or len(values) != levels or not all(map(_is_count, values)):
            raise self.refuse(field, f"an integer, or one for each of its {levels} levels")
        return tuple(values)

    def one(self, field: str, levels: int) -> int:
        """Returns an integer that is the same for all levels."""
        values = set(self.per_level(field, levels))
        if len(values) > 1:
            raise self.refuse(field, "one for all levels")
        return values.pop()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_same(value: Any, supported: Any) -> bool:
    return value == supported and isinstance(value, bool) == isinstance(supported, bool)


def _show(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def stage_keys(fields: Mapping[str, Any], name: str, is_super_resolution: bool) -> dict[str, Any]:
    """Returns the keys of a stage's config that a unet/config.json decides.

    Args:
        fields: the content of the file.
        name: of the file, for errors.
        is_super_resolution: whether the stage enlarges images.

    Returns:
        Values by dotted keys, as `StageConfig.with_changes` takes them.

    Raises:
        ConfigError: a field is missing, unknown, or has a value that `IFUNet` does not support.
    """
    given = _Fields(fields, name)
    given.check()
    widths = given["block_out_channels"]
    if not isinstance(widths, Sequence) or not widths or not all(map(_is_count, widths)):
        raise given.refuse("block_out_channels", "an integer for each level")
    levels = len(widths)
    return {
        "image_size": _image_size(given),
        "model.network": "if_unet",
        "model.widths": tuple(widths),
        "model.num_res_blocks": given.per_level("layers_per_block", levels),
        "model.attention": _attention(given, levels),
        "model.head_channels": given.one("attention_head_dim", levels),
        "model.text_dim": _text_dim(given, levels),
        "model.text_pool_heads": given.number("addition_embed_type_num_heads", 1),
        "model.num_groups": given.number("norm_num_groups", 1),
        "model.cond_dim": given["time_embedding_dim"] or 0,
        "model.activation": _activation(given),
        "model.activate_once": _activate_once(given),
        "model.res_scale": float(given.number("resnet_out_scale_factor", 0)),
        "model.middle_scale": float(given.number("mid_block_scale_factor", 0)),
        "model.dropout": float(given.number("dropout", 0)),
        **_channels(given, is_super_resolution),
    }


def _image_size(given: _Fields) -> int | tuple[int, int]:
    size = given["sample_size"]
    sides = size if isinstance(size, Sequence) else [size]
    if len(sides) not in (1, 2) or not all(map(_is_count, sides)):
        raise given.refuse("sample_size", "a number of pixels, or height and width")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def _attention(given: _Fields, levels: int) -> tuple[bool, ...]:
    down = _blocks(given, "down_block_types", _DOWN, levels)
    if _blocks(given, "up_block_types", _UP, levels) != down[::-1]:
        raise given.refuse("up_block_types", "those of down_block_types in reverse")
    return down


def _blocks(given: _Fields, field: str, supported: Mapping[str, bool], levels: int) -> tuple[bool, ...]:
    types = given[field]
    if not isinstance(types, Sequence) or len(types) != levels or not all(kind in supported for kind in types):
        raise given.refuse(field, f"one of {' and '.join(supported)} for each of its {levels} levels")
    return tuple(supported[kind] for kind in types)


def _text_dim(given: _Fields, levels: int) -> int:
    width = given.one("cross_attention_dim", levels)
    if width % TEXT_NORM_GROUPS:
        raise given.refuse("cross_attention_dim", f"a multiple of {TEXT_NORM_GROUPS}")
    return width


def _activation(given: _Fields) -> str:
    if given["act_fn"] not in _ACTIVATIONS:
        raise given.refuse("act_fn", " or ".join(_ACTIVATIONS))
    return _ACTIVATIONS[given["act_fn"]]


def _activate_once(given: _Fields) -> bool:
    pair = given["resnet_skip_time_act"], given["time_embedding_act_fn"]
    if pair not in ((False, None), (True, "gelu")):
        raise given.refuse("time_embedding_act_fn", "None, or 'gelu' where resnet_skip_time_act is True")
    return pair[0]


def _channels(given: _Fields, is_super_resolution: bool) -> dict[str, Any]:
    """Returns the keys that the numbers of channels decide. Raises ConfigError unless they are those of the stage."""
    images = 2 if is_super_resolution else 1
    embedding = "timestep" if is_super_resolution else None
    outputs = given["out_channels"]
    if given["in_channels"] != 3 * images:
        which = "a super-resolution stage" if is_super_resolution else "a first stage"
        raise given.refuse("in_channels", f"{3 * images} in {which}")
    if given["class_embed_type"] != embedding:
        raise given.refuse("class_embed_type", f"{embedding!r} with {3 * images} in_channels")
    if outputs not in (3, 6):
        raise given.refuse("out_channels", "3, or 6 with learned variances")
    return {"channels": 3, "diffusion.variance_type": "learned" if outputs == 6 else "fixed"}


def text_width(fields: Mapping[str, Any], name: str) -> int:
    """Returns the width of the text embeddings that a U-Net takes. Raises ConfigError."""
    given = _Fields(fields, name)
    if not _is_count(given["encoder_hid_dim"]):
        raise given.refuse("encoder_hid_dim", "the width of the text encoder")
    if given["encoder_hid_dim"] % given.number("addition_embed_type_num_heads", 1):
        raise given.refuse("addition_embed_type_num_heads", "a divisor of encoder_hid_dim")
    return given["encoder_hid_dim"]


def unet_fields(config: StageConfig, width: int) -> dict[str, Any]:
    """Returns the content of unet/config.json for a stage.

    Args:
        config: of the stage, whose network is `if_unet`.
        width: of the text embeddings.
    """
    model = config.model
    assert isinstance(model, IFUNetConfig)
    images = 2 if config.is_super_resolution else 1
    height, width_of_images = config.image_hw
    fields = {
        **_FIXED,
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "act_fn": model.activation,
        "addition_embed_type_num_heads": model.text_pool_heads,
        "attention_head_dim": model.head_channels,
        "block_out_channels": list(model.widths),
        "class_embed_type": "timestep" if config.is_super_resolution else None,
        "cross_attention_dim": model.text_dim,
        "down_block_types": [ATTENTION_DOWN if attends else RES_DOWN for attends in model.attention],
        "downsample_padding": 1,
        "dropout": model.dropout,
        "encoder_hid_dim": width,
        "in_channels": images * config.channels,
        "layers_per_block": list(model.num_res_blocks),
        "mid_block_scale_factor": model.middle_scale,
        "norm_num_groups": model.num_groups,
        "out_channels": (2 if config.diffusion.variance_type == "learned" else 1) * config.channels,
        "resnet_out_scale_factor": model.res_scale,
        "resnet_skip_time_act": model.activate_once,
        "sample_size": height if height == width_of_images else [height, width_of_images],
        "time_embedding_act_fn": "gelu" if model.activate_once else None,
        "time_embedding_dim": model.cond_dim or None,
        "transformer_layers_per_block": 1,
        "up_block_types": [ATTENTION_UP if attends else RES_UP for attends in reversed(model.attention)],
    }
    return dict(sorted(fields.items()))
