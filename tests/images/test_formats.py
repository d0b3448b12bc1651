import io

import pytest
from PIL import Image

from imagen_jax.images import formats


def test_suffixes(monkeypatch):
    pytest.importorskip("pillow_heif")
    suffixes = formats.image_suffixes()
    assert {".jpg", ".jfif", ".png", ".avif", ".heic", ".hif"} <= set(suffixes)
    assert all(suffix == suffix.lower() for suffix in suffixes)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert set(suffixes) - set(formats.image_suffixes()) == set(formats.HEIF_SUFFIXES)


def test_is_heif():
    """By its brands: HEIC and AVIF share a container."""
    heif, out, avif = pytest.importorskip("pillow_heif"), io.BytesIO(), io.BytesIO()
    image = Image.new("RGB", (16, 16))
    heif.from_pillow(image).save(out)
    image.save(avif, "AVIF")
    assert formats.is_heif(out.getvalue())
    assert formats.is_heif(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    for other in (avif.getvalue(), b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", b"", b"\xff\xd8", b"\0\0\0\x18ftyp"):
        assert not formats.is_heif(other)
