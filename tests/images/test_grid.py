from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images.grid import _MARGIN, image_grid, save_png
from imagen_jax.io.text import printable


def random_images(count, channels, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def images_in_grid(images, height, width, scale):
    """Returns the images [5, height, width, 3] in a grid of three columns, with each pixel `scale` wide."""
    grid = np.asarray(image_grid(images, ["a caption"] * 5, columns=3, cell=32))
    row = (grid.shape[0] - _MARGIN) // 2  # two rows
    extracted = []
    for index in range(5):
        top, left = _MARGIN + index // 3 * row, _MARGIN + index % 3 * (width * scale + _MARGIN)
        large = grid[top : top + height * scale, left : left + width * scale]
        extracted.append(large[::scale, ::scale])
        np.testing.assert_array_equal(large, np.repeat(np.repeat(extracted[-1], scale, 0), scale, 1))
    return np.stack(extracted)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height", [4, 8, 20])
def test_grid_contains_all_pixels(channels, height):
    images = random_images(5, channels, height)
    np.testing.assert_array_equal(images_in_grid(images, height, 8, scale=4), images * np.ones(3, np.uint8))


def test_16_bit_images():
    images = random_images(5, 3) // 2
    np.testing.assert_array_equal(images_in_grid(images.astype(np.uint16) * 257 + 100, 8, 8, scale=4), images)


def test_rgba_over_checkerboard():
    images = random_images(5, 4, 16, 16)
    images[..., 3] = np.where(np.arange(16) < 8, 255, 0)
    result = images_in_grid(images, 16, 16, scale=2)
    np.testing.assert_array_equal(result[:, :, :8], images[:, :, :8, :3])
    board = result[:, :, 8:]
    assert (board == board[:1, ..., :1]).all()  # gray, and equal for all images
    rows, columns = np.indices((16, 8)) // 2
    assert [len(set(board[0, ..., 0][(rows + columns) % 2 == odd])) for odd in (0, 1)] == [1, 1]
    assert len(set(board.ravel())) == 2


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_side_by_side(channels):
    images = random_images(5, channels, 8, 4)
    expected = np.concatenate([images[..., channel] for channel in range(channels)], axis=2)[..., None]
    result = images_in_grid(images, 8, 4 * channels, scale=round(32 / (4 * channels)))
    np.testing.assert_array_equal(result, expected * np.ones(3, np.uint8))


def test_captions_below_images():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    grid = np.asarray(image_grid(images, ["a red fox", ""], columns=2, cell=64))
    below = grid[_MARGIN + 64 + 2 :]
    middle = grid.shape[1] // 2
    assert (below[:, :middle] < 100).any()
    assert (below[:, middle:] == 255).all()
    other = np.asarray(image_grid(images, ["a blue fox", ""], columns=2, cell=64))
    assert not np.array_equal(grid, other)


def test_long_caption_is_wrapped():
    images = random_images(1, 3)
    short = image_grid(images, ["fox"], columns=1, cell=64)
    long = image_grid(images, ["fox " * 40], columns=1, cell=64)
    assert long.width == short.width
    assert long.height > short.height + 100


@pytest.mark.parametrize(
    "caption", ["tab\tnew\nline\0bell\x07", "half an emoji \ud83d", "日本語 🦊 é", "\u202eback", ""]
)
def test_any_caption_is_accepted(caption):
    image_grid(random_images(1, 3), [caption], columns=4)


def test_printable():
    assert printable("a fox, é 日本") == "a fox, é 日本"
    assert printable("a\0b\ud83dc\nd") == "a?b?c?d"


def test_missing_caption_raises():
    with pytest.raises(ValueError, match="zip"):
        image_grid(random_images(2, 3), ["one"], columns=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_save_png(tmp_path, channels):
    image = random_images(1, channels)[0]
    path = tmp_path / "new" / "folder" / "image.png"
    save_png(image, path)
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
        assert read.format == "PNG"
    assert list(path.parent.iterdir()) == [path]


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    save_png(random_images(1, 3)[0], path)
    before = path.read_bytes()

    def half_written(path, data, write=Path.write_bytes):
        write(path, data[:20])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_png(random_images(1, 3)[0], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_save_replaces_file(tmp_path):
    path = tmp_path / "grid.png"
    for caption in ("first", "second"):
        grid = image_grid(random_images(2, 3), [caption] * 2, columns=2)
        save_png(grid, path)
        with Image.open(path) as read:
            np.testing.assert_array_equal(np.asarray(read), np.asarray(grid))
