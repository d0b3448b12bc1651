"""From bytes to captions: encodings that are read and that are refused, lines and full texts."""

import codecs

import pytest

from imagen_jax.data.captions import EncodingError, decode_text, is_one_text, json_captions, parse_json, split_captions

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


@pytest.mark.parametrize(
    "text", ["", "\0", "a\0", "a\0b", "a\ufeff\u202e", "\x1b[31mred\x1b[0m", "$B and (B", "x" * 10**6]
)
def test_odd_text_is_read(text):
    assert decode_text(text.encode()) == text


@pytest.mark.parametrize(
    "data",
    [
        "un café".encode("cp1252"),
        "猫と赤い円".encode("shift_jis"),
        "猫と赤い円".encode("euc_jp"),
        "猫と赤い円".encode("iso2022_jp"),
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
    assert json_captions({"caption": None}) == json_captions({}) == []
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
