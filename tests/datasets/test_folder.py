import json
import os
import unicodedata

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.datasets.folder import CaptionRules, FolderSource, _split_of_path
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.images import formats
from imagen_jax.io import storage
from tests.helpers.configs import as_written
from tests.helpers.orders import assert_order_holds


def put(folder, name, color=0, size=(8, 8)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 0, 0)).save(path)
    return path


def folder_source(path, split="all", share=0.25, column="text"):
    return FolderSource(str(path), split, share, column)


def captions(source):
    return {source[i].name: source[i].captions for i in range(len(source))}


def examples_of(path, size=8, max_corrupt=0.0, split="all", **transform):
    changes = {f"transform.{key}": value for key, value in transform.items()}
    data = as_written("folder_base.py", "tiny").data.with_changes(changes, path=str(path), max_corrupt=max_corrupt)
    return make_examples(data, split, size, 3)


@pytest.fixture
def nested(tmp_path):
    """Captions from every kind of file, and files that are not images."""
    for name in ("a.jpg", "b/c.PNG", "b/d/e.webp", "b/d/f.gif", "g.png"):
        put(tmp_path, name)
    for hidden in ("b/.hidden/h.png", "._i.png", "__MACOSX/j.png"):
        put(tmp_path, hidden)
    (tmp_path / "a.txt").write_bytes("\ufeffa red fox\r\n\n  ein Fuchs, größer \n".encode())
    (tmp_path / "b" / "c.txt").write_text("\n \n")
    (tmp_path / "b" / "metadata.jsonl").write_text(
        '{"file_name": "d/e.webp", "text": ["one", "two", " "], "year": 1999, "note": null}\n\n'
        '{"file_name": "./d/../d/e.webp", "text": "three", "artist": "Ann"}\n'
    )
    (tmp_path / "b" / "d" / "metadata.csv").write_text('file_name,text\nf.gif,"a, b"\nf.gif,c\n')
    (tmp_path / "readme.md").write_text("not an image")
    return tmp_path


def test_captions_from_text_and_metadata(nested):
    assert captions(folder_source(nested)) == {
        "a.jpg": ("a red fox", "ein Fuchs, größer"),
        "b/c.PNG": (),
        "b/d/e.webp": ("one", "two", "three"),
        "b/d/f.gif": ("a, b", "c"),
        "g.png": (),
    }


def test_captions_do_not_read_images(nested):
    source = folder_source(nested)
    for i in range(len(source)):
        expected = source[i].captions
        (nested / source[i].name).unlink()
        assert source.captions(i) == expected


def test_columns_from_metadata(nested):
    source = folder_source(nested)
    assert source[2].columns == {"year": "1999", "artist": "Ann"}
    assert source[0].columns == {}


