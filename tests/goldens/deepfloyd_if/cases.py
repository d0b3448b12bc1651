"""Runs our network of DeepFloyd IF, and whole walks with it, on the weights and inputs of the goldens.

Weights are functions of their names in diffusers' files, so that goldens are outputs alone.
"""

import functools
import zlib
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from imagen_jax.config.schema import StageConfig
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.process import add_noise
from imagen_jax.io.torch_layout import from_torch, stored_shape
from imagen_jax.models.if_names import tensor_name
from imagen_jax.stages.conditions import split_keys, start_condition
from imagen_jax.stages.sampling import Conditions, make_denoise_fn, make_sampler
from imagen_jax.stages.stage import build
from imagen_jax.stages.stage_sampler import strength_steps
from imagen_jax.text.encoder import TextCondition
from tests.goldens.t5.cases import padded_embeddings

GOLDEN = Path(__file__).parent / "golden.npz"
# float32 against float64; the measured maxima are 3e-6 for networks, and 2e-4 for walks: the noise of their last step,
# to the image itself, which diffusers does not add
UNET_TOLERANCE, WALK_TOLERANCE = 1e-4, 1e-3
LENGTH = 77
TEXT_WIDTH = 16
# what the two stages differ in
SECOND = {"activate_once": True, "res_scale": 2**0.5, "middle_scale": 2**0.5}
TINY = {
    "widths": (16, 32),
    "num_res_blocks": (1, 1),
    "attention": (False, True),
    "head_channels": 8,
    "text_dim": 32,
    "text_pool_heads": 2,
    "num_groups": 8,
}
ODD = {"widths": (24, 40, 56), "num_res_blocks": (2, 1, 2), "attention": (False, True, True)}
DEEP = {"widths": (8, 16, 24, 32), "num_res_blocks": (1,) * 4, "attention": (False, True, True, True)}
HEADS = {"head_channels": 2, "text_pool_heads": 16, "text_dim": 64, "attention": (True, True)}
ODD_SECOND = {"widths": (8, 24, 40), "num_res_blocks": (1, 2, 2), "attention": (False, False, True)}
# name -> fields of the network, (height, width) of images, examples in a batch, whether it is a super-resolution stage
UNETS = {
    "one block a level": (TINY, (16, 16), 1, False),
    "odd widths": (TINY | ODD, (8, 12), 2, False),
    "four levels": (TINY | DEEP, (16, 8), 3, False),
    "many heads": (TINY | HEADS, (6, 10), 2, False),
    "second stage": (TINY | SECOND | {"cond_dim": 48}, (16, 16), 2, True),
    "second stage, odd": (TINY | SECOND | ODD_SECOND, (12, 20), 3, True),
    "silu": (TINY | {"activation": "silu", "attention": (True, False)}, (2, 2), 2, False),
}
# name -> sampling settings, strength, whether known pixels are kept, whether it is the super-resolution stage
WALKS = {
    "fast27": ({"timestep_spacing": "fast27", "num_inference_steps": 27}, 1.0, False, False),
    "50 steps": ({"num_inference_steps": 50}, 1.0, False, False),
    "100 steps": ({"num_inference_steps": 100}, 1.0, False, False),
    "image to image": ({"num_inference_steps": 30}, 0.7, False, False),
    "inpainting": ({"num_inference_steps": 30}, 1.0, True, False),
    "second stage, fast27": ({"timestep_spacing": "fast27", "num_inference_steps": 27}, 1.0, False, True),
    "second stage, 50 steps": ({"num_inference_steps": 50}, 1.0, False, True),
    "second stage, 100 steps": ({"num_inference_steps": 100}, 1.0, False, True),
}
SIZE, LOW_RES, SCALE, NOISE_LEVEL, BATCH = 16, 8, 4.0, 250, 2


def random(name, shape):
    """Returns standard Gaussian numbers, a function of a name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name, shape):
    """Returns a parameter with a name, in diffusers' layout: off its initial value, so that all have an effect."""
    values = random(name, shape)
    if len(shape) == 1:
        return ("norm" in name and name.endswith("weight")) + 0.1 * values
    fan_in = np.prod(shape[1:])
    return values * np.float32(0.7 / np.sqrt(fan_in))


def params_of(shapes):
    """Returns the parameters of our network of some shapes."""
    flat = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        tensor = weight(tensor_name(path), stored_shape(path, leaf.shape))
        flat[path] = jnp.asarray(from_torch(path, tensor))
    return traverse_util.unflatten_dict(flat)


