"""Fingerprints recognize edited images, and near pairs match those of a brute-force search."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from imagen_jax.inspection import near_duplicates
from imagen_jax.inspection.near_duplicates import _MAX_HAMMING, _near_pairs, fingerprint, group_near_duplicates

PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def distance(one, other):
    return (one ^ other).bit_count()


def crop(left, top):
    return PHOTO.crop((left, top, left + 160, top + 160))


CROPS = [crop(left, top) for left in (0, 160, 320, 480) for top in (0, 160, 260)]


def compressed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


CHANGES = {
    "compressed": compressed,
    "smaller": lambda image: image.resize((50, 50), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((400, 400), Image.Resampling.BICUBIC),
    "brighter": lambda image: image.point(lambda level: min(255, level + 15)),
    "transparent": lambda image: image.convert("RGBA"),
}


def fingerprint_of(image):
    array = np.asarray(image)
    return fingerprint(array if array.ndim == 3 else array[..., None])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_edited_image_is_near_duplicate(change):
    groups = group_near_duplicates([fingerprint_of(image) for image in [*CROPS, *map(change, CROPS)]])
    assert all(len(group) == 2 and group[1] - group[0] == len(CROPS) for group in groups)
    assert len(groups) >= 0.9 * len(CROPS)


def test_other_colors_are_not_duplicates():
    red, blue = (np.zeros((32, 32, 3), np.uint8) for _ in range(2))
    red[8:16, 8:24, 0] = blue[8:16, 8:24, 2] = 200
    assert fingerprint(red)[:8] == fingerprint(blue)[:8]
    assert group_near_duplicates([fingerprint(red), fingerprint(blue)]) == []


def test_fingerprint_ignores_bits_and_channels():
    image = np.asarray(CROPS[4])
    assert fingerprint(image.astype(np.uint16) * 257) == fingerprint(image)
    gray = np.asarray(CROPS[4].convert("L"))[..., None]
    assert fingerprint(np.repeat(gray, 3, axis=-1)) == fingerprint(gray)


def test_uniform_images_are_duplicates():
    assert group_near_duplicates([fingerprint(np.full((20, 30, 3), shade, np.uint8)) for shade in (0, 7, 128)]) == [
        [0, 1, 2]
    ]


def random_hashes(seed, count, close):
    """Returns random hashes, and others with given Hamming distances to some of them."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    others = []
    for bits in close:
        flips = rng.choice(64, bits, replace=False)
        others.append(hashes[rng.integers(count)] ^ np.uint64(sum(1 << int(bit) for bit in flips)))
    return rng.permutation(np.unique(np.concatenate([hashes, np.array(others, np.uint64)])))


@pytest.mark.parametrize("seed", range(5))
def test_near_pairs_match_brute_force(seed):
    hashes = random_hashes(seed, 60, close=[*range(1, 12)] * 6)
    every = [
        (i, j) for i in range(len(hashes)) for j in range(i) if distance(int(hashes[i]), int(hashes[j])) <= _MAX_HAMMING
    ]
    near = {tuple(sorted(pair, reverse=True)) for pairs in _near_pairs(hashes) for pair in pairs.tolist()}
    assert near == set(every)
    assert len(every) >= 20


def of_hashes(hashes):
    """Returns fingerprints with given hashes and uniform colors."""
    return [int(value).to_bytes(8, "big") + bytes(192) for value in hashes]


def test_groups_of_near_duplicates():
    one, other, alone = (int(value) for value in np.random.default_rng(0).integers(0, 2**63, 3))
    assert group_near_duplicates(of_hashes([one, alone, other, one ^ 1, other, one ^ 0b111])) == [[0, 3, 5], [2, 4]]
    assert (
        group_near_duplicates([])
        == group_near_duplicates(of_hashes([one]))
        == group_near_duplicates(of_hashes([one, other]))
        == []
    )
    assert group_near_duplicates(of_hashes([one, one])) == [[0, 1]]


def test_crowds_have_bounded_pairs(monkeypatch):
    """Hashes with a common band: the number of compared pairs grows linearly."""
    monkeypatch.setattr(near_duplicates, "_MAX_CANDIDATES", 10)
    looked_at = []
    count_bits = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda bits: looked_at.append(len(bits)) or count_bits(bits))
    hashes = np.random.default_rng(0).integers(0, 2**48, 3000, np.uint64) << np.uint64(16)
    assert group_near_duplicates(of_hashes(hashes)) == []
    assert sum(looked_at) < 3000 * 10 * 1.5
    assert max(looked_at) <= near_duplicates._CHUNK * 10
