"""What the keys of a stage's config may be: one rule for each, looked at before anything is built.

Rules see one value at a time; whether values go together is checked where they meet, by ``stage.check`` and others.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from imagen_jax.data.transforms import CROPS
from imagen_jax.diffusion.noise_augmentation import DISTRIBUTIONS
from imagen_jax.diffusion.process import PREDICTIONS, WEIGHTS
from imagen_jax.diffusion.samplers import SAMPLERS
from imagen_jax.diffusion.samplers import VARIANCES as SAMPLING_VARIANCES
from imagen_jax.diffusion.schedules import SCHEDULES
from imagen_jax.diffusion.timesteps import GRIDS
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import DTYPES as IMAGE_DTYPES
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.layers import ATTENTION_KINDS
from imagen_jax.models.unet import UNet
from imagen_jax.models.unet_base import REMAT, Denoiser
from imagen_jax.parallel.sharding import AXES

NETWORKS: dict[str, type[Denoiser]] = {"unet": UNet, "efficient_unet": EfficientUNet}
VARIANCES = ("fixed", "learned")
UNCONDITIONALS = ("zero", "empty")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
OPTIMIZERS = ("adam", "adafactor", "muon")
THRESHOLDS = ("none", "static", "dynamic")
ON_FAILED_SAVE = ("stop", "go on")

# beyond these a number is a slip of the hand, and memory or time would end before the run does
MAX_SIDE = 8192
MAX_CHANNELS = 2**16
MAX_COUNT = 2**40
MAX_SEED = 2**63 - 1


class Rule(NamedTuple):
    """What a value may be: whether one is allowed, and the end of the sentence on one that is not."""

    allows: Callable[[Any], bool]
    said: str


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number, whole or not, that is finite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: int = MAX_COUNT) -> Rule:
    """A whole number of [low, high]."""
    endless = high == MAX_COUNT
    said = f"must be a whole number of at least {low}" if endless else f"is no whole number in [{low}, {high}]"
    return Rule(lambda value: is_whole(value) and low <= value <= high, said)


def number(low: float, high: float) -> Rule:
    """A number of [low, high]."""
    return Rule(lambda value: is_number(value) and low <= value <= high, f"is not in [{low:g}, {high:g}]")


def between(low: float, high: float, last: bool = False) -> Rule:
    """A number of (low, high), or of (low, high] if the last counts."""
    said = f"is not in ({low:g}, {high:g}{']' if last else ')'}"
    return Rule(lambda value: is_number(value) and (low < value < high or (last and value == high)), said)


def choice(names: Collection[Any]) -> Rule:
    """One of some names."""
    listed = ", ".join(map(str, names))
    known = tuple(names)
    # by type too: True is no 1
    return Rule(
        lambda value: any(type(value) is type(name) and value == name for name in known),
        f"is not known: choose one of {listed}",
    )


def each(rule: Callable[[Any], bool], said: str, least: int = 0) -> Rule:
    """A tuple, or a list as JSON gives it, in which a rule holds of each item."""

    def allows(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) >= least and all(map(rule, value))

    return Rule(allows, said)


def is_kinds(value: Any) -> bool:
    """Whether it is a tuple of attention layers."""
    return isinstance(value, (list, tuple)) and all(kind in ATTENTION_KINDS for kind in value)


def is_size(value: Any) -> bool:
    """Whether it is a size of images: one number, or (height, width)."""
    sides = value if isinstance(value, (list, tuple)) else (value,)
    return len(sides) in (1, 2) and all(is_whole(side) and side <= MAX_SIDE for side in sides)


SWITCH = Rule(lambda value: isinstance(value, bool), "must be True or False")
TEXT = Rule(lambda value: isinstance(value, str) and bool(value) and "\0" not in value, "must be a name, not empty")
NUMBER = Rule(is_number, "must be a finite number")
POSITIVE = Rule(lambda value: is_number(value) and value > 0, "must be above 0 and finite")
BELOW_1 = Rule(lambda value: is_number(value) and 0 <= value < 1, "is not in [0, 1)")
NOT_NEGATIVE = Rule(lambda value: is_number(value) and value >= 0, "must be at least 0 and finite")
SIZE = Rule(is_size, f"is not a whole number, for a square, nor a pair (height, width) of them, up to {MAX_SIDE}")
ANY_TEXT = Rule(lambda value: isinstance(value, str) and "\0" not in value, "must be text")
TEXTS = each(lambda one: isinstance(one, str), "must be a tuple of texts")
# their members are of the config's own names: who reads them says what is wrong with them
GROUP = Rule(lambda value: isinstance(value, Mapping) and bool(value), "must be a group of keys, not empty")
SEED = whole(0, MAX_SEED)
COUNT = whole(1)
RANGE = Rule(
    lambda value: (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in value)
        and 0 <= value[0] <= value[1]
    ),
    "must be two numbers of at least 0, the lower one first",
)
RULED = Rule(lambda value: isinstance(value, (list, tuple)), "must be a tuple of rules; () for none")
KINDS = ", ".join(ATTENTION_KINDS)

AXIS = Rule(
    lambda value: is_whole(value) and (value == -1 or value > 0), "must be a number of devices, or -1 for those left"
)

RULES: dict[str, Rule] = {
    "seed": SEED,
    "image_size": SIZE,
    "channels": whole(1, MAX_CHANNELS),
    "low_res_size": SIZE,
    "data.split": TEXT,
    "data.validation_split": TEXT,
    "data.crop_size": SIZE,
    "data.bits": choice(IMAGE_DTYPES),
    "data.threads": whole(1, 1024),
    "data.prefetch": whole(1, 2**20),
    "text.model": TEXT,
    "text.length": whole(2, 2**16),
    "text.dtype": choice(DTYPES),
    "text.cache": ANY_TEXT,
    "text.fingerprint": ANY_TEXT,
    "model.network": choice(NETWORKS),
    "model.patch": whole(1, MAX_SIDE),
    "model.positions": whole(0, MAX_CHANNELS),
    "model.input_skip": SWITCH,
    "model.channels": whole(1, MAX_CHANNELS),
    "model.multipliers": each(lambda one: is_whole(one) and 1 <= one <= 64, "must be whole numbers in [1, 64]", 1),
    "model.blocks": each(lambda one: is_whole(one) and 0 <= one <= 256, "must be whole numbers in [0, 256]", 1),
    "model.attention": each(is_kinds, f"must be a tuple for each level, of any of {KINDS}"),
    "model.middle_attention": Rule(is_kinds, f"must be a tuple of any of {KINDS}"),
    "model.head_channels": whole(1, MAX_CHANNELS),
    "model.attention_mlp": whole(0, 64),
    "model.embedding_multiplier": whole(1, 64),
    "model.text_heads": whole(1, 1024),
    "model.norm_groups": whole(1, MAX_CHANNELS),
    "model.skip_scale": POSITIVE,
    "model.dropout": BELOW_1,
    "model.scan_blocks": SWITCH,
    "model.dtype": choice(DTYPES),
    "diffusion.schedule": choice(SCHEDULES),
    "diffusion.schedule_shift": number(-20, 20),
    "diffusion.aug_schedule": choice(SCHEDULES),
    "diffusion.aug_schedule_shift": number(-20, 20),
    "diffusion.aug_level_distribution": choice(DISTRIBUTIONS),
    "diffusion.aug_level_range": RANGE,
    "diffusion.aug_level_mean": NUMBER,
    "diffusion.aug_level_std": POSITIVE,
    "diffusion.align_corners": SWITCH,
    "diffusion.prediction": choice(PREDICTIONS),
    "diffusion.weight": choice(WEIGHTS),
    "diffusion.weight_bias": number(-40, 40),
    "diffusion.min_snr_gamma": POSITIVE,
    "diffusion.sigma_data": POSITIVE,
    "diffusion.variance": choice(VARIANCES),
    "diffusion.vlb_weight": POSITIVE,
    "diffusion.caption_dropout": number(0, 1),
    "diffusion.unconditional": choice(UNCONDITIONALS),
    "optimizer.name": choice(OPTIMIZERS),
    "optimizer.learning_rate": between(0, 10, last=True),
    "optimizer.warmup_steps": whole(0),
    "optimizer.decay_steps": COUNT,
    "optimizer.b1": BELOW_1,
    "optimizer.b2": BELOW_1,
    "optimizer.eps": between(0, 1),
    "optimizer.first_moment_dtype": choice(DTYPES),
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.clip_norm": POSITIVE,
    "optimizer.spike_factor": NOT_NEGATIVE,
    "optimizer.ema_decay": BELOW_1,
    "training.batch_size": whole(1, 2**24),
    "training.accumulation": whole(1, 2**24),
    "training.remat": choice(REMAT),
    "training.steps": COUNT,
    "training.log_every": COUNT,
    "training.save_every": COUNT,
    "training.preview_every": COUNT,
    "training.preview_count": whole(1, 4096),
    "training.keep_checkpoints": COUNT,
    "training.keep_best": SWITCH,
    "training.on_failed_save": choice(ON_FAILED_SAVE),
    "training.max_bad_steps": COUNT,
    "training.stall_seconds": POSITIVE,
    "training.allow_batch_change": SWITCH,
    **{f"mesh.{axis}": AXIS for axis in AXES},
    "sharding_rules": RULED,
    "sampling.sampler": choice(SAMPLERS),
    "sampling.grid": choice(GRIDS),
    "sampling.variance": choice(SAMPLING_VARIANCES),
    "sampling.eta": number(0, 1),
    "sampling.churn": NOT_NEGATIVE,
    "sampling.churn_range": RANGE,
    "sampling.churn_noise": NOT_NEGATIVE,
    "sampling.steps": whole(1, 2**20),
    "sampling.guidance": NUMBER,
    "sampling.guidance_from": number(0, 1),
    "sampling.guidance_to": number(0, 1),
    "sampling.guidance_rescale": number(0, 1),
    "sampling.guidance_constant_steps": whole(0),
    "sampling.guidance_low": NUMBER,
    "sampling.guidance_oscillates": SWITCH,
    "sampling.threshold": choice(THRESHOLDS),
    "sampling.percentile": between(1, 100, last=True),
    "sampling.aug_level": number(0, 1),
    "sampling.tile_size": SIZE,
    "sampling.tile_overlap": whole(0, MAX_SIDE),
    "sampling.bits": choice(IMAGE_DTYPES),
}

# Of image files, whatever they lie in.
FILES = {
    "data.max_broken": number(0, 1),
    "data.transform.crop": choice(CROPS),
    "data.transform.flip": SWITCH,
    "data.transform.background": Rule(
        lambda value: all(map(is_whole, value)) if isinstance(value, (list, tuple)) else is_whole(value),
        "is neither a gray level of [0, 255] nor three",
    ),
    "data.transform.upscale": SWITCH,
    "data.transform.max_pixels": whole(1),
}
# What ``data`` has beside that for each source.
OF_SOURCES: dict[str, dict[str, Rule]] = {
    "shapes": {"data.seed": SEED, "data.examples": whole(1, MAX_SEED), "data.transparent": SWITCH},
    "digits": {},
    "folder": FILES | {"data.path": ANY_TEXT, "data.caption_column": TEXT, "data.validation_share": number(0, 1)},
    "tfds": FILES | {"data.path": ANY_TEXT, "data.image": TEXT, "data.captions": TEXTS, "data.templates": TEXTS},
    "webdataset": FILES | {"data.shards": GROUP},
    "mixture": {"data.parts": GROUP},
}
# What may be left out.
OPTIONAL = {"data.balance": GROUP, "data.buckets": each(is_size, "must be a tuple of sizes; () for none")}
OPAQUE = ("data.shards", "data.parts", "data.balance")


def rules_of(config: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules of a config, as ``flatten`` gives it: those of its network and of its source among them.

    Of a network or a source that is not known the keys are not either: those that any of its kind has are let through.
    """
    source, network = config.get("data.source"), config.get("model.network")
    rules = RULES | {"data.source": choice(OF_SOURCES)}
    optional = dict(OPTIONAL)
    if isinstance(source, str) and source in OF_SOURCES:
        rules |= OF_SOURCES[source]
        # its parts may have no image files
        optional |= FILES if source == "mixture" else {}
    else:
        optional |= {key: rule for of_one in OF_SOURCES.values() for key, rule in of_one.items()}
    rules |= {key: rule for key, rule in optional.items() if key in config}
    if isinstance(network, str) and network in NETWORKS:
        fields = {f"model.{field.name}" for field in dataclasses.fields(NETWORKS[network])} | {"model.network"}
        return {key: rule for key, rule in rules.items() if not key.startswith("model.") or key in fields}
    return rules


