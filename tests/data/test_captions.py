"""From bytes to captions: encodings that are read and that are refused, lines and full texts."""

import codecs

import pytest

from imagen_jax.data.captions import clean_captions, is_one_text, json_captions, parse_json, split_captions
from imagen_jax.data.encodings import EncodingError, decode_text

TEXT = "a café, 猫 and \U0001f469\u200d\U0001f4bb\r\nline two\0\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        *(
            mark + TEXT.encode(encoding)
            for mark, encoding in [
                (codecs.BOM_UTF16_LE, "utf-16-le"),
                (codecs.BOM_UTF16_BE, "utf-16-be"),
                (codecs.BOM_UTF32_LE, "utf-32-le"),
                (codecs.BOM_UTF32_BE, "utf-32-be"),
            ]
        ),
    ],
)
def test_unicode_is_read(data):
    assert decode_text(data) == TEXT
    for cut in range(4, len(data)):  # within any character
        assert TEXT.startswith(decode_text(data[:cut], is_complete=False))


@pytest.mark.parametrize("text", ["", "a\0", "a\0b", "a\ufeff\u202e", "\x1b[31mred\x1b[0m", "$B and (B", "x" * 10**6])
def test_odd_text_is_read(text):
    assert decode_text(text.encode()) == text


@pytest.mark.parametrize(
    "data",
    [
        "un café".encode("cp1252"),
        "猫と赤い円".encode("shift_jis"),
        "猫と赤い円".encode("euc_jp"),
        "猫と赤い円".encode("iso2022_jp"),
        "红色的圆".encode("hz"),
        "红色的圆".encode("utf-7"),
        "un café au lait".encode("utf-7"),
        "größer, schöner".encode("utf-7"),
        "красный круг".encode("utf-7"),
        "a fox \U0001f98a in snow".encode("utf-7"),
        "红色的圆".encode("gb18030"),
        "красный круг".encode("koi8_r"),
        "a red disc".encode("utf-16-le"),
        "a red disc on 猫".encode("utf-16-be"),
        codecs.BOM_UTF16_LE + b"\x00\xd8a\x00",  # half a pair
        codecs.BOM_UTF16_LE + b"odd",
        b"\xed\xa0\x80",  # a surrogate
        b"\x89PNG\r\n\x1a\n",
    ],
)
def test_other_encodings_are_refused(data):
    with pytest.raises(EncodingError, match="UTF-8"):
        decode_text(data)


@pytest.mark.parametrize("data", [b"\0", bytes(4096), codecs.BOM_UTF16_BE + bytes(8), b"\0\n"])
def test_nothing_but_nuls_is_refused(data):
    with pytest.raises(EncodingError, match="NUL"):
        decode_text(data)


@pytest.mark.parametrize(
    "text",
    [
        *("a cat+dog", "1+1=2", "C++", "rock+roll", "50+years", "Canon+EF-lens", "Super+Mario-kart", "Nikon+D850"),
        *("https://a.org/?q=red+fox+snow", "(+info)", "1girl+solo-focus", "~{", "~{a fox}~", "8k+HDR-photo", "+1 -1"),
    ],
)
def test_text_that_resembles_other_encodings_is_read(text):
    assert decode_text(text.encode()) == text


def test_captions_are_text():
    """Without the NULs of fields of a fixed length, and never with half of a character."""
    assert clean_captions(["a fox\0\0", "\0 \0", " \u3000", "\0a\0b "]) == ("a fox", "a\0b")
    assert split_captions("a fox\0\n\0\n", "lines") == ("a fox",)
    for text in ("\ud83e", "a fox \ud83e", "\udd8a!"):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            clean_captions(["a", text])
    assert clean_captions(json_captions(parse_json(b'{"caption": "\\ud83e\\udd8a"}'))) == ("\U0001f98a",)


def test_repeated_json_keys_keep_all_captions():
    tree = parse_json(b'{"caption": "a", "n": 1, "caption": ["b", "a"], "caption": "", "n": 1}')
    assert json_captions(tree) == ["a", "b", "a"]
    assert tree["n"] == 1


def test_lines_and_whole():
    text = "\n  a red fox \r\n\nin\tsnow\n"
    assert split_captions(text, "lines") == ("a red fox", "in\tsnow")
    assert split_captions(text, "whole") == ("a red fox in snow",)
    assert split_captions(" \n ", "lines") == split_captions(" \n ", "whole") == ()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a red fox", False),
        ("a red fox\na fox in snow\nthe fox\n", False),
        ("\n\na red fox\n\n", False),
        ("First paragraph.\n\nSecond.", True),
        ("First paragraph.\r\n\r\nSecond.", True),
        ("# Subject\na fox", True),
        ("a fox:\n- red\n- small", True),
        ("The mood is calm,\nthe light even.", True),
        ("#sunset photo\n#fox", False),
    ],
)
def test_one_text_of_several_lines(text, expected):
    assert is_one_text(text) is expected


def test_json_captions():
    assert json_captions({"caption": "x", "captions": ["y", "z"]}) == ["y", "z"]
    assert json_captions({"caption": "x", "text": "t"}, ("text", "caption")) == ["t"]
    assert json_captions({"caption": None}) == json_captions({}) == json_captions({"caption": " "}) == []
    assert json_captions({"captions": ["", " "], "caption": "x"}) == ["x"]  # blank ones hide no others
    for wrong in ([], {"caption": 7}, {"captions": ["a", 1]}):
        with pytest.raises(ValueError):
            json_captions(wrong)
    assert parse_json('{"caption": "é"}'.encode("utf-16")) == {"caption": "é"}
    with pytest.raises(EncodingError):
        parse_json('{"caption": "é"}'.encode("cp1252"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["красная лиса", "αλεπού στο χιόνι", "a fox in the snow"])
def test_text_without_its_mark_is_refused(encoding, text):
    with pytest.raises(EncodingError):
        decode_text(text.encode(encoding))
    assert decode_text(text.encode()) == text
