"""Pictures that look alike: perceptual hashes of 64 bits, and all pairs of near ones without comparing each with each.

The hash is that of low frequencies: of the picture in gray, at 32×32, the cosine transform; of its 8×8 lowest
frequencies the ones above their median. It hardly changes with size, compression or brightness; it does not know
mirrored, turned or cropped pictures again, and takes pictures of nothing but one shade for the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from imagen_jax.images import composite, to_8_bits

SIDE, LOW = 32, 8
STEP = 8  # gray levels to which frequencies are rounded: what compression adds or takes is none
NEAR = 6  # bits in which near ones differ at most; those of unlike pictures differ in 32, give or take 4
BANDS, BAND_BITS = 4, 16
# Of hashes that share a band, as many are compared with each: beyond, a data set has a crowd of them, such as blank
# pages, and looking at all pairs would never end.
CROWD = 1000
ROWS = 1024  # hashes whose pairs are looked at together: a bound of memory


def fingerprint(image: np.ndarray) -> int:
    """The perceptual hash of a picture, uint8 or uint16 [H, W, C], below 2^64."""
    image = to_8_bits(image)
    if image.shape[-1] == 4:
        image = composite(image, 255)
    gray = Image.fromarray(image.mean(axis=-1).astype(np.float32))
    small = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    low = np.round(dctn(small, norm="ortho")[:LOW, :LOW].ravel() / STEP)
    low[0] = 0.0  # the mean says how bright a picture is, not what it shows
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def alike(fingerprints: Sequence[int]) -> list[list[int]]:
    """The groups of pictures that look alike, each two or more places in the sequence, the largest group first.

    A picture belongs to a group if it is near to any of it. In crowds, see CROWD, some pairs may be missed.
    """
    distinct, of = np.unique(np.array(fingerprints, np.uint64), return_inverse=True)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *near_pairs(distinct)])
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(distinct),) * 2)
    _, group_of_distinct = connected_components(links, directed=False)
    group = group_of_distinct[of]
    order = np.argsort(group, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []
    return sorted((members.tolist() for members in groups if len(members) > 1), key=lambda group: (-len(group), group))


def near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of places, int [P, 2], of distinct hashes uint64 [N] that differ in NEAR bits at most; some come twice.

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
