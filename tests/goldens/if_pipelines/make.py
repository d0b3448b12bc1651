"""Writes tiny pipelines of DeepFloyd IF with diffusers, and compares them with what `imagen convert` makes of them."""

import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from diffusers.utils import logging

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.loading import load_stage
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.stages.text import make_encoder
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND, TOLERANCE

TEXT_WIDTH = 24  # not that of the attention, so that mixing them up fails
PIECES = ("a", "an", "red", "blue", "green", "circle", "square", "photo", "of", "on", "the", "in", "large", "and", "▁")
# those of DeepFloyd/IF-I-XL-v1.0 but for the sizes
UNET = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "attention_head_dim": 4,
    "block_out_channels": (8, 16),
    "cross_attention_dim": 32,  # of which diffusers makes 32 groups
    "cross_attention_norm": "group_norm",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "encoder_hid_dim": TEXT_WIDTH,
    "encoder_hid_dim_type": "text_proj",
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 4,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 8,
    "time_embedding_dim": 16,
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
# those of DeepFloyd/IF-II-L-v1.0
SUPER_RESOLUTION = {
    "block_out_channels": (8, 12),
    "class_embed_type": "timestep",
    "in_channels": 6,
    "layers_per_block": (1, 2),
    "mid_block_scale_factor": 1.4142271248762552,
    "resnet_out_scale_factor": 1.4142271248762552,
    "resnet_skip_time_act": True,
    "sample_size": 16,
    "time_embedding_act_fn": "gelu",
}
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "sample_max_value": 1.5,
    "thresholding": True,
    "variance_type": "learned_range",
}
CARD = """---
license: other
license_name: tiny-license
license_link: LICENSE
extra_gated_prompt: You agree to everything.
---

# Random weights
"""
PROMPT = "a small red circle on the blue square"
STEPS = 3
logging.set_verbosity_error()
logging.disable_progress_bar()


def scatter(model: torch.nn.Module) -> torch.nn.Module:
    """Moves all parameters off their initial values, so that zeros, norms and biases have an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write():
    """Writes the folders of `cases`, with seeded random weights."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        **{"vocab_size": 64, "d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 36, "num_layers": 1, "num_heads": 3},
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = special + [(piece if piece == "▁" else f"▁{piece}", -float(i)) for i, piece in enumerate(PIECES, 1)]
    parts = {
        "tokenizer": transformers.T5Tokenizer(vocab=vocab, extra_ids=2),
        "text_encoder": scatter(transformers.T5EncoderModel(config)),
        "scheduler": DDPMScheduler(**SCHEDULER),
        "feature_extractor": transformers.CLIPImageProcessor(),
        **{"safety_checker": None, "watermarker": None, "requires_safety_checker": False},
    }
    first = IFPipeline(unet=scatter(UNet2DConditionModel(**UNET)), **parts)
    second = IFSuperResolutionPipeline(
        **parts | {"scheduler": DDPMScheduler(**SCHEDULER | {"sample_max_value": 1.0})},
        unet=scatter(UNet2DConditionModel(**UNET | SUPER_RESOLUTION)),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )
    for folder, pipeline in ((FIRST, first), (SECOND, second)):
        save(pipeline, folder)
    save(first.to(torch.float16), HALF, variant="fp16", max_shard_size="20KB")
    # the pipeline does not hand the size on to transformers
    (HALF / "text_encoder/model.fp16.safetensors").unlink()
    first.text_encoder.save_pretrained(HALF / "text_encoder", variant="fp16", max_shard_size="10KB")
    print(f"{FIRST.parent}: " + ", ".join(path.name for path in (FIRST, SECOND, HALF)))


