"""Images and masks that users give: checked, and as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import to_uint, to_uint8

_RGB = 3
_MODES = {1: ("L", "1"), 3: ("RGB",)}  # of PIL images, by channels


def as_images(value: Any, channels: int, name: str = "image") -> np.ndarray:
    """Returns images as uint8 [N, H, W, C].

    Args:
        value: a PIL image, an array uint8 [H, W, C] or [N, H, W, C], or a sequence of such of one size.
        channels: C.
        name: of the argument, for messages.

    Raises:
        ConfigError: it is something else, such as an image with an alpha channel or with 16 bits.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [as_images(part, channels, name) for part in value]
        sizes = sorted({part.shape[1:3] for part in parts})
        if len(sizes) != 1:
            shown = ", ".join(f"{height}×{width}" for height, width in sizes) or "none"
            raise ConfigError(f"{name} has images of several sizes ({shown}): give images of one size")
        return np.concatenate(parts)
    array = _from_pil(value, channels, name) if isinstance(value, Image.Image) else value
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{name} is {_shown(value)}: give a PIL image, or an array uint8 [H, W, {channels}]")
    if array.dtype == np.uint16:
        raise ConfigError(f"{name} has 16 bits per channel: give 8 bits, such as (image / 257).round().astype('uint8')")
    if array.dtype != np.uint8:
        raise ConfigError(f"{name} is an array of {array.dtype}: give uint8, from 0 to 255")
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim == 4 and array.shape[-1] in (2, 4) and array.shape[-1] == channels + 1:
        raise ConfigError(f"{name} has an alpha channel: {_FLATTEN}")
    if array.ndim != 4 or array.shape[-1] != channels or 0 in array.shape:
        raise ConfigError(f"{name} has the shape {array.shape}: give [H, W, {channels}], or [N, H, W, {channels}]")
    return array


def as_rgb(image: Any) -> np.ndarray:
    """Returns an image as uint8 [H, W, 3], as networks that measure images see them.

    Args:
        image: a PIL image, or an array [H, W, C], uint8, uint16, or float in [-1, 1]; C is 3 or, for gray, 1. Floats
            and 16 bits are rounded.

    Raises:
        ConfigError: it is something else, or has NaN.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ConfigError("image has values that are not finite: give values in [-1, 1]")
        image = np.asarray(to_uint(image, np.dtype(np.uint8)))
    if isinstance(image, np.ndarray) and image.dtype == np.uint16:
        image = to_uint8(image)
    is_gray = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] == 1
    return as_images(np.repeat(image, _RGB, -1) if is_gray else image, _RGB)[0]


_FLATTEN = "put it on a background; to draw transparent areas anew, give them as the mask of inpainting"


def _from_pil(image: Image.Image, channels: int, name: str) -> Any:
    """Returns the pixels of a PIL image."""
    if image.mode.startswith(("I", "F")):
        raise ConfigError(f"{name} has more than 8 bits per channel (mode {image.mode}): give 8 bits")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        raise ConfigError(f"{name} has an alpha channel: {_FLATTEN}")
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in _MODES.get(channels, ()):
        expected = " or ".join(_MODES.get(channels, (f"{channels} channels",)))
        raise ConfigError(f"{name} is of mode {image.mode}, not {expected}: convert it, as by image.convert('RGB')")
    return np.asarray(image.convert("L") if image.mode == "1" else image)


def as_masks(value: Any, name: str = "mask") -> np.ndarray:
    """Returns masks as float32 [N, H, W, 1]: 1 where pixels are to be drawn anew, 0 where they are kept.

    Args:
        value: a PIL image in gray or black and white, an array uint8 or bool [H, W], or a sequence of such; what is 128
            or more, or True, is drawn anew.
        name: of the argument, for messages.

    Raises:
        ConfigError: it is something else, or a mask is all empty or all full.
    """
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    masks = (as_images([_as_gray(part) for part in parts], 1, name) >= 128).astype(np.float32)
    for mask in masks:
        if mask.min() == mask.max():
            what = "nothing to draw anew: paint over something" if not mask.any() else "nothing that is kept"
            raise ConfigError(f"{name} has {what}; white is drawn anew, black is kept")
    return masks


def _as_gray(mask: Any) -> Any:
    """Returns a mask in the form of an image in gray, if it has a form that only masks have."""
    if isinstance(mask, Image.Image) and mask.mode == "RGB":
        return mask.convert("L")
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.uint8) * 255
    return mask[..., None] if isinstance(mask, np.ndarray) and (mask.ndim == 2 or mask.shape[-1] != 1) else mask


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) or value is None else f"a {type(value).__name__}"
