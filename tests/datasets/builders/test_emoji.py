import io
import unicodedata

import numpy as np
import pytest
from PIL import Image

from imagen_jax.datasets.builders.emoji import COLOURS, Emoji, on_ground, read_font
from imagen_jax.datasets.tfds import TfdsSource
from imagen_jax.errors import ConfigError
from tests.helpers.font import FRUITS, bitmap, prepare_emoji, write_font

OTHERS = (ord("A"), ord("7"), 0x1F1E6, 0x1F3FB)  # a letter, a digit, half a flag, a skin tone
UNDRAWN = 0x1F600


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Kind → the folder of the data set."""
    return {kind: prepare_emoji(tmp_path_factory.mktemp(kind), kind) for kind in ("white", "colours")}


def source_of(folder, split):
    return TfdsSource(str(folder), split, "image", ("captions",))


def pixels(record):
    return np.asarray(Image.open(io.BytesIO(record.image)))


def test_a_font_s_bitmaps_of_symbols_are_read_to_the_byte(tmp_path):
    others = {code: bitmap((0, 0, 0)) for code in OTHERS}
    font = write_font(tmp_path / "emoji.ttf", {**FRUITS, **others, UNDRAWN: None})
    assert read_font(font) == FRUITS


def test_a_bitmap_loses_nothing_and_shows_the_ground_where_it_is_empty():
    square = on_ground(bitmap((200, 0, 0)), (10, 20, 30))
    is_disc = (square == (200, 0, 0)).all(axis=-1)
    assert is_disc[0].any()
    assert is_disc[:, 0].any()
    assert is_disc.sum() == pytest.approx(np.pi * 48**2, rel=0.02)
    assert (square[~is_disc] == (10, 20, 30)).all()


def test_each_emoji_is_once_on_white_and_every_tenth_is_for_testing(prepared):
    train, test = (source_of(prepared["white"], split) for split in ("train", "test"))
    names = {split: [part[i].columns["name"] for i in range(len(part))] for split, part in (("t", train), ("v", test))}
    assert names["v"] == ["tomato", "green apple"]
    assert names["t"] == [unicodedata.name(chr(code)).lower() for code in FRUITS if code not in (0x1F345, 0x1F34F)]
    record = train[0]
    assert record.captions == ("aubergine", "an emoji: aubergine", "a small picture of aubergine")
    np.testing.assert_array_equal(pixels(record), on_ground(FRUITS[0x1F346], (255, 255, 255)))


def test_each_emoji_is_on_every_ground_that_its_captions_name(prepared):
    source = source_of(prepared["colours"], "test")
    assert len(source) == 2 * len(COLOURS)
    for i, (ground, colour) in enumerate(COLOURS.items()):
        record = source[i]
        assert record.columns == {"name": "tomato", "ground": ground}
        assert all("tomato" in caption and ground in caption for caption in record.captions)
        assert tuple(pixels(record)[-1, -1]) == colour


@pytest.mark.parametrize(
    "file, said",
    [
        ("none.ttf", "there is no font"),
        ("text.ttf", "is not a font"),
        ("plain.ttf", "has no bitmaps"),
    ],
)
def test_what_is_no_font_with_bitmaps_is_refused_with_the_package_that_has_one(tmp_path, file, said):
    (tmp_path / "text.ttf").write_text("not a font")
    write_font(tmp_path / "plain.ttf", {UNDRAWN: None})
    builder = Emoji(font=tmp_path / file, data_dir=tmp_path, config="white", file_format="array_record")
    with pytest.raises(ConfigError, match=f"{said}.*: install Debian's fonts-noto-color-emoji, or give --font=PATH"):
        builder.download_and_prepare()
    assert not builder.is_prepared()
