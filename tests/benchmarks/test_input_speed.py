import pytest

from benchmarks import input_speed
from tests.helpers.configs import sr_config

FITTED = [name for name in input_speed.SOURCES if "megapixel" not in name]  # those take seconds to make


@pytest.mark.parametrize("name", FITTED)
def test_source_is_read_at_size(tmp_path, name):
    examples = input_speed.SOURCES[name](tmp_path, 64)
    assert examples.fit(examples[0].image).shape == (64, 64, 3)
    assert examples.corrupt.count == 0
    assert input_speed.images_per_second(examples, seconds=0.01) > 0


def test_crops_have_fewer_bytes():
    config = sr_config(**{"data.crop_size": 4})
    assert input_speed.image_bytes(config) == config.training.batch_size * 4 * 4 * 3
    assert (
        input_speed.image_bytes(config.with_changes({"data.crop_size": 0})) == config.training.batch_size * 16 * 16 * 3
    )


def test_synthetic_photo_has_photo_file_size(tmp_path):
    input_speed.synthetic_photo((300, 400), 0).save(tmp_path / "0.jpg", quality=input_speed.QUALITY)
    assert 0.25 < (tmp_path / "0.jpg").stat().st_size / (300 * 400) < 0.45
