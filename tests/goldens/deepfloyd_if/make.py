"""Compares our network of DeepFloyd IF, its process and its pipelines with those of diffusers.

They run in float64, as 1 - a_t / a_s cancels in float32, and random networks amplify the error; ours do not.
"""

import functools
from unittest import mock

import numpy as np
import torch
import transformers
from diffusers import (
    DDPMScheduler,
    IFImg2ImgPipeline,
    IFInpaintingPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deepfloyd_if import timesteps as lists

from imagen_jax.diffusion.timesteps import SECTIONS
from tests.goldens.deepfloyd_if.cases import (
    BATCH,
    GOLDEN,
    LENGTH,
    NOISE_LEVEL,
    SCALE,
    SECOND,
    SIZE,
    TEXT_WIDTH,
    TINY,
    UNET_TOLERANCE,
    UNETS,
    WALK_TOLERANCE,
    WALKS,
    noise,
    unet,
    unet_inputs,
    walk,
    walk_image,
    walk_mask,
    weight,
)
from tests.goldens.t5.cases import HERE as T5

SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "clip_sample": True,
    "prediction_type": "epsilon",
}
TOKENS = (9, 31, 77)  # of the prompts; the null text has one


def unet_of(fields, size, second):
    """Returns diffusers' network with our fields."""
    down = ["SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in fields["attention"]]
    up = [name.replace("Downsample", "Upsample").replace("Down", "Up") for name in reversed(down)]
    second_fields = {
        "class_embed_type": "timestep",
        "time_embedding_act_fn": "gelu",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": SECOND["res_scale"],
        "mid_block_scale_factor": SECOND["middle_scale"],
    }
    model = UNet2DConditionModel(
        sample_size=size,
        in_channels=6 if second else 3,
        out_channels=6,
        down_block_types=down,
        up_block_types=up,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=fields["widths"],
        layers_per_block=fields["num_res_blocks"],
        attention_head_dim=fields["head_channels"],
        cross_attention_dim=fields["text_dim"],
        norm_num_groups=fields["num_groups"],
        act_fn=fields.get("activation", "gelu"),
        resnet_time_scale_shift="scale_shift",
        cross_attention_norm="group_norm",
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=fields["text_pool_heads"],
        time_embedding_dim=fields.get("cond_dim"),
        **(second_fields if second else {}),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(weight(name, tuple(parameter.shape))))
    return model.eval().double()


def channels_first(images):
    return torch.tensor(np.asarray(images, np.float64)).permute(0, 3, 1, 2)


def scheduler_of(**settings):
    """Returns diffusers' scheduler, whose differences of numbers near 1 cancel in float32: in float64."""
    scheduler = DDPMScheduler(**settings)
    angles = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2
    betas = (1 - angles.cos()[1:] ** 2 / angles.cos()[:-1] ** 2).clamp(max=0.999)
    torch.testing.assert_close(betas.float(), scheduler.betas)
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    scheduler.one = scheduler.one.double()
    return scheduler


def channels_last(images):
    return images.permute(0, 2, 3, 1).float().numpy()


def theirs_unet(name):
    """Returns the output of diffusers' network [B, H, W, 6]."""
    fields, size, _, second = UNETS[name]
    z, level, text, low_res, aug_level = unet_inputs(name)
    images = np.concatenate([z, low_res], axis=-1) if second else z
    labels = {"class_labels": torch.tensor(aug_level)} if second else {}
    with torch.no_grad():
        model = unet_of(fields, size, second)
        output = model(channels_first(images), torch.tensor(level), torch.tensor(text).double(), **labels)
    return channels_last(output.sample)


@functools.cache
def texts():
    """Returns what transformers' T5 makes of random tokens and of the null text, padded: [2 · B, L, D]."""
    model = transformers.T5EncoderModel.from_pretrained(T5 / "encoder").eval()
    mask = np.arange(LENGTH) < np.array([*TOKENS[:BATCH], *[1] * BATCH])[:, None]
    tokens = np.random.default_rng(0).integers(2, 40, mask.shape)
    tokens[BATCH:] = 1
    tokens = np.where(mask, tokens, 0)
    with torch.no_grad():
        output = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
    return {"tokens": tokens.astype(np.int32), "mask": mask, "embeddings": output.last_hidden_state.numpy()}


def theirs_walk(name):
    """Returns the images of a pipeline of diffusers [B, H, W, 3]."""
    settings, strength, inpaints, second = WALKS[name]
    drawn, image = iter(noise(name)), channels_first(walk_image(name))
    unet = unet_of(TINY | SECOND if second else TINY, SIZE, second)
    parts = {
        **{"tokenizer": None, "text_encoder": None, "safety_checker": None, "feature_extractor": None},
        "watermarker": None,
        "unet": unet,
        "scheduler": scheduler_of(**SCHEDULER, sample_max_value=1.0 if second else 1.5),
        "requires_safety_checker": False,
    }
    embeddings = torch.tensor(texts()["embeddings"]).double()
    arguments = {
        "prompt_embeds": embeddings[:BATCH],
        "negative_prompt_embeds": embeddings[BATCH:],
        "num_inference_steps": settings["num_inference_steps"],
        "guidance_scale": SCALE,
        "output_type": "pt",
    }
    if settings.get("timestep_spacing") == "fast27":
        arguments["timesteps"] = lists.fast27_timesteps
    module = "diffusers.pipelines.deepfloyd_if.pipeline_if"
    if second:
        noising = scheduler_of(beta_schedule="squaredcos_cap_v2")
        pipeline = IFSuperResolutionPipeline(image_noising_scheduler=noising, **parts)
        module += "_superresolution"
        arguments |= {"image": image, "noise_level": NOISE_LEVEL}
    elif inpaints:
        pipeline, module = IFInpaintingPipeline(**parts), f"{module}_inpainting"
        arguments |= {"image": image, "mask_image": channels_first(walk_mask()), "strength": strength}
    elif strength < 1:
        pipeline, module = IFImg2ImgPipeline(**parts), f"{module}_img2img"
        arguments |= {"image": image, "strength": strength}
    else:
        pipeline = IFPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)

    def next_noise(*_, **__):
        return channels_first(next(drawn))

    def step_noise(*_, **__):
        return channels_first(next(steps))

    # the pipelines draw nothing for their last step, whose noise has no variance
    steps = iter(noise(name)[2:])
    with (
        mock.patch(f"{module}.randn_tensor", next_noise),
        mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", step_noise),
    ):
        return channels_last(pipeline(**arguments).images)


