"""Writes a pipeline of DeepFloyd IF's kind with random weights, by diffusers: `python -m benchmarks.peers.tiny_if OUT`.

It is so small that it learns on a CPU to draw single objects of `shapes` at 16×16, and its vocabulary is theirs.
"""

from __future__ import annotations

import sys

import torch
import transformers
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

from imagen_jax.datasets.shapes.scenes import COLORS, NEW_SHAPES, SHAPES

SIZE = 16
RARE = "sks"
_TEXT_WIDTH = 64


def main(out: str) -> None:
    """Writes the pipeline to a folder."""
    torch.manual_seed(0)
    words = ("a", "an", "object", "shape", RARE, *COLORS, *SHAPES, *NEW_SHAPES)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -100.0)]
    vocab = special + [(f"▁{word}", -float(rank)) for rank, word in enumerate(words, 1)]
    tokenizer = transformers.T5Tokenizer(vocab=vocab, extra_ids=0)
    text_config = transformers.T5Config(
        vocab_size=len(vocab),
        d_model=_TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    text_encoder = transformers.T5EncoderModel(text_config)
    unet = UNet2DConditionModel(
        sample_size=SIZE,
        in_channels=3,
        out_channels=6,  # the noise, and where its variance is between two bounds
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
        cross_attention_dim=64,
        cross_attention_norm="group_norm",
        encoder_hid_dim=_TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )
    pipeline = IFPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out)
    print(f"{out}: {sum(parameter.numel() for parameter in unet.parameters()):,} parameters")


if __name__ == "__main__":
    main(sys.argv[1])
