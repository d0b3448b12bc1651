"""Images as CLIP's image tower sees them: resized, cropped and normalized as preprocessor_config.json says.

Images are resized in 8 bits by PIL, as CLIP's training did: with antialiasing, and rounded before they are normalized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.array import Size
from imagen_jax.images.inputs import as_rgb
from imagen_jax.io.atomic import read_json

FILE = "preprocessor_config.json"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESCALE = 1 / 255
_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class CLIPInputs:
    """Makes the inputs of CLIP's image tower.

    Attributes:
        resize: (height, width), or the shorter side, whose aspect is then kept; None for no resizing.
        crop: (height, width) of what is cut out of the middle; None for no cropping.
        resample: a filter of PIL.
        scale: of values from 0 to 255.
        mean: is subtracted from scaled values, by channel.
        std: divides what is left, by channel.
    """

    resize: Size | int | None
    crop: Size | None
    resample: Image.Resampling = Image.Resampling.BICUBIC
    scale: float = _RESCALE
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    @property
    def size(self) -> Size | None:
        """(height, width) of the result; None if it depends on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def __call__(self, images: Any) -> np.ndarray:
        """Returns float32 [N, h, w, 3].

        Args:
            images: an array [N, H, W, C], uint8, uint16, or float in [-1, 1], or a sequence of such [H, W, C], or PIL
                images, of any sizes; C is 3 or, for gray, 1.

        Raises:
            ConfigError: they are something else.
        """
        return np.stack([self._one(image) for image in images])

    def _one(self, image: Any) -> np.ndarray:
        pixels = as_rgb(image)
        height, width = pixels.shape[:2]
        target = _resized(height, width, self.resize)
        if target != (height, width):
            pixels = np.asarray(Image.fromarray(pixels).resize(target[::-1], self.resample))
        if self.crop is not None:
            pixels = _center_crop(pixels, self.crop)
        scaled = (pixels * self.scale).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def _resized(height: int, width: int, resize: Size | int | None) -> Size:
    """Returns the size of an image after resizing; the longer side is rounded down."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    if height <= width:
        return resize, int(resize * width / height)
    return int(resize * height / width), resize


def _center_crop(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Returns the middle of an image [H, W, 3]. Raises ConfigError if the image is smaller."""
    top, left = ((whole - part) // 2 for whole, part in zip(pixels.shape, size, strict=False))
    if min(top, left) < 0:
        raise ConfigError(
            f"an image of {pixels.shape[0]}×{pixels.shape[1]} pixels is smaller than the crop of {size[0]}×{size[1]} "
            f"in {FILE}: give larger images, or one that resizes them"
        )
    return pixels[top : top + size[0], left : left + size[1]]


def read_inputs(folder: Path, image_size: int) -> CLIPInputs:
    """Returns what a folder's preprocessor_config.json describes; without one, what CLIP was trained with.

    Args:
        folder: with the file, on a disk.
        image_size: side of the images that the tower sees.

    Raises:
        ConfigError: the file is damaged, or makes images of another size.
    """
    path = folder / FILE
    try:
        fields = read_json(path)
        inputs = _parse(fields, image_size)
    except FileNotFoundError:
        return CLIPInputs(image_size, (image_size, image_size))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): copy it again") from error
    if inputs.size is not None and inputs.size != (image_size, image_size):
        raise ConfigError(
            f"{path} makes images of {inputs.size[0]}×{inputs.size[1]} pixels, and the image tower beside it takes "
            f"{image_size}×{image_size}: copy the file that came with the weights"
        )
    return inputs


def _parse(fields: dict[str, Any], image_size: int) -> CLIPInputs:
    """Returns the inputs of the fields; raises ValueError, KeyError or TypeError for values that are not valid."""
    if not isinstance(fields, dict):
        raise TypeError("not an object")
    resize = _sides(fields.get("size", image_size), True) if fields.get("do_resize", True) else None
    crop = _sides(fields.get("crop_size", image_size), False) if fields.get("do_center_crop", True) else None
    is_normalized = fields.get("do_normalize", True)
    mean, std = (
        _numbers(fields.get(name, usual)) if is_normalized else (neutral,) * _CHANNELS
        for name, usual, neutral in (("image_mean", _MEAN, 0.0), ("image_std", _STD, 1.0))
    )
    if not all(std):
        raise ValueError("image_std has a zero")
    return CLIPInputs(
        resize=resize,
        crop=crop if crop is None or isinstance(crop, tuple) else (crop, crop),
        resample=Image.Resampling(fields.get("resample", Image.Resampling.BICUBIC)),
        scale=float(fields.get("rescale_factor", _RESCALE)) if fields.get("do_rescale", True) else 1.0,
        mean=mean,
        std=std,
    )


def _sides(value: Any, shortest: bool) -> Size | int:
    """Returns a size of the file: a number, which may be of the shorter side, or height and width."""
    if isinstance(value, dict):
        value = value["shortest_edge"] if shortest and "shortest_edge" in value else (value["height"], value["width"])
    sides = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{value!r} is not a number of pixels")
    return value


def _numbers(value: Sequence[float]) -> tuple[float, ...]:
    if len(value) != _CHANNELS:
        raise ValueError(f"{value!r} does not have a number for each of {_CHANNELS} channels")
    return tuple(map(float, value))
