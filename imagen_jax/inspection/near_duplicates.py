"""Pictures that look alike: perceptual hashes of 64 bits, and all pairs of near ones without comparing each with each.

The hash is that of low frequencies: of the picture in gray, at 32×32, the cosine transform; of its 8×8 lowest
frequencies the ones above their median. It hardly changes with size, compression or brightness. What is near by it must
look alike in colour too, at 8×8. Mirrored, turned or cropped pictures are not known again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imagen_jax.images.array import composite, to_8_bits

SIDE, LOW = 32, 8
STEP = 8  # gray levels to which frequencies are rounded: what compression adds or takes is none
NEAR = 6  # bits in which near ones differ at most; those of unlike pictures differ in 32, give or take 4
COLOURS = 12.0  # levels, of [0, 255], by which they differ at most: root mean square, whatever their brightness
HASH_BYTES = 8
BANDS, BAND_BITS = 4, 16
# Of hashes that share a band, as many are compared with each: beyond, a data set has a crowd of them, such as blank
# pages, and looking at all pairs would never end.
CROWD = 100
ROWS = 512  # hashes whose pairs are looked at together: a bound of memory


def fingerprint(image: np.ndarray) -> bytes:
    """What ``alike`` compares of a picture, uint8 or uint16 [H, W, C]: its hash, and its colours at 8×8."""
    image = to_8_bits(image)
    if image.shape[-1] == 4:
        image = composite(image, 255)
    if image.shape[-1] != 3:
        image = np.repeat(image.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    colours = np.asarray(Image.fromarray(image).resize((LOW, LOW), Image.Resampling.BILINEAR))
    gray = Image.fromarray(image.mean(axis=-1).astype(np.float32))
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    low = np.round(dctn(small, norm="ortho")[:LOW, :LOW].ravel() / STEP)
    low[0] = 0.0  # the mean says how bright a picture is, not what it shows
    return np.packbits(low > np.median(low)).tobytes() + colours.tobytes()


def alike(fingerprints: Sequence[bytes]) -> list[list[int]]:
    """The groups of pictures that look alike, each two or more places in the sequence, the largest group first.

    A picture belongs to a group if it is near to any of it. In crowds, see CROWD, some pairs may be missed.
    """
    if not fingerprints:
        return []
    rows = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(len(fingerprints), -1)
    distinct, of = np.unique(rows, axis=0, return_inverse=True)
    hashes = np.ascontiguousarray(distinct[:, :HASH_BYTES]).view(">u8")[:, 0].astype(np.uint64)
    colours = distinct[:, HASH_BYTES:].reshape(len(distinct), LOW * LOW, 3)
    near = [pairs[same_colours(colours[pairs[:, 0]], colours[pairs[:, 1]])] for pairs in near_pairs(hashes)]
    links = np.concatenate([np.empty((0, 2), np.int64), *near])
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(len(distinct),) * 2)
    group = connected_components(graph, directed=False)[1][of]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((members.tolist() for members in groups if len(members) > 1), key=lambda group: (-len(group), group))


def same_colours(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of pairs of pictures uint8 [P, pixels, 3] whether they look alike in colour: bool [P]."""
    difference = one.astype(np.float32) - other
    difference -= difference.mean(axis=(1, 2), keepdims=True)  # one may be brighter
    return np.sqrt((difference**2).mean(axis=(1, 2))) <= COLOURS


def near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of places, int [P, 2], of hashes uint64 [N] that differ in NEAR bits at most; some come twice.

    Cut into 4 bands of 16 bits, two hashes that differ in 7 bits or fewer have a band that differs in one at most
    (pigeonhole): only such are compared.
    """
    for band in range(BANDS):
        keys = (hashes >> np.uint64(band * BAND_BITS)).astype(np.int64) & ((1 << BAND_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for flip in (0, *(1 << bit for bit in range(BAND_BITS))):
            wanted = keys ^ flip
            first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
            if flip == 0:
                first = np.arange(len(keys)) + 1  # each pair from its former hash alone
            last = np.minimum(np.where(keys > wanted, first, last), first + CROWD)
            rows = np.flatnonzero(last > first)
            for part in np.split(rows, range(ROWS, len(rows), ROWS)):
                counts = (last - first)[part]
                within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                left, right = order[np.repeat(part, counts)], order[np.repeat(first[part], counts) + within]
                near = np.bitwise_count(hashes[left] ^ hashes[right]) <= NEAR
                yield np.stack([left[near], right[near]], axis=1)
