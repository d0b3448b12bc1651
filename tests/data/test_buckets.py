import json

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data.buckets import BucketSource, split_into_buckets
from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.folder import FolderSource
from imagen_jax.datasets.from_config import make_buckets
from imagen_jax.errors import ConfigError
from tests.helpers.configs import as_written, config_of

SIZES = {(8, 8): [(8, 8), (20, 22), (9, 10)] * 4, (8, 16): [(10, 20), (16, 40)] * 5, (16, 8): [(30, 14)] * 6}
BATCH = 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of three aspect ratios; one is rotated by EXIF, one corrupt. Red and caption encode an image's number."""
    folder = tmp_path_factory.mktemp("photos")
    number = 0
    for size, befores in SIZES.items():
        for before in befores:
            image = Image.new("RGB", before[::-1], (number * 8, 0, 0))
            exif = Image.Exif()
            if number == 13:
                exif[0x0112] = 6
                image = image.transpose(Image.Transpose.ROTATE_90)
            image.save(folder / f"{number:02d}.png", exif=exif.tobytes())
            (folder / f"{number:02d}.txt").write_text(f"{number} {size}")
            number += 1
    (folder / "99.png").write_bytes(b"")
    return folder


def data_of(photos, **changes):
    changes = {"path": str(photos), "max_corrupt": 0.1, "buckets": ((8, 16), (16, 8)), **changes}
    return as_written("folder_base.py", "tiny").data.with_changes(changes)


def batches(photos, rows=None):
    def text(caption):
        return {"number": np.int64(caption.split(" ")[0])}

    parts = make_buckets(data_of(photos), "all", 8, 3)
    return training_batches(parts, text, BATCH, 0, threads=2, prefetch=2, rows=rows)


def test_image_goes_to_nearest_aspect(photos):
    parts = make_buckets(data_of(photos), "all", 8, 3)
    assert [len(part) for part in parts] == [13, 10, 6]
    for part, size in zip(parts, SIZES, strict=True):
        for i in range(len(part) - (size == (8, 8))):
            example = part[i]
            assert part.fit(example.image).shape == (*size, 3)
            assert example.captions[0].endswith(str(size))
            assert part.source.captions(i) == example.captions
    assert parts[0].corrupt is parts[2].corrupt
    parts[0][12]
    assert parts[2].corrupt.pop_new() == ["99.png: the file is empty"]


def test_no_buckets_give_one_size(photos):
    (part,) = make_buckets(data_of(photos, buckets=()), "all", 8, 3)
    assert len(part) == 29
    assert not isinstance(part.source, BucketSource)


def test_empty_buckets_are_dropped(photos):
    source = FolderSource(str(photos), "all", 0.0, "text")
    assert [bucket.size for bucket in split_into_buckets(source, [(8, 8), (8, 16), (1, 100), (16, 8)], 2)] == list(
        SIZES
    )


def test_batches_have_one_size(photos):
    """Corrupt images are replaced by others of the same size."""
    all_rows = batches(photos)
    collected = [next(all_rows) for _ in range(2 * 29 // BATCH)]
    shapes = [batch["image"].shape[1:3] for batch in collected]
    assert set(shapes) == set(SIZES)
    for batch in collected:
        np.testing.assert_array_equal(batch["image"][:, 4, 4, 0], batch["number"] * 8)
    numbers = np.concatenate([batch["number"] for batch in collected])
    assert set(numbers.tolist()) == set(range(28))
    for size, count in zip(SIZES, (13, 10, 6), strict=True):
        assert abs(shapes.count(size) * BATCH / 2 - count) <= 1


def test_bucketed_batches_are_deterministic(photos):
    all_rows = batches(photos)
    expected = [next(all_rows) for _ in range(20)]
    for row in range(BATCH):
        part = batches(photos, [row])
        for batch in expected[:9]:
            np.testing.assert_array_equal(next(part)["image"], batch["image"][[row]])
        position = json.loads(json.dumps(part.get_state()))
        part = batches(photos, [row])
        part.set_state(position)
        for batch in expected[9:]:
            np.testing.assert_array_equal(next(part)["image"], batch["image"][[row]])


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("folder_base.py", {"data.buckets": ((16, 30),)}, "data.buckets 16×30 is not a multiple of 4"),
        ("folder_base.py", {"data.buckets": ((16,),), "model.positions": 8}, "model.positions"),
        ("folder_base.py", {"data.buckets": ("wide",)}, r"data.buckets \('wide',\) .* a tuple of sizes"),
        ("folder_sr.py", {"data.buckets": ((32, 36),), "low_res_size": 4}, "buckets 32×36 is not a multiple of 8"),
        ("folder_sr.py", {"data.buckets": ((32, 64),), "data.crop_size": 16}, "data.crop_size"),
    ],
)
def test_invalid_bucket_sizes_raise(file, changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(file, **changes)


def test_valid_bucket_sizes_pass():
    config = config_of("folder_sr.py", **{"data.buckets": ((32, 64), (64, 32))})
    assert config.data.bucket_hws == ((32, 64), (64, 32))