def stage_of(fields, size, second, sampling=()):
    """Returns the stage of a network."""
    changes = {
        "model": {"network": "if_unet", "dtype": "float32", **fields},
        "image_size": size,
        "low_res_size": tuple(side // 2 for side in size) if second else 0,
        "text.model": "random",
        "text.length": LENGTH,
        "text.padding": "encoded",
        "diffusion.schedule": "discrete_cosine",
        "diffusion.aug_schedule": "discrete_cosine",
        "diffusion.aug_after_resize": True,
        "diffusion.align_corners": True,
        "diffusion.variance_type": "learned",
        "sampling.variance_type": "learned",
        "sampling.timestep_spacing": "leading",
        "sampling.guidance_scale": SCALE,
        "sampling.dynamic_threshold_percentile": 95.0,
        "sampling.dynamic_threshold_max": 1.0 if second else 1.5,
        "sampling.aug_level": (NOISE_LEVEL + 1) / 1000 if second else 0.0,
    }
    changes |= {f"sampling.{key}": value for key, value in dict(sampling).items()}
    return build(StageConfig().with_changes(changes), TEXT_WIDTH)


def unet_inputs(name):
    """Returns the arguments of a network: z [B, H, W, 3], levels [B], text, low_res and aug levels, or None."""
    _, size, batch, second = UNETS[name]
    levels = np.random.default_rng(1).integers(0, 1000, (2, batch))
    return (
        random(f"{name} z", (batch, *size, 3)),
        levels[0],
        random(f"{name} text", (batch, LENGTH, TEXT_WIDTH)),
        random(f"{name} low_res", (batch, *size, 3)) if second else None,
        levels[1] if second else None,
    )


def unet(name):
    """Returns the output of our network [B, H, W, 6]."""
    fields, size, batch, second = UNETS[name]
    stage = stage_of(fields, size, second)
    z, level, text, low_res, aug_level = unet_inputs(name)
    params = params_of(jax.eval_shape(stage.init, jax.random.key(0)))
    mask = jnp.ones((batch, LENGTH), bool)
    levels = [None if values is None else jnp.asarray(values, jnp.float32) for values in (level, aug_level)]
    output = jax.jit(stage.network.apply)({"params": params}, z, levels[0], text, mask, low_res, levels[1])
    return np.asarray(output)


def walk_image(name):
    """Returns the image that a walk is given [B, H, W, 3] in [-1, 1]; of the second stage, its low resolution."""
    side = LOW_RES if WALKS[name][3] else SIZE
    return np.clip(random("image", (BATCH, side, side, 3)) / 2, -1, 1)


def walk_mask():
    """Returns the mask [B, H, W, 1] of inpainting."""
    mask = np.zeros((BATCH, SIZE, SIZE, 1), np.float32)
    mask[:, 4:13, 3:10] = 1
    return mask


def noise(name):
    """Returns the noise of a walk [102, B, H, W, 3]: that of the start, of the low resolution, and of each step."""
    return random(f"{name} noise", (102, BATCH, SIZE, SIZE, 3))


def walk(name, tokens, mask):
    """Returns the images of our sampler [B, H, W, 3], not clipped, for tokens [2 · B, L] of prompts and null texts."""
    settings, strength, inpaints, second = WALKS[name]
    fields = TINY | SECOND if second else TINY
    stage = stage_of(fields, (SIZE, SIZE), second, settings)
    params = params_of(jax.eval_shape(stage.init, jax.random.key(0)))
    sampling, image, drawn = stage.config.sampling, walk_image(name), noise(name)
    sampler = make_sampler(sampling, stage.schedule)
    steps = strength_steps(sampling.num_inference_steps, strength)
    times = sampler.times(steps, sampling.timestep_spacing, strength)
    keys = jax.random.split(jax.random.key(0), BATCH)
    drawn_mask, starts = walk_mask(), iter(drawn)

    def given_noise(keys, step, shape):
        # the steps count from 1
        return jnp.asarray(drawn)[1 + step] if isinstance(step, jax.core.Tracer) else next(starts)

    with mock.patch.object(samplers, "gaussian_noise", given_noise):
        start_keys, step_keys, aug_keys = split_keys(keys)
        z = samplers.gaussian_noise(start_keys, 0, (SIZE, SIZE, 3))
        low_res = jnp.asarray(image) if second else None
        condition = start_condition(stage, z.shape, low_res, sampling.aug_level, aug_keys)
        if strength < 1 or inpaints:
            z = add_noise(image, z, stage.schedule.alpha(times[0]), stage.schedule.sigma(times[0]))
        # diffusers keeps known pixels as they are, without noise
        keep = (lambda z, *_: jnp.where(drawn_mask > 0, z, image)) if inpaints else None
        embeddings = jnp.split(jnp.asarray(padded_embeddings(tokens, mask)), 2)
        text, null_text = (TextCondition(*both) for both in zip(embeddings, jnp.split(mask, 2), strict=True))
        conditions = Conditions(text, null_text, condition, jnp.full(BATCH, SCALE), step_keys)

        @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def sample(params, z, times):
            denoise = make_denoise_fn(stage, sampling, True, params, conditions, times)
            return sampler(denoise, z if keep is None else keep(z), times, step_keys, on_step=keep)

        return np.asarray(sample(params, z, times))
