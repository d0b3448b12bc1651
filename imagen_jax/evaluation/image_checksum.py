"""A checksum of a set of images, batch by batch: of their pixels, whatever files they are in, and in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

_BYTES = 16  # of a checksum
_MODULUS = 2 ** (8 * _BYTES)


class ImageChecksum:
    """The sum of the SHA-256 of each image's size and pixels, modulo 2^128; the state has two numbers.

    As it is a sum, parts of the images can be added in any order.
    """

    def __init__(self) -> None:
        self.images, self._sum = 0, 0

    def update(self, first: int, images: Any) -> None:
        """Adds a batch; `first` is not used. See `encoder.FeatureEncoder` for what images are."""
        for image in images:
            pixels = np.asarray(image) if isinstance(image, Image.Image) else image
            digest = hashlib.sha256(f"{pixels.dtype.name} {pixels.shape}".encode())
            digest.update(np.ascontiguousarray(pixels).data)
            self._sum = (self._sum + int.from_bytes(digest.digest()[:_BYTES], "big")) % _MODULUS
        self.images += len(images)

    def merge(self, other: ImageChecksum) -> None:
        """Adds the images of another part."""
        self.images, self._sum = self.images + other.images, (self._sum + other._sum) % _MODULUS

    def hexdigest(self) -> str:
        """Returns the checksum, 32 hexadecimal digits."""
        return self._sum.to_bytes(_BYTES, "big").hex()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the state, exactly."""
        return {"images": np.array(self.images), "sum": np.frombuffer(self._sum.to_bytes(_BYTES, "big"), np.uint8)}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Replaces the state by that of `to_arrays`. Raises ValueError."""
        if arrays["sum"].shape != (_BYTES,):
            raise ValueError("a checksum of another length")
        self.images = int(arrays["images"])
        self._sum = int.from_bytes(arrays["sum"].astype(np.uint8).tobytes(), "big")