def their_lists():
    """Returns the lists of noise levels that come with diffusers, which has most of ours."""
    return {f"timesteps {name}": np.array(getattr(lists, f"{name}_timesteps")) for name in SECTIONS}


def write():
    """Writes what diffusers makes of seeded weights and inputs to GOLDEN."""
    arrays = their_lists() | texts()
    arrays |= {name: theirs_unet(name) for name in UNETS} | {f"walk {name}": theirs_walk(name) for name in WALKS}
    arrays = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()}
    arrays["alphas_cumprod"] = DDPMScheduler(**SCHEDULER).alphas_cumprod.numpy()
    del arrays["embeddings"]
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size / 1000:.0f} kB")


def compare():
    """Prints the largest differences, and returns whether all are within their tolerances."""
    print("\nDeepFloyd IF: largest absolute difference, with random weights")
    text, passed = texts(), []
    for names, ours, theirs, tolerance in (
        (UNETS, unet, theirs_unet, UNET_TOLERANCE),
        (WALKS, lambda name: walk(name, text["tokens"], text["mask"]), theirs_walk, WALK_TOLERANCE),
    ):
        for name in names:
            expected = theirs(name)
            difference = np.abs(ours(name) - expected).max()
            print(f"{name:32}{difference:12.1e}   of outputs up to {np.abs(expected).max():.1f}")
            passed.append(difference <= tolerance)
        print(f"{'tolerated':32}{tolerance:12.0e}")
    return all(passed)
