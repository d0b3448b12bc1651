import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import png
from imagen_jax.images.grid import save_png


def random_image(channels, height=5, width=7):
    return np.random.default_rng(0).integers(0, 65536, (height, width, channels), np.uint16)


def decode(data):
    """Returns the samples of a PNG file without row filters, decoded according to the standard."""
    assert data[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    chunks, offset = [], 8
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        kind, body = data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        assert int.from_bytes(data[offset + 8 + length : offset + 12 + length], "big") == zlib.crc32(kind + body)
        chunks.append((kind, body))
        offset += 12 + length
    (first, header), *middle, last = chunks
    assert (first, last) == (b"IHDR", (b"IEND", b""))
    width, height, bits, color_type, *rest = struct.unpack(">IIBBBBB", header)
    assert (bits, rest) == (16, [0, 0, 0])
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color_type]
    pixels = zlib.decompress(b"".join(body for kind, body in middle if kind == b"IDAT"))
    rows = [pixels[row * (1 + 2 * width * channels) :][: 1 + 2 * width * channels] for row in range(height)]
    assert len(pixels) == sum(map(len, rows))
    assert {row[0] for row in rows} == {0}
    return np.array([np.frombuffer(row[1:], ">u2").reshape(width, channels) for row in rows])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_encode_is_lossless(channels):
    image = random_image(channels)
    np.testing.assert_array_equal(decode(png.encode(image)), image)


@pytest.mark.parametrize("channels, mode", [(1, "I;16"), (3, "RGB"), (4, "RGBA")])
def test_pillow_reads_the_file(tmp_path, channels, mode):
    """Pillow reads 16 bits of gray, and the upper 8 bits of color."""
    image = random_image(channels)
    save_png(image, tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as read:
        assert (read.format, read.mode) == ("PNG", mode)
        pixels = np.asarray(read).reshape(image.shape)
    np.testing.assert_array_equal(pixels, image if channels == 1 else image >> 8)


def test_two_channels_side_by_side(tmp_path):
    image = random_image(2)
    save_png(image, tmp_path / "image.png")
    samples = decode((tmp_path / "image.png").read_bytes())
    np.testing.assert_array_equal(samples, np.concatenate([image[..., :1], image[..., 1:]], axis=1))
