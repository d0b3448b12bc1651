from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images.grid import MARGIN, draw_grid, printable, save_png


def some_images(count, channels, height=8, width=8):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def shown(images, height, width, scale):
    """[5, height, width, 3]: what a sheet has of five images, in three columns, each pixel ``scale`` wide."""
    sheet = np.asarray(draw_grid(images, ["a caption"] * 5, columns=3, cell=32))
    row = (sheet.shape[0] - MARGIN) // 2  # two rows
    found = []
    for index in range(5):
        top, left = MARGIN + index // 3 * row, MARGIN + index % 3 * (width * scale + MARGIN)
        large = sheet[top : top + height * scale, left : left + width * scale]
        found.append(large[::scale, ::scale])
        np.testing.assert_array_equal(large, np.repeat(np.repeat(found[-1], scale, 0), scale, 1))
    return np.stack(found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height", [4, 8, 20])
def test_every_image_is_on_the_sheet_pixel_by_pixel(channels, height):
    images = some_images(5, channels, height)
    np.testing.assert_array_equal(shown(images, height, 8, scale=4), images * np.ones(3, np.uint8))


def test_of_16_bits_the_upper_are_shown():
    images = some_images(5, 3) // 2
    np.testing.assert_array_equal(shown(images.astype(np.uint16) * 257 + 100, 8, 8, scale=4), images)


def test_through_what_is_transparent_a_checkerboard_is_seen():
    images = some_images(5, 4, 16, 16)
    images[..., 3] = np.where(np.arange(16) < 8, 255, 0)
    found = shown(images, 16, 16, scale=2)
    np.testing.assert_array_equal(found[:, :, :8], images[:, :, :8, :3])
    board = found[:, :, 8:]
    assert (board == board[:1, ..., :1]).all()  # gray, and the same under all
    rows, columns = np.indices((16, 8)) // 2
    assert [len(set(board[0, ..., 0][(rows + columns) % 2 == odd])) for odd in (0, 1)] == [1, 1]
    assert len(set(board.ravel())) == 2


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_shown_side_by_side(channels):
    images = some_images(5, channels, 8, 4)
    expected = np.concatenate([images[..., channel] for channel in range(channels)], axis=2)[..., None]
    found = shown(images, 8, 4 * channels, scale=round(32 / (4 * channels)))
    np.testing.assert_array_equal(found, expected * np.ones(3, np.uint8))


def test_captions_are_written_under_their_images():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    sheet = np.asarray(draw_grid(images, ["a red fox", ""], columns=2, cell=64))
    below = sheet[MARGIN + 64 + 2 :]
    middle = sheet.shape[1] // 2
    assert (below[:, :middle] < 100).any()
    assert (below[:, middle:] == 255).all()
    other = np.asarray(draw_grid(images, ["a blue fox", ""], columns=2, cell=64))
    assert not np.array_equal(sheet, other)


def test_a_long_caption_is_wrapped_within_the_sheet():
    images = some_images(1, 3)
    short = draw_grid(images, ["fox"], columns=1, cell=64)
    long = draw_grid(images, ["fox " * 40], columns=1, cell=64)
    assert long.width == short.width
    assert long.height > short.height + 100


@pytest.mark.parametrize(
    "caption", ["tab\tnew\nline\0bell\x07", "half an emoji \ud83d", "日本語 🦊 é", "\u202eback", ""]
)
def test_no_caption_can_stop_a_picture(caption):
    draw_grid(some_images(1, 3), [caption], columns=4)


def test_printable_keeps_text_and_marks_the_rest():
    assert printable("a fox, é 日本") == "a fox, é 日本"
    assert printable("a\0b\ud83dc\nd") == "a?b?c?d"


def test_a_caption_too_few_is_noticed():
    with pytest.raises(ValueError, match="zip"):
        draw_grid(some_images(2, 3), ["one"], columns=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_saved_picture_reads_back_and_nothing_else_is_left(tmp_path, channels):
    image = some_images(1, channels)[0]
    path = tmp_path / "new" / "folder" / "picture.png"
    save_png(image, path)
    with Image.open(path) as read:
        np.testing.assert_array_equal(np.asarray(read).reshape(image.shape), image)
        assert read.format == "PNG"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    save_png(some_images(1, 3)[0], path)
    before = path.read_bytes()

    def half_written(path, data, write=Path.write_bytes):
        write(path, data[:20])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_png(some_images(1, 3)[0], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_is_saved_over_an_older_one(tmp_path):
    path = tmp_path / "grid.png"
    for caption in ("first", "second"):
        sheet = draw_grid(some_images(2, 3), [caption] * 2, columns=2)
        save_png(sheet, path)
        with Image.open(path) as read:
            np.testing.assert_array_equal(np.asarray(read), np.asarray(sheet))
