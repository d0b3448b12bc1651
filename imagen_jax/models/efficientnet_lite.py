"""EfficientNet-Lite0 (arXiv:1905.11946, without squeeze-and-excitation and with ReLU6), a small classifier of ImageNet.

Names are those of efficientnet-lite-pytorch without their leading underscores.

B batch, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.classifiers import BatchNorm, ClassifierOutput

FEATURES = 1280
CLASSES = 1000


class _Stage(NamedTuple):
    """Blocks of equal widths; the first has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


# Table 1 of arXiv:1905.11946
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)


def _conv(channels: int, name: str, dtype: Any, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv:
    return nn.Conv(
        channels,
        (kernel, kernel),
        (stride, stride),
        "SAME",
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        name=name,
    )


class _Block(nn.Module):
    """An inverted bottleneck (arXiv:1801.04381): wider, by itself each channel over pixels, narrow again."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            h = nn.relu6(BatchNorm(name="bn0")(_conv(width, "expand_conv", self.dtype)(h)))
        h = _conv(width, "depthwise_conv", self.dtype, self.kernel, self.stride, groups=width)(h)
        h = nn.relu6(BatchNorm(name="bn1")(h))
        h = BatchNorm(name="bn2")(_conv(self.channels, "project_conv", self.dtype)(h)).astype(self.dtype)
        return x + h if h.shape == x.shape else h


class EfficientNetLite0(nn.Module):
    """The network.

    Attributes:
        dtype: of convolutions; batch norms, means and the last layer are in float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> ClassifierOutput:
        """Returns features [B, 1280] and logits [B, 1000] of images [B, H, W, 3] in about [-1, 1], usually 224×224."""
        x = nn.relu6(BatchNorm(name="bn0")(_conv(32, "conv_stem", self.dtype, 3, 2)(images.astype(self.dtype))))
        x, index = x.astype(self.dtype), 0
        for blocks, kernel, stride, expansion, channels in _STAGES:
            for repeat in range(blocks):
                first_stride = 1 if repeat else stride
                x = _Block(kernel, first_stride, expansion, channels, self.dtype, name=f"blocks_{index}")(x)
                index += 1
        x = nn.relu6(BatchNorm(name="bn1")(_conv(FEATURES, "conv_head", self.dtype)(x)))
        features = x.mean(axis=(1, 2))
        return ClassifierOutput(features, nn.Dense(CLASSES, dtype=jnp.float32, name="fc")(features))
