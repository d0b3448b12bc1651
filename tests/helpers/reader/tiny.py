"""The rule by which the commands of a document become small enough to be run in seconds.

A command is checked as it is written first: its config is loaded with its overrides. Then a few overrides are added:

- A side of an image becomes 8 × (log2 of it - 2): 32 is 24, 64 is 32, 1024 is 64. What fits together still does.
- A network has one level, 8 channels and as few layers as it can; a run has 2 steps of 8 images, on one device.
- A stage of DeepFloyd IF is that which it starts from, as `provisions` has it; an adapter is beside a stage as it is.
- A fine-tuning has 2 steps a stage, 2 images of the class, and an adapter of one kernel.
- Data are read as they are, but of rendered scenes there are 64, and Fashion-MNIST is one of a few random images. An
  evaluation has 4 images, a prompt of a benchmark 2.

Everything else stays: data sources and paths, the text encoder, objective, optimizer, sampler, and every flag.
"""

import importlib
import math
from pathlib import Path

from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.load import load_config, schema_of
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.stages.stage_folder import read_config
from tests.helpers.fashion import FOLDER as FASHION

# where a config is only shown
UNCHANGED = ("imagen_jax.cli.config",)

MODEL = {
    "model.channels": 8,
    "model.head_channels": 8,
    "model.channel_mult": (1,),
    "model.cond_dim_mult": 1,
    "model.text_pool_heads": 4,
    "model.num_groups": 4,
    "model.patch_size": 4,
    "model.scan_blocks": False,
}
VAE = {
    **{key: value for key, value in MODEL.items() if key not in ("model.patch_size", "model.scan_blocks")},
    **{"model.num_res_blocks": (0,), "model.latent_groups": (1,), "model.latent_channels": 2},
    **{"model.attention_types": ((),), "vae.components": 2, "vae.importance_samples": 2},
}
CODEC = {
    "channels": 4,
    "channel_mult": (1, 2),
    "num_res_blocks": (0, 0),
    "middle_attention": False,
    "num_groups": 2,
}
RUN = {
    "optimizer.warmup_steps": 0,
    "training.batch_size": 8,  # also for eight devices
    "training.grad_accum_steps": 1,
    "training.steps": 2,
    "training.log_every": 1,
    "training.save_every": 2,
    "training.preview_every": 2,
    "training.preview_count": 2,
    "evaluation.num_samples": 4,
    "evaluation.batch_size": 4,
    "sampling.num_inference_steps": 2,
    "data.threads": 2,
    "data.prefetch": 2,
    "mesh.data": -1,
    "mesh.fsdp": 1,
    "mesh.spatial": 1,
}
EVALUATION = {"num_samples": 4, "batch_size": 4, "data.threads": 2, "data.prefetch": 2}
PROMPTS = {
    "imagen_jax.cli.benchmark_prompts": ["--images=2", "--limit=1"],
    "imagen_jax.cli.fairness": ["--images=2"],
}
FINETUNING = ["--steps=2", "--prior_images=2", "--targets=^out$"]
PRETRAINING = {
    "steps": 2,
    "warmup_steps": 1,
    "batch_size": 4,
    "data.pool": 2,
    "probe.train_captions": 64,
    "probe.test_captions": 64,
}


def tiny_arguments(module, arguments):
    """Returns the arguments of a command, with those added that make its config small.

    Args:
        module: name of the command's module.
        arguments: as they are written.
    """
    if module == "imagen_jax.cli.finetune":
        return [*arguments, *FINETUNING]
    overrides = tiny_overrides(module, arguments)
    return [
        *arguments,
        *PROMPTS.get(module, ()),
        *(f"--config.{key}={value if isinstance(value, str) else repr(value)}" for key, value in overrides.items()),
    ]


def tiny_overrides(module, arguments):
    """Returns what makes the config of a command small; nothing if there is none, or the command itself refuses it."""
    args = CommandFlags(importlib.import_module(module))
    try:
        if args.parse(arguments) or module in UNCHANGED or not getattr(args, "config", None):
            return {}
        schema = schema_of(args.config)
        config = load_config(args.config, args.overrides, schema=schema)
    except ConfigError:
        return {}
    if schema is PretrainTextConfig:
        return PRETRAINING
    data = {"data.num_examples": 64} if config.data.source in ("shapes", "figures") else {}
    if config.data.source == "fashion_mnist":
        data = {"data.path": FASHION}
    if schema is EvaluationConfig:
        return EVALUATION | data
    assert schema is StageConfig
    # a plan is for the devices and the batch that it names
    run = {} if module == "imagen_jax.cli.plan" else RUN
    if config.model.network == "if_unet":
        return run | data | _parent(config)
    if config.model.network == "hvae":
        return VAE | run | data | ({} if config.data.source == "fashion_mnist" else _sizes(config))
    if config.model.network == "kl_vae":
        return run | data | _codec("model") | _sizes(config)
    if config.adapter.enabled:
        return run | data
    codec = _codec("codec.model") | {"codec.scale_images": 8} if config.codec.has_latents else {}
    return MODEL | codec | run | data | _layers(config) | _sizes(config)


def _codec(group):
    return {f"{group}.{name}": value for name, value in CODEC.items()}


def _parent(config):
    """The network and the sizes of the converted stage that a config starts from, which is tiny."""
    parent = read_config(Path(config.training.init_from))
    model = {f"model.{key}": value for key, value in parent.model.to_dict().items() if not isinstance(value, str)}
    return model | {"image_size": parent.image_size, "low_res_size": parent.low_res_size}


def _layers(config):
    layers = {"model.attention_types": ((),), "model.num_res_blocks": (1,)}
    if config.model.network == "unet":
        layers |= {"model.num_res_blocks": (0,), "model.middle_attention_types": ("text",)}
    return layers


def _sizes(config):
    sizes = {"image_size": config.image_hw, "low_res_size": config.low_res_hw, "data.crop_size": config.data.crop_hw}
    sizes["sampling.tile_size"] = config.sampling.tile_hw
    small = {key: small_size(size) for key, size in sizes.items() if any(size)}
    if config.data.bucket_hws:
        small["data.buckets"] = tuple(small_size(size) for size in config.data.bucket_hws)
    return small | ({"sampling.tile_overlap": 8} if "sampling.tile_size" in small else {})


def small_size(size):
    """Returns (height, width) of a small image for a large one: the same aspect ratio, in multiples of 8."""
    unit = math.gcd(*size)
    ratio = [side // unit for side in size]
    times = max(1, round(math.log2(unit)) - (2 if max(ratio) == 1 else 3))
    return tuple(8 * times * side for side in ratio)
