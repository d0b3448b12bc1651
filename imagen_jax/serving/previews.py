"""Previews of images while they are sampled, as small PNG files in base64."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_MAX_SIDE = 256  # pixels


def png_base64(image: np.ndarray) -> str:
    """Returns an image, uint8 [H, W, C], as a PNG file in base64, reduced to sides of at most 256 pixels."""
    if image.shape[-1] not in (1, 3, 4):
        image = image[..., :1]
    small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((_MAX_SIDE, _MAX_SIDE))
    data = io.BytesIO()
    small.save(data, format="PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode("ascii")
