"""Images as the networks see them that measure them, resized in one of the ways that published numbers differ by.

Numbers of different ways must not be compared: the way alone changes FID by more than many models differ
(arXiv:2104.11222). The names are those of clean-fid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.errors import unknown_name_error
from imagen_jax.images.array import Size
from imagen_jax.images.inputs import as_rgb

INCEPTION_SIZE, LITE0_SIZE = (299, 299), (224, 224)
_Taps = tuple[np.ndarray, np.ndarray, np.ndarray]


def _clean(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Returns pixels resized by a bicubic filter with antialiasing, by PIL, channel by channel, without rounding."""
    # as floats, the result keeps its fractions; what the filter overshoots is clipped
    channels = [Image.fromarray(pixels[..., i].astype(np.float32)) for i in range(pixels.shape[-1])]
    resized = [np.asarray(channel.resize(size[::-1], Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def _tensorflow_taps(old: int, new: int) -> _Taps:
    """Returns the pixels between which each new one is, and how far: it begins where the old ones do (TensorFlow 1)."""
    position = np.arange(new, dtype=np.float32) * np.float32(old / new)
    return _taps(position, old)


def _torch_taps(old: int, new: int) -> _Taps:
    """Returns the pixels between which each new one is, and how far, by the centers of both."""
    position = np.float32(old / new) * (np.arange(new, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    return _taps(np.maximum(position, 0), old)


def _taps(position: np.ndarray, old: int) -> _Taps:
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _bilinear(taps: Callable[[int, int], _Taps]) -> Callable[[np.ndarray, Size], np.ndarray]:
    """Returns a function that interpolates between four pixels, whatever the scale: there is no antialiasing."""

    def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
        (top, bottom, down), (left, right, across) = map(taps, pixels.shape[:2], size)
        pixels, across, down = pixels.astype(np.float32), across[None, :, None], down[:, None, None]
        above, below = (
            pixels[rows][:, left] * (1 - across) + pixels[rows][:, right] * across for rows in (top, bottom)
        )
        return above * (1 - down) + below * down

    return resize


def _from_128(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 255] in [-1, 1), as the network of TensorFlow does itself."""
    return (pixels - 128) / 128


def _from_middle(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels in [0, 255] in [-1, 1]."""
    return 2 * (pixels / 255) - 1


@dataclasses.dataclass(frozen=True)
class Resizing:
    """A way to resize images.

    Attributes:
        description: one line.
        resize: pixels uint8 [H, W, 3] and a size -> float32 of that size, in [0, 255].
        scale: what is resized, for Inception-v3: to about [-1, 1], as the library does.
    """

    description: str
    resize: Callable[[np.ndarray, Size], np.ndarray]
    scale: Callable[[np.ndarray], np.ndarray]


RESIZINGS = {
    "clean": Resizing("bicubic with antialiasing by PIL, as clean-fid", _clean, _from_128),
    "legacy_tensorflow": Resizing(
        "bilinear by TensorFlow 1, as the first code of FID (TTUR) and torch-fidelity",
        _bilinear(_tensorflow_taps),
        _from_128,
    ),
    "legacy_pytorch": Resizing("bilinear by torch, as pytorch-fid", _bilinear(_torch_taps), _from_middle),
}


def get_resizing(name: str) -> Resizing:
    """Returns the way of a name. Raises ConfigError if there is none."""
    if name not in RESIZINGS:
        raise unknown_name_error("resizing", name, RESIZINGS)
    return RESIZINGS[name]


def resize_images(images: Any, resizing: str, size: Size) -> np.ndarray:
    """Returns images resized, float32 [N, h, w, 3] in [0, 255].

    Args:
        images: an array [N, H, W, C], uint8, uint16, or float in [-1, 1], or a sequence of such [H, W, C], or PIL
            images, of any sizes; C is 3 or, for gray, 1. Floats and 16 bits are rounded to 8 bits first, as files are.
        resizing: a name of `RESIZINGS`.
        size: (h, w).

    Raises:
        ConfigError: they are something else, or the name is not known.
    """
    resize, resized = get_resizing(resizing).resize, np.empty((len(images), *size, 3), np.float32)
    for index, image in enumerate(images):
        resized[index] = resize(as_rgb(image), size)
    return resized


def inception_inputs(images: Any, resizing: str = "clean", size: Size = INCEPTION_SIZE) -> np.ndarray:
    """Returns inputs of Inception-v3, float32 [N, h, w, 3] in [-1, 1], scaled as the resizing has it."""
    return get_resizing(resizing).scale(resize_images(images, resizing, size))


def lite0_inputs(images: Any, resizing: str = "clean", size: Size = LITE0_SIZE) -> np.ndarray:
    """Returns inputs of EfficientNet-Lite0, float32 [N, h, w, 3], scaled as in its training."""
    return (resize_images(images, resizing, size) - 127) / 128
