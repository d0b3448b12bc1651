"""lucidrains' imagen-pytorch: its U-Net, with the same channels, levels, blocks and places of attention."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest import mock

import torch
from transformers import T5Config
from transformers.utils import is_torchvision_available

from benchmarks.peers import torch_work, work


def _stand_in_for_torchvision() -> None:
    """Lets imagen_pytorch import transforms of images, which are not used; torchvision needs its own build of torch."""
    is_torchvision_available()  # remembers that it is not
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    package.__spec__, package.__path__ = ModuleSpec("torchvision", None, is_package=True), []
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


def import_library() -> ModuleType:
    """Imports imagen_pytorch, without torchvision and without the hub."""
    _stand_in_for_torchvision()
    # the width of T5, a default of the U-Net that is not used, would be looked up on the hub
    with mock.patch.object(T5Config, "from_pretrained", lambda name: T5Config()):
        return importlib.import_module("imagen_pytorch")


def main() -> None:
    """Measures the network."""
    levels = len(work.CHANNEL_MULT)
    attention = tuple(level > 0 for level in range(levels))
    network = import_library().Unet(
        dim=work.CHANNELS,
        dim_mults=work.CHANNEL_MULT,
        num_resnet_blocks=work.BLOCKS,
        layer_attns=attention,
        layer_cross_attns=attention,
        attn_dim_head=work.HEAD_CHANNELS,
        text_embed_dim=work.TEXT_WIDTH,
        max_text_len=work.TEXT_LENGTH,
    )

    def forward(z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return network(z, t / 1000, text_embeds=text)

    def guided(z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return network.forward_with_cond_scale(z, t / 1000, text_embeds=text, cond_scale=work.GUIDANCE_SCALE)

    torch_work.measure(network, forward, guided)


if __name__ == "__main__":
    main()