def check_values(config: Mapping[str, Any]) -> None:
    """Raises UsageError for all keys of a stage's config, nested, that are unknown, missing or of no right value."""
    flat = flatten(config, whole=OPAQUE)
    rules = rules_of(flat)
    groups = {".".join(parts[:count]) for parts in (key.split(".") for key in rules) for count in range(1, len(parts))}
    problems = []
    for key in flat.keys() - rules.keys():
        if key in groups:
            members = ", ".join(name.rpartition(".")[2] for name in rules if name.startswith(f"{key}."))
            problems.append(f"config.{key} {shown(flat[key])} must be a group of keys: {members}")
        else:
            near = difflib.get_close_matches(key, rules, n=1, cutoff=0.0)[0]
            problems.append(f"the config has a key {key!r} that is not known: the nearest is {near!r}")
    absent = sorted(rules.keys() - flat.keys())
    if absent and not any(key in groups for key in flat):
        problems.append(
            f"the config lacks {', '.join(absent)}: every default stands in a config, see configs/shapes_base.py"
        )
    problems += [
        f"config.{key} {shown(flat[key])} {rule.said}"
        for key, rule in rules.items()
        if key in flat and not rule.allows(flat[key])
    ]
    if problems:
        raise ConfigError(*sorted(problems))


def shown(value: Any) -> str:
    """A value in a sentence, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def flatten(tree: Mapping[str, Any], prefix: str = "", whole: Collection[str] = ()) -> dict[str, Any]:
    """Nested dicts as one dict, its keys joined by dots; an empty one is a value, and so are those at ``whole``."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        is_group = isinstance(value, Mapping) and len(value) and key not in whole
        flat.update(flatten(value, f"{key}.", whole) if is_group else {key: value})
    return flat
