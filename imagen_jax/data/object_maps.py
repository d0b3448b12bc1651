"""Maps of the objects in an image, from which masks of inpainting are drawn in training.

A map is uint8 [H, W]: 0 where there is no object, and for each object another number. As a file it is an image with one
channel, of gray levels or of a palette's indices, such as a PNG that a segmentation tool writes.
"""

from __future__ import annotations

import io
from typing import SupportsIndex

import numpy as np
from PIL import Image

from imagen_jax.data.record import CorruptRecordError, Source, read_objects
from imagen_jax.images.array import Size, format_height_width

_MODES = ("L", "P", "1")
_FORMATS = ("PNG", "BMP", "TIFF", "WEBP", "GIF")  # lossless; a JPEG's levels are not the numbers that were meant
_MAX_ASPECT_ERROR = 0.02
_MAX_PIXELS = 2**28


def read_object_map(source: Source, index: SupportsIndex, name: str, size: Size) -> np.ndarray:
    """Returns the objects of a record, uint8 [H, W, 1]; zeros if nothing says where they are.

    Args:
        source: the records.
        index: the record.
        name: its name, for errors.
        size: (H, W) of its decoded image, to which a file is resized without mixing numbers.

    Raises:
        CorruptRecordError: the file cannot be read, or has another form than the image.
    """
    objects = read_objects(source, index)
    if objects is None:
        return np.zeros((*size, 1), np.uint8)
    if isinstance(objects, bytes):
        objects = _decode(objects, f"the map of objects of {name}", size)
    return np.asarray(objects, np.uint8)[..., None]


def _decode(data: bytes, name: str, size: Size) -> np.ndarray:
    """Decodes a file to uint8 [H, W]; `name` is for errors."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if image.mode not in _MODES:
                problem = f"has the mode {image.mode}, expected one channel of 8 bits (gray levels, or a palette)"
                raise CorruptRecordError(name, problem)
            if width * height > _MAX_PIXELS:
                raise CorruptRecordError(name, f"has {width * height:,} pixels, more than {_MAX_PIXELS:,}")
            if abs(np.log(height / width * size[1] / size[0])) > _MAX_ASPECT_ERROR + 1 / min(size):
                given, expected = format_height_width((height, width)), format_height_width(size)
                raise CorruptRecordError(name, f"is {given} and its image, resized, {expected}: another aspect ratio")
            single = image.convert("L") if image.mode == "1" else image
            return np.asarray(single.resize(size[::-1], Image.Resampling.NEAREST))
    except (CorruptRecordError, MemoryError):
        raise
    except Exception as error:  # each of PIL's readers raises errors of its own
        raise CorruptRecordError(name, " ".join(str(error).split())[:200] or type(error).__name__) from error