def save(pipeline, folder, **options):
    """Saves a pipeline, with the card and license of a repository on the Hub."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, **options)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Everything is allowed.\n")


def compare():
    """Converts, converts back, and returns whether diffusers sees the same pipelines and computes the same."""
    print("\nPipelines of DeepFloyd IF with random weights, converted and converted back")
    print(f"{'':24}{'tensors':>10}{'configs':>10}{'images':>10}{'largest difference: U-Net':>30}{'text':>10}")
    passed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert([str(FIRST), str(SECOND)], folder / "both", ConvertSettings(dtype="float32"))
        convert([str(HALF)], folder / "half", ConvertSettings(dtype="float32"))
        for cascade in ("both", "half"):
            to_diffusers(folder / cascade, folder / f"{cascade}_back")
        cases = {
            "stage I": (IFPipeline, FIRST, "both/stage_0", {}),
            "stage II": (IFSuperResolutionPipeline, SECOND, "both/stage_1", {}),
            "stage I, float16": (IFPipeline, HALF, "half/stage_0", {"variant": "fp16", "dtype": torch.float16}),
        }
        for description, (kind, before, stage, options) in cases.items():
            cascade, _, index = stage.partition("/")
            pipelines = [kind.from_pretrained(path, **options) for path in (before, folder / f"{cascade}_back" / index)]
            equal = [check(*pipelines) for check in (same_tensors, same_configs, same_images)]
            differences = [check(pipelines[0], folder / stage) for check in (network_difference, text_difference)]
            words = "".join(f"{'equal' if one else 'DIFFERENT':>10}" for one in equal)
            print(f"{description:24}{words}{differences[0]:30.1e}{differences[1]:10.1e}")
            passed.append(all(equal) and max(differences) <= TOLERANCE)
    print(f"{'tolerated':54}{TOLERANCE:30.0e}{TOLERANCE:10.0e}")
    return all(passed)


def same_tensors(*pipelines):
    """Returns whether all tensors of two pipelines are equal to the bit, and of the same types."""
    first, second = (
        {f"{part}.{name}": tensor for part in ("unet", "text_encoder") for name, tensor in tensors_of(pipeline, part)}
        for pipeline in pipelines
    )
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def tensors_of(pipeline, part):
    return getattr(pipeline, part).state_dict().items()


def same_configs(*pipelines):
    """Returns whether all configs of two pipelines are equal, field by field."""
    first, second = ([config_of(part) for part in (pipeline, *components_of(pipeline))] for pipeline in pipelines)
    return first == second


def components_of(pipeline):
    return [component for _, component in sorted(pipeline.components.items()) if component is not None]


def config_of(component):
    """Returns the config of a component as a dict; of a tokenizer, its vocabulary."""
    if isinstance(component, transformers.T5Tokenizer):
        return component.get_vocab()
    config = getattr(component, "config", component)
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {key: value for key, value in fields.items() if key != "_name_or_path"}


def same_images(*pipelines):
    """Returns whether two pipelines sample the same images from the same noise."""
    images = []
    for pipeline in pipelines:
        pipeline = pipeline.to(torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        given = {}
        if isinstance(pipeline, IFSuperResolutionPipeline):
            given["image"] = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
        given |= {"num_inference_steps": STEPS, "generator": generator, "output_type": "np"}
        images.append(pipeline(PROMPT, **given).images)
    return np.isfinite(images[0]).all() and np.array_equal(*images)


def network_difference(pipeline, folder):
    """Returns the largest difference of what the two U-Nets predict, relative to the largest prediction."""
    unet, rng = pipeline.unet, np.random.default_rng(0)
    size, channels = unet.config.sample_size, unet.config.in_channels
    images = rng.standard_normal((2, size, size, channels), np.float32)
    text = rng.standard_normal((2, 77, TEXT_WIDTH), np.float32)
    index, aug_index = np.array([3, 900]), np.array([250, 0])
    given = [torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(index), torch.tensor(text)]
    second = channels == 6
    with torch.no_grad():
        labels = torch.tensor(aug_index) if second else None
        theirs = unet(*given, class_labels=labels).sample.permute(0, 2, 3, 1).numpy()
    trained = load_stage(folder, read_config(folder), make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
    arguments = [images[..., :3], index.astype(np.float32), text, np.ones((2, 77), bool)]
    arguments += [images[..., 3:], aug_index.astype(np.float32)] if second else []
    apply = jax.jit(trained.stage.network.apply)
    ours = np.asarray(apply({"params": trained.params}, *map(jnp.asarray, arguments)))
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def text_difference(pipeline, folder):
    """Returns the largest difference of the embeddings of a prompt and of none, which are not cleaned."""
    with torch.no_grad():
        theirs = torch.cat(pipeline.encode_prompt(PROMPT, clean_caption=False)).numpy()
    text = read_config(folder).text.with_changes(cleaning="none")
    ours, _ = make_encoder(text)([PROMPT, ""])
    return np.abs(np.asarray(ours) - theirs).max()
