import io
import unicodedata

import numpy as np
import pytest
from PIL import Image

from imagen_jax.datasets.builders.emoji import _COLORS, Emoji, _on_background, _read_font
from imagen_jax.datasets.tfds import TfdsSource
from imagen_jax.errors import ConfigError
from tests.helpers.font import FRUITS, bitmap, prepare_emoji, write_font

OTHERS = (ord("A"), ord("7"), 0x1F1E6, 0x1F3FB)  # a letter, a digit, half a flag, a skin tone
UNDRAWN = 0x1F600


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Maps a config to the folder of its data set."""
    return {kind: prepare_emoji(tmp_path_factory.mktemp(kind), kind) for kind in ("white", "colours")}


def source_of(folder, split):
    return TfdsSource(str(folder), split, "image", ("captions",))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record.image)))


def test_font_bitmaps_of_symbols(tmp_path):
    others = {code: bitmap((0, 0, 0)) for code in OTHERS}
    font = write_font(tmp_path / "emoji.ttf", {**FRUITS, **others, UNDRAWN: None})
    assert _read_font(font) == FRUITS


def test_bitmap_on_background():
    square = _on_background(bitmap((200, 0, 0)), (10, 20, 30))
    is_disc = (square == (200, 0, 0)).all(axis=-1)
    assert is_disc[0].any()
    assert is_disc[:, 0].any()
    assert is_disc.sum() == pytest.approx(np.pi * 48**2, rel=0.02)
    assert (square[~is_disc] == (10, 20, 30)).all()


def test_emoji_white_splits(prepared):
    train, test = (source_of(prepared["white"], split) for split in ("train", "test"))
    names = {split: [part[i].columns["name"] for i in range(len(part))] for split, part in (("t", train), ("v", test))}
    assert names["v"] == ["tomato", "green apple"]
    assert names["t"] == [unicodedata.name(chr(code)).lower() for code in FRUITS if code not in (0x1F345, 0x1F34F)]
    record = train[0]
    assert record.captions == ("aubergine", "an emoji: aubergine", "a small picture of aubergine")
    np.testing.assert_array_equal(pixels(record), _on_background(FRUITS[0x1F346], (255, 255, 255)))


def test_emoji_colours_backgrounds(prepared):
    source = source_of(prepared["colours"], "test")
    assert len(source) == 2 * len(_COLORS)
    for i, (ground, colour) in enumerate(_COLORS.items()):
        record = source[i]
        assert record.columns == {"name": "tomato", "ground": ground}
        assert all("tomato" in caption and ground in caption for caption in record.captions)
        assert tuple(pixels(record)[-1, -1]) == colour


@pytest.mark.parametrize(
    "file, message",
    [
        ("none.ttf", "cannot be read"),
        ("text.ttf", "is not a font"),
        ("plain.ttf", "has no bitmaps"),
    ],
)
def test_invalid_font_raises(tmp_path, file, message):
    (tmp_path / "text.ttf").write_text("not a font")
    write_font(tmp_path / "plain.ttf", {UNDRAWN: None})
    builder = Emoji(font=tmp_path / file, data_dir=tmp_path, config="white", file_format="array_record")
    with pytest.raises(ConfigError, match=f"{message}.*: install Debian's fonts-noto-color-emoji, or give --font=PATH"):
        builder.download_and_prepare()
    assert not builder.is_prepared()
