"""Inception-v3 (arXiv:1512.00567) as the Frechet inception distance has it, the TensorFlow graph of 2015-12-05.

It differs from other Inception-v3s: 1008 classes, average pools that leave out the padding, and in the last block a max
pool in place of an average pool. Modules and parameters have the names of pytorch-fid's weights, so that a state dict
maps onto a module one to one. Batch norms use stored statistics only.

B batch, H W rows and columns, C channels.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.classifiers import BatchNorm, ClassifierOutput

FEATURES = 2048
CLASSES = 1008
MIN_SIZE = 75  # side of the smallest images that leave a pixel for the last block
_ROW, _COLUMN = (1, 7), (7, 1)


class _Conv(nn.Module):
    """Convolution, batch norm and ReLU."""

    channels: int
    kernel: tuple[int, int]
    stride: int
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(
            self.channels,
            self.kernel,
            (self.stride, self.stride),
            self.padding,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.relu(BatchNorm(name="bn")(x)).astype(self.dtype)


class _Block(nn.Module):
    """What all blocks have: convolutions by name, and the pools between them."""

    dtype: Any

    def _conv(
        self,
        x: jax.Array,
        channels: int,
        name: str,
        kernel: tuple[int, int] = (1, 1),
        halves: bool = False,
    ) -> jax.Array:
        """Returns features [B, H, W, channels]; those that halve the sides have no padding."""
        stride, padding = (2, "VALID") if halves else (1, "SAME")
        return _Conv(channels, kernel, stride, padding, self.dtype, name=name)(x)


def _halve(x: jax.Array) -> jax.Array:
    """Returns the maxima of 3×3 pixels, every second, without padding."""
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: jax.Array) -> jax.Array:
    """Returns the mean of each pixel and those around it that exist; in float32, as nine are added."""
    return nn.avg_pool(x.astype(jnp.float32), (3, 3), (1, 1), "SAME", count_include_pad=False).astype(x.dtype)


class _BlockA(_Block):
    """35×35 pixels; Fig. 5."""

    pool_channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = self._conv(x, 64, "branch1x1")
        five = self._conv(self._conv(x, 48, "branch5x5_1"), 64, "branch5x5_2", (5, 5))
        double = self._conv(self._conv(x, 64, "branch3x3dbl_1"), 96, "branch3x3dbl_2", (3, 3))
        double = self._conv(double, 96, "branch3x3dbl_3", (3, 3))
        pool = self._conv(_average(x), self.pool_channels, "branch_pool")
        return jnp.concatenate([one, five, double, pool], axis=-1)


class _BlockB(_Block):
    """From 35×35 to 17×17 pixels; Fig. 10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self._conv(x, 384, "branch3x3", (3, 3), halves=True)
        double = self._conv(self._conv(x, 64, "branch3x3dbl_1"), 96, "branch3x3dbl_2", (3, 3))
        double = self._conv(double, 96, "branch3x3dbl_3", (3, 3), halves=True)
        return jnp.concatenate([three, double, _halve(x)], axis=-1)


class _BlockC(_Block):
    """17×17 pixels; Fig. 6 with n = 7."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = self._conv(x, 192, "branch1x1")
        seven = self._conv(x, self.channels, "branch7x7_1")
        for index, (channels, kernel) in enumerate(((self.channels, _ROW), (192, _COLUMN)), start=2):
            seven = self._conv(seven, channels, f"branch7x7_{index}", kernel)
        double = self._conv(x, self.channels, "branch7x7dbl_1")
        for index, kernel in enumerate((_COLUMN, _ROW, _COLUMN, _ROW), start=2):
            double = self._conv(double, 192 if index == 5 else self.channels, f"branch7x7dbl_{index}", kernel)
        pool = self._conv(_average(x), 192, "branch_pool")
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class _BlockD(_Block):
    """From 17×17 to 8×8 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self._conv(self._conv(x, 192, "branch3x3_1"), 320, "branch3x3_2", (3, 3), halves=True)
        seven = self._conv(self._conv(x, 192, "branch7x7x3_1"), 192, "branch7x7x3_2", _ROW)
        seven = self._conv(seven, 192, "branch7x7x3_3", _COLUMN)
        seven = self._conv(seven, 192, "branch7x7x3_4", (3, 3), halves=True)
        return jnp.concatenate([three, seven, _halve(x)], axis=-1)


class _BlockE(_Block):
    """8×8 pixels; Fig. 7. The last one has a max pool."""

    is_last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one = self._conv(x, 320, "branch1x1")
        threes = self._both(self._conv(x, 384, "branch3x3_1"), "branch3x3_2")
        double = self._conv(self._conv(x, 448, "branch3x3dbl_1"), 384, "branch3x3dbl_2", (3, 3))
        doubles = self._both(double, "branch3x3dbl_3")
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.is_last else _average(x)
        pool = self._conv(pooled, 192, "branch_pool")
        return jnp.concatenate([one, *threes, *doubles, pool], axis=-1)

    def _both(self, x: jax.Array, name: str) -> tuple[jax.Array, jax.Array]:
        """Returns features of a row and of a column of three pixels."""
        return self._conv(x, 384, f"{name}a", (1, 3)), self._conv(x, 384, f"{name}b", (3, 1))


class _Classes(nn.Module):
    """The last layer without its bias."""

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (features.shape[-1], CLASSES))
        return features @ kernel.astype(jnp.float32)


class InceptionV3(nn.Module):
    """The network.

    Attributes:
        dtype: of convolutions; batch norms, means and the last layer are in float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> ClassifierOutput:
        """Returns features [B, 2048] ("pool3") and logits [B, 1008] of images [B, H, W, 3] in [-1, 1].

        Comparable numbers are of 299×299 pixels. Logits are without the bias of the last layer, as the inception score
        takes them.
        """
        dtype = self.dtype
        x = _Conv(32, (3, 3), 2, "VALID", dtype, name="Conv2d_1a_3x3")(images.astype(dtype))
        x = _Conv(32, (3, 3), 1, "VALID", dtype, name="Conv2d_2a_3x3")(x)
        x = _halve(_Conv(64, (3, 3), 1, "SAME", dtype, name="Conv2d_2b_3x3")(x))
        x = _Conv(80, (1, 1), 1, "VALID", dtype, name="Conv2d_3b_1x1")(x)
        x = _halve(_Conv(192, (3, 3), 1, "VALID", dtype, name="Conv2d_4a_3x3")(x))
        for letter, pool_channels in (("b", 32), ("c", 64), ("d", 64)):
            x = _BlockA(dtype, pool_channels, name=f"Mixed_5{letter}")(x)
        x = _BlockB(dtype, name="Mixed_6a")(x)
        for letter, channels in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = _BlockC(dtype, channels, name=f"Mixed_6{letter}")(x)
        x = _BlockD(dtype, name="Mixed_7a")(x)
        x = _BlockE(dtype, False, name="Mixed_7b")(x)
        x = _BlockE(dtype, True, name="Mixed_7c")(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return ClassifierOutput(features, _Classes(name="fc")(features))
