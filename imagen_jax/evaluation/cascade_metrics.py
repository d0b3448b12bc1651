"""What can be measured on a cascade's pictures by themselves: what no stage should change of the one before it.

Pictures are uint8 or uint16 [N, H, W, C]; a step is 1/255 of their range.
"""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from imagen_jax.images.resize import resize

# The mean square, in steps, that rounding to 8 bits alone is off by: no two pictures are told to be more alike.
ROUNDING = 1 / 12
CHANNELS = {1: ("gray",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def in_steps(images: np.ndarray) -> np.ndarray:
    """Whole numbers of 8 or 16 bits as float32 in [0, 255]."""
    return images.astype(np.float32) * np.float32(255 / np.iinfo(images.dtype).max)


def channel_names(count: int) -> tuple[str, ...]:
    """What the channels of a picture are called."""
    return CHANNELS.get(count) or tuple(f"channel_{i}" for i in range(count))


@partial(jax.jit, static_argnames=("height", "width"))
def shrunk(image: jax.Array, height: int, width: int) -> jax.Array:
    """An image [H, W, C] as small as the low-resolution inputs that training makes."""
    return resize(image[None], height, width)[0]


def consistency(images: np.ndarray, low_res: np.ndarray) -> np.ndarray:
    """PSNR [N] in dB of pictures, made as small as those that they were made of, against these, [N, h, w, C].

    At most 58.9 dB: that of rounding.
    """
    _, height, width, _ = low_res.shape
    # one by one: as floats, all of them would take four times their memory
    errors = [
        np.mean((np.asarray(shrunk(in_steps(image), height, width)) - in_steps(small)) ** 2)
        for image, small in zip(images, low_res, strict=True)
    ]
    return 10 * np.log10(255**2 / np.maximum(errors, ROUNDING))


def color_drift(images: np.ndarray, low_res: np.ndarray) -> np.ndarray:
    """By how many steps the mean colour of each picture is above that of the one it was made of, [N, C]."""
    # of whole numbers in float64: exact
    means = (pictures.mean(axis=(1, 2)) * (255 / np.iinfo(pictures.dtype).max) for pictures in (images, low_res))
    return np.subtract(*means)


def saturation(images: np.ndarray) -> float:
    """The share of values that are the least or the greatest: of a drawn picture those that were clipped, or nearly."""
    return float(np.mean((images == 0) | (images == np.iinfo(images.dtype).max)))


def measure(images: np.ndarray, low_res: np.ndarray | None, real: np.ndarray) -> dict[str, float]:
    """The means of all measures by name; a base stage, without ``low_res``, has no others than saturations.

    ``saturation_real``, of pictures of the data set, says what saturation should be. ``color_drift/rms`` is over
    pictures and channels: tints that differ from picture to picture show in it alone.
    """
    found = {"saturation": saturation(images), "saturation_real": saturation(real)}
    if low_res is not None:
        found["consistency_db"] = float(consistency(images, low_res).mean())
        drift = color_drift(images, low_res)
        for name, mean in zip(channel_names(drift.shape[1]), drift.mean(axis=0), strict=True):
            found[f"color_drift/{name}"] = float(mean)
        found["color_drift/rms"] = float(np.sqrt(np.mean(drift**2)))
    return found
