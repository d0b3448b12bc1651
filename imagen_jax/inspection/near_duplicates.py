"""Near-duplicate images: 64-bit perceptual hashes, and a search for near pairs that does not compare all pairs.

The hash has a bit for each of the 8×8 lowest frequencies of the cosine transform of the gray image at 32×32: whether it
is above their median. The hash hardly changes with size, compression or brightness. Near images must also have
similar colors at 8×8. Mirrored, rotated or cropped images are not recognized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imagen_jax.images.array import alpha_composite, to_uint8

_HASH_SIDE, _NUM_FREQUENCIES = 32, 8
_ROUNDING = 8  # gray levels to which frequencies are rounded, against compression artifacts
_MAX_HAMMING = 6  # maximum Hamming distance of near images; unrelated images differ in 32 ± 4 bits
_MAX_COLOR_RMSE = 12.0  # maximum RMSE of near images at 8×8, in levels of [0, 255], after removing the mean
_HASH_BYTES = 8
_BANDS, _BAND_BITS = 4, 16
# Maximum number of hashes with the same band to compare with each: a data set may have a crowd of them, such as blank
# pages, and comparing all pairs would never end.
_MAX_CANDIDATES = 100
_CHUNK = 512  # hashes whose pairs are compared together, to bound memory


def fingerprint(image: np.ndarray) -> bytes:
    """Computes the fingerprint of an image, uint8 or uint16 [H, W, C]: its hash, and its colors at 8×8."""
    image = to_uint8(image)
    if image.shape[-1] == 4:
        image = alpha_composite(image, 255)
    if image.shape[-1] != 3:
        image = np.repeat(image.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    colors = np.asarray(Image.fromarray(image).resize((_NUM_FREQUENCIES, _NUM_FREQUENCIES), Image.Resampling.BILINEAR))
    gray = Image.fromarray(image.mean(axis=-1).astype(np.float32))
    small = np.asarray(gray.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BILINEAR), np.float64)
    low = np.round(dctn(small, norm="ortho")[:_NUM_FREQUENCIES, :_NUM_FREQUENCIES].ravel() / _ROUNDING)
    low[0] = 0.0  # the mean is the brightness of the image, not its content
    return np.packbits(low > np.median(low)).tobytes() + colors.tobytes()


def group_near_duplicates(fingerprints: Sequence[bytes]) -> list[list[int]]:
    """Groups near-duplicate images.

    An image belongs to a group if it is near to any image in it. In a crowd of equal hashes (see _MAX_CANDIDATES) some
    pairs may be missed.

    Args:
        fingerprints: the fingerprint of each image, see `fingerprint`.

    Returns:
        Groups of two or more indices, the largest group first.
    """
    if not fingerprints:
        return []
    rows = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(len(fingerprints), -1)
    distinct, index_of = np.unique(rows, axis=0, return_inverse=True)
    hashes = np.ascontiguousarray(distinct[:, :_HASH_BYTES]).view(">u8")[:, 0].astype(np.uint64)
    colors = distinct[:, _HASH_BYTES:].reshape(len(distinct), _NUM_FREQUENCIES * _NUM_FREQUENCIES, 3)
    near = [pairs[_similar_colors(colors[pairs[:, 0]], colors[pairs[:, 1]])] for pairs in _near_pairs(hashes)]
    links = np.concatenate([np.empty((0, 2), np.int64), *near])
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(len(distinct),) * 2)
    group = connected_components(graph, directed=False)[1][index_of]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((members.tolist() for members in groups if len(members) > 1), key=lambda group: (-len(group), group))


def _similar_colors(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns for pairs of images uint8 [P, pixels, 3] whether their colors are similar: bool [P]."""
    difference = one.astype(np.float32) - other
    difference -= difference.mean(axis=(1, 2), keepdims=True)  # ignore brightness
    return np.sqrt((difference**2).mean(axis=(1, 2))) <= _MAX_COLOR_RMSE


def _near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Yields index pairs, int [P, 2], of hashes uint64 [N] with a Hamming distance up to _MAX_HAMMING, some twice.

    By the pigeonhole principle, two hashes that differ in 7 bits or fewer have one of 4 bands of 16 bits that differs
    in at most one bit: only such pairs are compared.
    """
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * _BAND_BITS)).astype(np.int64) & ((1 << _BAND_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in (0, *(1 << bit for bit in range(_BAND_BITS))):
            targets = keys ^ flip
            first, last = np.searchsorted(keys, targets, "left"), np.searchsorted(keys, targets, "right")
            if flip == 0:
                first = np.arange(len(keys)) + 1  # count each pair once
            last = np.minimum(np.where(keys > targets, first, last), first + _MAX_CANDIDATES)
            rows = np.flatnonzero(last > first)
            for part in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
                counts = (last - first)[part]
                within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                left, right = order[np.repeat(part, counts)], order[np.repeat(first[part], counts) + within]
                near = np.bitwise_count(hashes[left] ^ hashes[right]) <= _MAX_HAMMING
                yield np.stack([left[near], right[near]], axis=1)
