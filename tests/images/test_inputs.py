"""Images and masks that users give: one sentence for those that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.images.files import decode_image, read_bytes
from imagen_jax.images.inputs import as_images, as_masks
from tests.helpers.archives import encode_image

RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.mark.parametrize("value", [RGB, RGB[None], [RGB], Image.fromarray(RGB), (Image.fromarray(RGB),)], ids=range(5))
def test_forms_of_an_image(value):
    np.testing.assert_array_equal(as_images(value, 3), RGB[None])


def test_several_images():
    np.testing.assert_array_equal(as_images([RGB, Image.fromarray(255 - RGB)], 3), np.stack([RGB, 255 - RGB]))


@pytest.mark.parametrize(
    "value, message",
    [
        (RGB.astype(np.uint16), "16 bits"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits"),
        (RGB / 255, "float64: give uint8"),
        (np.zeros((4, 6, 4), np.uint8), "alpha channel"),
        (Image.fromarray(RGB).convert("RGBA"), "alpha channel"),
        (Image.fromarray(RGB[..., 0]).convert("LA"), "alpha channel"),
        (Image.fromarray(RGB).convert("CMYK"), "mode CMYK, not RGB"),
        (RGB[..., 0], r"shape \(4, 6\)"),
        (np.zeros((0, 6, 3), np.uint8), "shape"),
        ([RGB, RGB[:2]], "several sizes .2×6, 4×6."),
        ([], "several sizes .none."),
        ("photo.png", "'photo.png': give a PIL image"),
        (None, "None: give a PIL image"),
    ],
    ids=range(13),
)
def test_other_images_are_refused(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        as_images(value, 3)
    assert str(error.value).startswith("image ") and "\n" not in str(error.value)


def test_forms_of_a_mask():
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:4] = 200
    expected = (mask > 0).astype(np.float32)[None, ..., None]
    forms = [mask, mask > 0, mask[..., None], Image.fromarray(mask), Image.fromarray(mask).convert("RGB"), [mask > 0]]
    for form in forms:
        np.testing.assert_array_equal(as_masks(form), expected)
    assert as_masks([mask, mask > 0]).shape == (2, 4, 6, 1)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((4, 6), bool), "nothing to draw anew"),
        (np.ones((4, 6), bool), "nothing that is kept"),
        (np.zeros((4, 6), np.float32), "float32"),
        (Image.fromarray(RGB).convert("RGBA"), "alpha channel"),
    ],
    ids=range(4),
)
def test_other_masks_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        as_masks(value)


def read(path):
    return decode_image(read_bytes(path, "--image"), f"--image {str(path)!r}")


def test_files(tmp_path):
    turned = Image.fromarray(RGB)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90°
    turned.save(tmp_path / "turned.png", exif=exif)
    assert read(tmp_path / "turned.png").size == (4, 6)
    for name, data in {"cut.jpg": encode_image(0, kind="JPEG")[:100], "text.png": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"--image.*{name}.*(cannot be decoded|in another format, or damaged)"):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.png")


def test_a_bomb_is_not_decoded(monkeypatch):
    from imagen_jax.images import files

    monkeypatch.setattr(files, "MAX_PIXELS", 20)
    with pytest.raises(ConfigError, match="4×6 pixels"):
        decode_image(encode_png(), "image")


def encode_png():
    import io

    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "PNG")
    return data.getvalue()
