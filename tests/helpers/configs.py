"""Configs of stages so small that they train in seconds, 8×8 and 8 to 16, and what their tests share."""

import functools
import json
import socket
from pathlib import Path

import jax
import numpy as np

from imagen_jax.config.load import load_config, to_json
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import stage as stages
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state

ROOT = Path(__file__).parents[2]
STEPS = 6

SMALL = {
    "text.model": "random",
    "text.length": 24,
    "data.prefetch": 16,
    "model.channels": 8,
    "model.head_channels": 8,
    # one level
    "model.channel_mult": (1,),
    "model.num_res_blocks": (1,),
    "model.attention_types": (("self+text",),),
    "optimizer.name": "adam",
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup_steps": 0,
    # not that of the run: one that stops early and continues has the schedule of an unbroken one
    "optimizer.decay_steps": 20,
    "training.batch_size": 8,
    "training.steps": STEPS,
    "training.log_every": 1,
    "training.save_every": 3,
    "training.preview_every": 3,
    "training.preview_count": 3,
    "sampling.num_inference_steps": 2,
}
# attention in one place: the more parameters there are, the longer each program is compiled
MIDDLE = {"model.attention_types": ((),), "model.middle_attention_types": ("self+text",)}


class FunctionNetwork:
    """In the place of a network: a function of what it is applied to, wherever that lies."""

    def __init__(self, apply):
        self.apply = apply

    def constrain(self, arrays, axes):
        return arrays

    def clone(self, **fields):
        return self


def _schema(file):
    return EvaluationConfig if "_eval" in file else PretrainTextConfig if file == "pretrain_text.py" else StageConfig


@functools.cache
def as_written(file, variant="tiny"):
    """The config of a file in configs/, as it is trained."""
    return load_config(
        f"{ROOT / 'configs' / file}:{variant}" if variant else ROOT / "configs" / file, schema=_schema(file)
    )


def config_of(file, variant="tiny", **changes):
    return as_written(file, variant).with_changes({**SMALL, **changes})


def base_config(**changes):
    return config_of(
        "shapes_base.py", **{"image_size": 8, "model.patch_size": 2, "sampling.sampler": "ddpm", **MIDDLE, **changes}
    )


def sr_config(**changes):
    return config_of("shapes_sr.py", **{"image_size": 16, "low_res_size": 8, **MIDDLE, **changes})


CODEC = {"channels": 4, "channel_mult": (1, 2), "num_res_blocks": (0, 1), "latent_channels": 2, "num_groups": 2}


def codec_config(**changes):
    """A codec of 8×8 images with latents of 4×4, whose discriminator plays in the second half of its run."""
    model = {f"model.{name}": value for name, value in CODEC.items()} | {"model.middle_attention": True}
    play = {"reconstruction.disc_start": STEPS // 2, "reconstruction.disc_channels": 4}
    small = {name: value for name, value in SMALL.items() if not name.startswith(("model.", "text."))}
    return as_written("shapes_codec.py").with_changes({**small, "image_size": 8, **model, **play, **changes})


def latent_config(codec, **changes):
    """A base stage of the latents of `codec_config`, of the codec in a folder."""
    model = {f"codec.model.{name}": value for name, value in CODEC.items()} | {"codec.model.middle_attention": True}
    codec = {"codec.path": str(codec), "codec.scale_images": 16, **model}
    return config_of("shapes_latent.py", **{"image_size": 8, "model.positions": 2, **MIDDLE, **codec, **changes})


def if_config(**changes):
    """A second stage as DeepFloyd IF's, whose variance is learned."""
    model = {
        **{"network": "if_unet", "widths": (8, 16), "num_res_blocks": (1, 1), "attention": (False, True)},
        **{"head_channels": 8, "text_dim": 32, "text_pool_heads": 4, "num_groups": 4, "dtype": "float32"},
        **{"activate_once": True, "res_scale": 2**0.5, "middle_scale": 2**0.5},
    }
    process = {
        "text.padding": "encoded",
        "diffusion.schedule": "discrete_cosine",
        "diffusion.schedule_shift": 0.0,
        "diffusion.aug_schedule": "discrete_cosine",
        "diffusion.aug_schedule_shift": 0.0,
        "diffusion.aug_after_resize": True,
        "diffusion.align_corners": True,
        "diffusion.variance_type": "learned",
        "diffusion.null_text": "empty",
        "sampling.sampler": "ddpm",
        "sampling.variance_type": "learned",
        "sampling.timestep_spacing": "leading",
        "sampling.dynamic_threshold_max": 1.0,
        "sampling.aug_level": 0.251,
    }
    sizes = {"image_size": 16, "low_res_size": 8}
    small = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    return as_written("shapes_sr.py").with_changes({**small, **sizes, "model": model, **process, **changes})


def vae_config(**changes):
    """A hierarchical VAE in the place of the base stage."""
    model = {
        **{"network": "hvae", "channels": 8, "channel_mult": (1, 1), "num_res_blocks": (1, 0), "num_groups": 4},
        **{"latent_groups": (1, 1), "latent_channels": 2, "attention_types": ((), ("text",)), "head_channels": 8},
        **{"text_pool_heads": 2, "dtype": "float32"},
    }
    small = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    settings = {"image_size": 8, "vae.components": 2, "vae.importance_samples": 2, "sampling.guidance_scale": 1.0}
    return as_written("shapes_base.py").with_changes({**small, **settings, "model": model, **changes})


def vae_sr_config(**changes):
    return vae_config(**{"image_size": 16, "low_res_size": 8, **changes})


def refine_config(vae, **changes):
    """A stage that refines the images of `vae_config`, of the VAE in a folder."""
    small = {"image_size": 8, "low_res_size": 8, "model.patch_size": 2, "model.positions": 4, **MIDDLE}
    return config_of("shapes_refine.py", **{**small, "diffusion.low_res_vae": str(vae), **changes})


def one_device():
    return make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])


def eight_devices():
    return make_mesh({"data": 8, "fsdp": 1})


def split_devices():
    return make_mesh({"data": 2, "fsdp": 4})


def fresh_params(stage):
    return jax.jit(stage.init)(jax.random.key(0))


def perturbed_params(stage, scale=0.1):
    """Host parameters of a stage in which nothing is zero: at initialisation most of a network has no effect."""
    rng = np.random.default_rng(0)
    params = fresh_params(stage)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + scale * rng.standard_normal(leaf.shape, np.float32), params)


def restored(folder, config, mesh):
    """(TrainState, position in the data) of the latest checkpoint of a stage's folder, on a mesh."""
    abstract, _ = abstract_state(
        stages.build(config).init, make_optimizer(config.optimizer, config.training.steps), config.seed, mesh
    )
    checkpoints = Checkpoints(folder)
    state, about = checkpoints.restore(abstract)
    checkpoints.close()
    return state, about["data"]


def contents(folder):
    """Every file below a folder with its bytes; None if there is no folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def write_stage(folder, config):
    """A stage's folder without a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    return folder


def free_port():
    """A port of this machine that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
