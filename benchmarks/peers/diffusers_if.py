"""diffusers: the U-Net of DeepFloyd IF, with fewer channels and levels."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from benchmarks.peers import torch_work, work


def main() -> None:
    """Measures the network."""
    attention = len(work.CHANNEL_MULT) - 1
    network = UNet2DConditionModel(
        sample_size=work.SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=tuple(multiplier * work.CHANNELS for multiplier in work.CHANNEL_MULT),
        layers_per_block=work.BLOCKS,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * attention),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * attention, "ResnetUpsampleBlock2D"),
        attention_head_dim=work.HEAD_CHANNELS,
        cross_attention_dim=work.CHANNEL_MULT[-1] * work.CHANNELS,
        cross_attention_norm="group_norm",
        encoder_hid_dim=work.TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )

    def forward(z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return network(z, t, encoder_hidden_states=text).sample

    def guided(z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        # both halves in one batch, as in IFPipeline
        both = forward(z.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([torch.zeros_like(text), text]))
        unconditional, conditional = both.chunk(2)
        return unconditional + work.GUIDANCE_SCALE * (conditional - unconditional)

    torch_work.measure(network, forward, guided)


if __name__ == "__main__":
    main()