def test_parquet_metadata(tmp_path):
    for name in ("a.png", "b.png"):
        put(tmp_path, name)
    rows = [{"file_name": "a.png", "prompt": ["x", "y"], "n": 1}, {"file_name": "b.png", "prompt": None, "n": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    source = folder_source(tmp_path, column="prompt")
    assert captions(source) == {"a.png": ("x", "y"), "b.png": ()}
    assert source[1].columns == {"n": "2"}


def test_fsspec_folder():
    files = fsspec.filesystem("memory")
    Image.new("RGB", (8, 8)).save(files.open("/bucket/photos/a/b.png", "wb"), "PNG")
    files.pipe("/bucket/photos/a/b.txt", b"a cat")
    source = folder_source("memory://bucket/photos")
    assert captions(source) == {"a/b.png": ("a cat",)}
    assert examples_of("memory://bucket/photos")[0].image.shape == (8, 8, 3)


def test_splits_are_a_partition(tmp_path):
    for number in range(60):
        put(tmp_path, f"{number}.png")
    names = {split: set(captions(folder_source(tmp_path, split))) for split in ("train", "validation", "all")}
    assert names["train"] | names["validation"] == names["all"]
    assert not names["train"] & names["validation"]
    assert 5 <= len(names["validation"]) <= 25
    (tmp_path / "0.png").unlink()
    assert set(captions(folder_source(tmp_path, "validation"))) == names["validation"] - {"0.png"}
    assert (_split_of_path("x", 0.0), _split_of_path("x", 1.0)) == ("train", "validation")


def test_training_order(tmp_path):
    for number in range(10):
        put(tmp_path, f"{number}.png", number * 20, (8, 12))
    (tmp_path / "3.png").write_bytes(b"")
    assert_order_holds(examples_of(tmp_path, max_corrupt=0.2, crop="random", flip=True))


def test_links_to_files_are_followed(tmp_path):
    put(tmp_path, "real/a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop.png").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe.png")  # to read it would be to wait for ever
    assert set(captions(folder_source(tmp_path))) == {"link.png", "real/a.png"}


def test_dead_links_are_corrupt_and_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nothing.png")
    source = folder_source(tmp_path)
    assert len(source) == 2
    with pytest.raises(CorruptRecordError, match="^b.png: No such file"):
        source[1]
    assert ("b.png",) in [finding.names for finding in source.left_out.findings]


def test_huge_files_are_corrupt(tmp_path):
    with put(tmp_path, "a.png").open("r+b") as file:
        file.truncate(2**40)  # of holes
    with pytest.raises(CorruptRecordError, match="^a.png: the file is longer than 268435456 bytes"):
        folder_source(tmp_path)[0]


def test_odd_captions(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("null \0 byte\n\ufeff\u202e\x07\n".encode() + "é".encode() * 10**6)
    null, odd, long = folder_source(tmp_path).captions(0)
    assert (null, odd) == ("null \0 byte", "\ufeff\u202e\x07")
    assert set(long) == {"é"} and len(long) < 2**15  # cut within a character


def test_file_names_are_escaped_in_errors(tmp_path):
    name = b"two\nlines\xff.png"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(ConfigError) as stopped:
        examples_of(tmp_path)
    assert "\n" not in str(stopped.value)
    str(stopped.value).encode()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "x"}\n{"file_', "metadata.jsonl cannot be read, at row 2: "),
        ("metadata.jsonl", "[1]", r"at row 1: '\[1\]' is not an object"),
        ("metadata.jsonl", "[" * 10**5, "cannot be read, at row 1: "),
        ("metadata.jsonl", '{"text": "x"}', "at row 1: its file_name is None: expected a path"),
        (
            "metadata.jsonl",
            '{"file_name": "../../etc/passwd", "text": "x"}',
            "'../../etc/passwd' is outside",
        ),
        ("metadata.jsonl", '{"file_name": "a/../../b.png", "text": "x"}', "is outside of the folder"),
        (
            "metadata.jsonl",
            '{"file_name": "/etc/passwd", "text": "x"}',
            "'/etc/passwd', which is outside of the folder",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 7}', "its caption 7 is not a string"),
        ("metadata.jsonl", '{"file_name": "a.png", "prompt": "x"}', "has no column 'text', but file_name, prompt: set"),
        ("metadata.jsonl", b"\xff", "metadata.jsonl is not UTF-8 text, byte 0xff at position 0, line 1"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", "metadata.csv is not UTF-8 text, byte 0xe9 .* line 2"),
        ("metadata.csv", "file_name,text\na.png,x,y\n", "at row 1: it has more cells than .*in quotes"),
        ("metadata.csv", "image,text\na.png,x\n", "at row 1: it has no column file_name, but 'image', 'text'"),
        ("metadata.csv", "file_name,text\nb.png,x\n", "names 1 image.*'b.png'.*such as 'a.png'"),
        ("metadata.csv", "file_name,text\na.jpeg,x\n", "'a.jpeg' would fit as 'a.png'"),
        ("metadata.csv", 'file_name,text\na.png,"x', "cannot be read, at row 1: "),
        ("metadata.csv", "file_name,text\na.png," + "x" * 200_000, "field larger than field limit"),
        ("metadata.parquet", b"PAR1 rubbish", "metadata.parquet cannot be read, at row 1: "),
    ],
)
def test_invalid_metadata_raises(tmp_path, name, content, message):
    put(tmp_path, "a.png")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        folder_source(tmp_path)


def test_folder_without_images_raises(tmp_path):
    with pytest.raises(ConfigError, match="has no images: expected files that end in .jpg"):
        folder_source(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": ""}, "config.data.path is empty: give your folder"),
        ({"path": "/no/such/place"}, "config.data.path.* '/no/such/place' is not a folder"),
        ({"path": "nonsense://bucket"}, "config.data.path: 'nonsense://bucket'"),
        ({"split": "test"}, "split 'test'.* train, validation, all"),
        ({"validation_fraction": 2.0}, "validation_fraction 2.0"),
        ({"validation_fraction": 1.0, "split": "train"}, "the train split of .* has none of its 1 images"),
        ({"max_corrupt": -1.0}, "max_corrupt -1.0"),
    ],
)
def test_invalid_config_raises(tmp_path, changes, message):
    put(tmp_path, "a.png")
    with pytest.raises(ConfigError, match=message):
        data = as_written("folder_base.py", "tiny").data.with_changes(
            {"path": str(tmp_path), "split": "all", **changes}
        )
        make_examples(data, data.split, 8, 3)


def test_image_files_need_a_transform(tmp_path):
    put(tmp_path, "a.png")
    source = make_source(as_written("folder_base.py", "tiny").data.with_changes(path=str(tmp_path)), "all", 8)
    assert len(source) == 1
    with pytest.raises(ConfigError, match="transform"):
        ImageTextDataset(source, 3)


@pytest.fixture
def half_corrupt(tmp_path):
    """40 images, every second of which is corrupt in one of four ways."""
    intact = put(tmp_path, "00.png").read_bytes()
    for number in range(1, 40):
        path = put(tmp_path, f"{number:02d}.png", number)
        if number % 2:
            path.write_bytes([b"", b"rubbish", intact[: len(intact) // 2], intact[:30]][number // 2 % 4])
    return tmp_path


def test_corrupt_images_are_replaced_and_counted(half_corrupt):
    examples = examples_of(half_corrupt, max_corrupt=0.5)
    first = [examples[i].image for i in range(40)]
    assert examples.corrupt.count == 20
    news = examples.corrupt.pop_new()
    assert sorted(line.split(": ")[0] for line in news) == [f"{number:02d}.png" for number in range(1, 40, 2)]
    assert {"the file is empty", "not an image in any of JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF"} == {
        line.split(": ")[1] for line in news
    }
    assert not examples.corrupt.pop_new()
    for number in range(0, 40, 2):
        assert (first[number][..., 0] == number).all()
    assert all(image[0, 0, 0] % 2 == 0 for image in first)
    again = examples_of(half_corrupt, max_corrupt=0.5)
    for number in reversed(range(40)):
        np.testing.assert_array_equal(again[number].image, first[number])


def test_too_many_corrupt_images_raise(half_corrupt):
    examples = examples_of(half_corrupt, max_corrupt=0.4)
    with pytest.raises(ConfigError, match=r"too many corrupt records, 17 in \d+ reads .*0.4"):
        for i in range(40):
            examples[i]


@pytest.mark.parametrize("max_broken", [0.01, 1.0])
def test_all_corrupt_folder_raises(tmp_path, max_broken):
    for number in range(300):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="too many corrupt records.*jpg: the file is empty"):
        examples_of(tmp_path, max_corrupt=max_broken)


def test_folder_is_not_modified(half_corrupt):
    def seen():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in half_corrupt.rglob("*")}

    before = seen()
    examples = examples_of(half_corrupt, max_corrupt=1.0)
    assert len([examples[i] for i in range(40)]) == 40
    assert seen() == before


def test_metadata_rows_with_different_columns(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    rows = [{"file_name": "a.png", "text": "x"}, {"file_name": "b.png"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions(folder_source(tmp_path)) == {"a.png": ("x",), "b.png": ()}


def findings(source, what):
    """(count, names, reason) of what is left out."""
    return [(f.count, f.names, f.reason) for f in source.left_out.findings if f.what.startswith(what)]


def nfc(text):
    return unicodedata.normalize("NFC", text)


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    "image, file",
    [
        ("a.jpg", "a.txt"),
        ("IMG_1.JPG", "IMG_1.TXT"),
        ("IMG_1.JPG", "img_1.Txt"),
        ("a.jpg", "a.jpg.txt"),
        ("a.JPG", "a.jpg.TXT"),
        ("b/x.y.jpg", "b/x.y.txt"),
        (nfd("ü.jpg"), nfc("ü.txt")),
        (nfc("ü.jpg"), nfd("Ü.jpg.txt")),
        ("b.jfif", "b.txt"),
    ],
)
def test_caption_file_of_image(tmp_path, image, file):
    put(tmp_path, f"{image}.png").rename(tmp_path / image)
    (tmp_path / file).write_text("a fox")
    source = folder_source(tmp_path)
    assert captions(source) == {image: ("a fox",)}
    assert source.left_out.findings == []


def test_caption_file_of_the_nearest_name(tmp_path):
    for name in ("A.png", "a.gif", "b.png", "b.gif", "C.png", "c.png", "d.png"):
        put(tmp_path, name)
    texts = ("A.TXT", "a.txt", "b.txt", "b.gif.TXT", "C.Txt", "c.TXT", "c.Txt", "e.txt")
    for name in texts:
        (tmp_path / name).write_text(name)
    source = folder_source(tmp_path)
    assert captions(source) == {
        "A.png": ("A.TXT",),
        "C.png": ("C.Txt",),
        "a.gif": ("a.txt",),
        "b.gif": ("b.txt",),  # exactly its name counts first
        "b.png": ("b.txt",),
        "c.png": (),  # two fit
        "d.png": (),
    }
    assert [names for _, names, _ in findings(source, "caption file(s) not used")] == [
        ("c.TXT", "c.Txt", "e.txt"),
        ("b.gif.TXT",),
    ]
    assert findings(source, "image(s) without")[0][:2] == (2, ("c.png", "d.png"))


def rules_source(path, *suffixes, split="all", **rules):
    return FolderSource(str(path), split, 0.25, "text", CaptionRules(suffixes or (".txt",), **rules))


def test_captions_of_other_suffixes(tmp_path):
    for name in "abc":
        put(tmp_path, f"{name}.png")
    (tmp_path / "a.caption").write_text("from .caption")
    (tmp_path / "a.txt").write_text("from .txt")
    (tmp_path / "b.TXT").write_text("b")
    (tmp_path / "c.json").write_text('{"caption": ["one", " "], "n": 1}')
    source = rules_source(tmp_path)
    assert [source.captions(i) for i in range(3)] == [("from .txt",), ("b",), ()]
    assert [reason for _, names, reason in findings(source, "file") if names == ("c.json",)][0].endswith("=.json")
    source = rules_source(tmp_path, ".caption", ".txt", ".json")
    assert [source.captions(i) for i in range(3)] == [("from .caption",), ("b",), ("one",)]
    (tmp_path / "c.json").write_bytes('{"caption": "é"}'.encode("cp1252"))
    with pytest.raises(CorruptRecordError, match="^c.json: is not UTF-8"):
        source.captions(2)


def test_unfound_captions_are_hinted_at(tmp_path):
    for i in range(4):
        put(tmp_path, f"{i}.png")
        (tmp_path / f"{i}.cap").write_text("a fox")
    (tmp_path / "captions.csv").write_text("0.png,a fox")
    source = rules_source(tmp_path)
    reasons = {names: reason for _, names, reason in findings(source, "file(s) not used")}
    assert "--config.data.caption_suffix=.cap" in reasons["0.cap", "1.cap", "2.cap"]
    assert "metadata.csv" in reasons["captions.csv",]
    assert findings(source, "image(s) without")[0][:2] == (4, ("0.png", "1.png", "2.png"))
    assert findings(rules_source(tmp_path, ".cap"), "image(s) without") == []


def test_captions_from_file_names(tmp_path):
    put(tmp_path, nfd("b/a_red__föx (2).png"))
    put(tmp_path, "b.png")
    (tmp_path / "b.txt").write_text("written")
    source = rules_source(tmp_path, from_file_names=True)
    assert [source.captions(i) for i in range(2)] == [("written",), (nfc("a red föx (2)"),)]
    assert source.left_out.findings == []


def test_whole_files_as_captions(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("## Subject\n\nA fox,\r\n  red.\n")
    assert rules_source(tmp_path, files="whole").captions(0) == ("## Subject A fox, red.",)
    source = rules_source(tmp_path)
    assert source.captions(0) == ("## Subject", "A fox,", "red.")
    assert "caption_files=whole" in source.left_out.messages()[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_captions_with_byte_order_marks(tmp_path, encoding):
    put(tmp_path, "a.png")
    put(tmp_path, "b.png")
    (tmp_path / "a.txt").write_bytes("ein Fuchs, größer\n猫\n".encode(encoding))
    (tmp_path / "metadata.csv").write_bytes("file_name,text\r\nb.png,größer\r\n".encode(encoding))
    assert captions(folder_source(tmp_path)) == {"a.png": ("ein Fuchs, größer", "猫"), "b.png": ("größer",)}


def test_captions_in_other_encodings_are_corrupt_records(tmp_path):
    for i in range(10):
        put(tmp_path, f"{i}.png", i)
        (tmp_path / f"{i}.txt").write_bytes("un café".encode("cp1252" if i % 5 == 1 else "utf-8"))
    examples = examples_of(tmp_path, max_corrupt=0.2)
    assert {caption for i in range(10) for caption in examples[i].captions} == {"un café"}
    assert {line.split(":")[0] for line in examples.corrupt.pop_new()} == {"1.txt", "6.txt"}
    with pytest.raises(ConfigError, match="1.txt: is not UTF-8.* 6.txt: is not UTF-8.*save it as UTF-8"):
        examples = examples_of(tmp_path, max_corrupt=0.1)
        for i in range(10):
            examples[i]


NEAR_FITS = {
    "backslashes": "file_name,text\na.png,x\nd\\e f.png,y\n",
    "no suffix": "file_name,text\na,x\nd/e f,y\n",
    "another case": "file_name,text\nA.PNG,x\nD/e f.Png,y\n",
    "URL escapes": "file_name,text\na.png,x\nd/e%20f.png,y\n",
    "absolute paths": "file_name,text\n/home/me/a.png,x\n/home/me/d/e f.png,y\n",
    "absolute paths of Windows": "file_name,text\nC:\\me\\a.png,x\nC:\\me\\d\\e f.png,y\n",
    "a leading folder": "file_name,text\ntrain/a.png,x\ntrain/d/e f.png,y\n",
    "semicolons": "file_name;text\na.png;x\nd/e f.png;y\n",
    "tabs": "text\tfile_name\nx\ta.png\ny\td/e f.png\n",
    "Excel's first line": "sep=;\r\nfile_name;text\r\na.png;x\r\nd/e f.png;y\r\n",
    "blanks": 'file_name, text\na.png, "x"\nd/e f.png, y\n',
}


@pytest.mark.parametrize("text", NEAR_FITS.values(), ids=NEAR_FITS)
@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV", "rows/metadata.csv"])
def test_metadata_that_nearly_fit(tmp_path, text, name):
    for image in ("a.png", "d/e f.png"):
        put(tmp_path, image)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(text.encode("utf-16"))
    source = folder_source(tmp_path)
    assert captions(source) == {"a.png": ("x",), "d/e f.png": ("y",)}
    assert {finding.what for finding in source.left_out.findings} <= {"row(s) read for an image of another name"}


def test_metadata_rows_without_an_image_are_counted(tmp_path):
    for image in ("a.png", "b.png", "b.gif", "C.png", "c.png", nfd("ü.png")):
        put(tmp_path, image)
    rows = ["a.png", "gone.png", "b", "c.PNG", nfc("ü.png"), "a.jpg"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": row, "text": row}) for row in rows))
    source = folder_source(tmp_path)
    assert {name: texts for name, texts in captions(source).items() if texts} == {
        "a.png": ("a.png",),
        nfd("ü.png"): (nfc("ü.png"),),
    }
    # two images fit two of the rows, none the others
    ((count, names, _),) = findings(source, "row(s) not used")
    assert (count, names) == (4, ("gone.png", "b", "c.PNG"))


@pytest.mark.parametrize(
    "best, rows",
    [
        ("fox", ("fox", "FOX.JPG")),
        ("fox", ("FOX.JPG", "fox")),
        ("gone/fox.jpg", ("gone/FOX.JPG", "gone/fox.jpg")),
        ("Fox.Jpg", ("Fox.Jpg", "FOX.JPG")),  # as well: the first
    ],
)
def test_one_of_two_rows_for_an_image_counts(tmp_path, best, rows):
    """The one that fits better; the other is counted, not said to be read."""
    put(tmp_path, "fox.jpg")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{row},{row}\n" for row in rows))
    source = folder_source(tmp_path)
    (other,) = set(rows) - {best}
    assert captions(source) == {"fox.jpg": (best,)}
    assert [(count, names) for count, names, _ in findings(source, "row(s) not used")] == [(1, (other,))]
    assert [names for _, names, _ in findings(source, "row(s) read")] == [(f"{best} for fox.jpg",)]


def test_rows_that_another_metadata_file_replaces_are_counted(tmp_path):
    for image in ("a.png", "d/b.png"):
        put(tmp_path, image)
    (tmp_path / "meta_cap.json").write_text(json.dumps({"a": {"caption": "old"}, "d/B": {"caption": "far"}}))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,new\n")
    (tmp_path / "d" / "metadata.csv").write_text("file_name,text\nb.png,near\n")
    source = folder_source(tmp_path)
    assert captions(source) == {"a.png": ("new",), "d/b.png": ("near",)}
    ((count, names, reason),) = findings(source, "row(s) not used")
    assert (count, names) == (2, ("a", "d/B")) and "another metadata file" in reason
    assert findings(source, "row(s) read") == []


def test_caption_files_that_lose_are_named_with_the_reason(tmp_path):
    for image in ("a.png", "b.png", "c.png", "d.png", "d.gif"):
        put(tmp_path, image)
    for name in ("a.txt", "b.txt", "b.caption", "c.txt", "c.png.txt", "d.txt", "e.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,row\nd.png,row\n")
    source = rules_source(tmp_path, ".caption", ".txt")
    expected = {"a.png": "row", "b.png": "b.caption", "c.png": "c.txt", "d.gif": "d.txt", "d.png": "row"}
    assert captions(source) == {image: (caption,) for image, caption in expected.items()}
    found = {names: reason for _, names, reason in findings(source, "caption file(s) not used")}
    assert found.keys() == {("e.txt",), ("a.txt", "b.txt", "c.png.txt")}
    assert "no image" in found["e.txt",] and "other caption files" in found["a.txt", "b.txt", "c.png.txt"]


@pytest.mark.parametrize("column, expected", [("text", ("a fox", "in snow")), ("note", ("x",))])
def test_repeated_columns_keep_all_captions(tmp_path, column, expected):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text,note,text,note\na.png,a fox,x,in snow,x\n")
    assert captions(folder_source(tmp_path, column=column)) == {"a.png": expected}


def test_captions_with_half_an_emoji_are_corrupt(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "a.json").write_text('{"caption": "a fox \\ud83e"}')
    with pytest.raises(CorruptRecordError, match="^a.json: .*half of a surrogate pair"):
        rules_source(tmp_path, ".json").captions(0)


def test_rows_may_name_files_that_are_not_found_otherwise(tmp_path):
    put(tmp_path, "a.png")
    put(tmp_path, ".hidden/b.png")
    put(tmp_path, "c.png").rename(tmp_path / "c.dat")
    (tmp_path / "d.heif.mov").write_bytes(b"")
    rows = ["a.png", ".hidden/b.png", "c.dat", "d.heif.mov"]
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{row},x\n" for row in rows))
    assert set(captions(folder_source(tmp_path))) == {"a.png", ".hidden/b.png", "c.dat"}


def test_metadata_of_sd_scripts(tmp_path):
    for image in ("a.png", "d/e.png", "f.png"):
        put(tmp_path, image)
    (tmp_path / "meta_cap.json").write_text(json.dumps({"a": {"caption": "old"}, "f": {"tags": "fox, red"}}))
    new = {"C:\\me\\a.png": {"caption": "new", "tags": "t"}, "C:\\me\\d\\e.png": {"caption": "e"}}
    (tmp_path / "meta_clean.json").write_text(json.dumps(new))
    source = folder_source(tmp_path)
    assert captions(source) == {"a.png": ("new",), "d/e.png": ("e",), "f.png": ("fox, red",)}
    assert source[0].columns["tags"] == "t"
    (tmp_path / "meta_lat.json").write_text("[1]")  # by chance
    assert ("meta_lat.json",) in [finding.names for finding in folder_source(tmp_path).left_out.findings]


def test_links_to_folders_are_followed_once(tmp_path):
    store, root = tmp_path / "store", tmp_path / "root"
    for name in ("cats/a.png", "cats/more/b.png", "dogs/c.png"):
        put(store, name)
    put(root, "own/d.png")
    for link, target in {
        "cats": store / "cats",
        "again": root / "own",
        "more": store / "cats" / "more",
        "own/loop": root,
        "own/up": tmp_path,
        "self": "self",
        ".hidden": store / "dogs",
    }.items():
        (root / link).symlink_to(target)
    source = folder_source(root)
    assert set(captions(source)) == {"cats/a.png", "cats/more/b.png", "own/d.png"}
    skipped = {reason: set(names) for _, names, reason in findings(source, "link(s)")}
    assert skipped == {
        storage.LINK_LOOP: {"own/loop", "own/up"},
        storage.SECOND_LINK: {"again", "more"},
        storage.DEAD_LINK: {"self"},
        storage.HIDDEN_LINK: {".hidden"},
    }


def test_folder_of_links_alone(tmp_path):
    put(tmp_path / "store", "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "store").symlink_to(tmp_path / "store")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert captions(folder_source(tmp_path / "link")) == {"store/a.png": ()}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folders_are_named(tmp_path):
    put(tmp_path, "a.png")
    (tmp_path / "b").mkdir(mode=0)
    assert findings(folder_source(tmp_path), "link(s) or folder(s)") == [(1, ("b",), storage.NO_ACCESS)]


def test_files_of_systems_and_other_kinds_are_counted(tmp_path):
    kinds = {
        "hidden": ("._a.png", ".DS_Store", "Thumbs.db", "d/desktop.ini", ".cache/a.png", "__MACOSX/a.png"),
        "thumbnails": ("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "d/#recycle/a.png", "$RECYCLE.BIN/a.png"),
        "image format": ("a.psd", "a.CR2"),
        "videos": ("a.mov",),
        "archives": ("a.zip",),
        ".md": ("readme.md",),
        "without a suffix": ("LICENSE",),
    }
    put(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("a fox")
    for name in (name for names in kinds.values() for name in names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = folder_source(tmp_path)
    assert set(captions(source)) == {"a.png"}
    counted = {reason: count for count, _, reason in findings(source, "file(s) not used")}
    assert sum(counted.values()) == sum(map(len, kinds.values()))
    for text, names in kinds.items():
        assert [count for reason, count in counted.items() if text in reason] == [len(names)]


@pytest.mark.parametrize("has_heif", [False, True])
def test_heic_is_an_image_where_it_can_be_decoded(tmp_path, monkeypatch, has_heif):
    monkeypatch.setattr(formats, "has_heif", lambda: has_heif)
    put(tmp_path, "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"x")
    source = folder_source(tmp_path)
    assert set(captions(source)) == ({"a.png", "b.HEIC"} if has_heif else {"a.png"})
    heic = [(count, reason) for count, names, reason in findings(source, "file") if names == ("b.HEIC",)]
    assert len(heic) == (not has_heif)
    assert all("imagen_jax[data]" in reason for _, reason in heic)


@pytest.mark.parametrize("count", [1, 5])
def test_few_images_are_in_both_splits(tmp_path, count):
    for i in range(count):
        put(tmp_path, f"sks_{i}.png")
    for fraction, empty in ((0.0, "validation"), (1e-9, "validation"), (1 - 1e-9, "train")):
        splits = [FolderSource(str(tmp_path), split, fraction, "text") for split in ("train", "validation")]
        assert [len(source) for source in splits] == [count, count]
        both = [findings(source, "image(s) trained on and validated on") for source in splits]
        assert both[0] == both[1]
        assert both[0][0][0] == count and repr(empty) in both[0][0][2]
    assert not findings(FolderSource(str(tmp_path), "all", 0.01, "text"), "image(s) trained")
