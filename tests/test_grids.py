import numpy as np
import pytest
from PIL import Image

from imagen_jax.grids import MARGIN, draw_grid, printable, save_png


def some_images(count, channels, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_on_the_sheet_pixel_by_pixel(channels):
    images = some_images(5, channels)
    sheet = np.asarray(draw_grid(images, ["a caption"] * 5, columns=3, cell=32))
    high = (sheet.shape[0] - MARGIN) // 2  # two rows
    for index, image in enumerate(images):
        left, top = MARGIN + index % 3 * (32 + MARGIN), MARGIN + index // 3 * high
        found = sheet[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(found, np.repeat(np.repeat(image, 4, 0), 4, 1) * np.ones(3, np.uint8))


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


@pytest.mark.parametrize("channels", [1, 3])
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

    def half_written(image, file, format):
        file.write_bytes(before[:20])
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_png(some_images(1, 3)[0], path)
    assert path.read_bytes() == before


def test_a_sheet_is_saved_over_an_older_one(tmp_path):
    path = tmp_path / "grid.png"
    for caption in ("first", "second"):
        sheet = draw_grid(some_images(2, 3), [caption] * 2, columns=2)
        save_png(sheet, path)
        with Image.open(path) as read:
            np.testing.assert_array_equal(np.asarray(read), np.asarray(sheet))
