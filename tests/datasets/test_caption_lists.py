import json

import pytest

from imagen_jax.datasets.caption_lists import read_caption_list
from imagen_jax.errors import ConfigError

# as text2image-benchmark publishes it, with other captions
COCO = ',image_id,id,text\r\n0,203564,37,"A bicycle, ""red"",\nby a wall."\r\n1,322141,49, A room with blue walls  \r\n'
CAPTIONS = ['A bicycle, "red", by a wall.', "A room with blue walls"]


def write(folder, name, text):
    (folder / name).write_text(text, newline="")
    return folder / name


def test_all_forms_are_read(tmp_path):
    rows = [{"file_name": f"val/{index}.jpg", "caption": text} for index, text in enumerate(CAPTIONS)]
    for name, text in (
        ("a.csv", COCO),
        ("a.txt", "\ufeff" + "\r\n".join(CAPTIONS) + "\n\n"),
        ("a.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        captions = read_caption_list(write(tmp_path, name, text))
        assert captions.captions == CAPTIONS and captions.name.endswith(name) and len(captions.checksum) == 32
        assert captions.files == (["val/0.jpg", "val/1.jpg"] if name == "a.jsonl" else [])


def test_captions_go_to_images_by_name_or_in_order(tmp_path):
    rows = [{"file_name": f"val/{index}.jpg", "text": text} for index, text in enumerate(CAPTIONS)]
    named = read_caption_list(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert named.of_files(["1.png", "0.png"]) == CAPTIONS[::-1]
    assert read_caption_list(write(tmp_path, "a.csv", COCO)).of_files(["1.png", "0.png"]) == CAPTIONS
    with pytest.raises(ConfigError, match=r"no caption of 1 of 2 images, such as '2.png'"):
        named.of_files(["1.png", "2.png"])


def test_a_list_that_is_too_short_is_refused(tmp_path):
    captions = read_caption_list(write(tmp_path, "a.csv", COCO))
    assert captions.first(1) == CAPTIONS[:1]
    with pytest.raises(ConfigError, match="has 2 captions, and 30,000 images are asked for: .*num_samples=2"):
        captions.first(30_000)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "id,title\n1,x\n", "no column text or caption, but id, title"),
        ("a.csv", 'text\n"x', "not a CSV file"),
        ("a.csv", "text,id\n ,1\n", "row 1: text is ' '"),
        ("a.jsonl", '{"text": "x"}\n{"text"', "line 2, is not JSON"),
        ("a.jsonl", '{"text": "x"}\n[]', "row 2: text is None"),
        ("a.jsonl", '{"text": "x", "file_name": "a"}\n{"text": "y"}', "row 2: file_name is missing"),
        ("a.txt", "\n", "no captions"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, text, match):
    with pytest.raises(ConfigError, match=match):
        read_caption_list(write(tmp_path, name, text))


def test_missing_and_other_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("none.txt", "a.txt"):
        with pytest.raises(ConfigError, match=f"{name}' cannot be read"):
            read_caption_list(tmp_path / name)
