"""Shards with random access, and hostile and damaged shards."""

import itertools
import os
import shutil
import stat
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from imagen_jax.config.load import load_config
from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.left_out import LeftOut
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets import tar_index
from imagen_jax.datasets.registry import make_source
from imagen_jax.datasets.tar_index import _expand_braces, _index_paths, expand_shards, load_index
from imagen_jax.datasets.webdataset import WebDatasetSource
from imagen_jax.errors import ConfigError
from imagen_jax.io import storage
from tests.helpers.archives import encode_image, example, write_shards, write_tar
from tests.helpers.configs import contents
from tests.helpers.orders import assert_order_holds

IMAGE_MEMBER = ("a.png", encode_image(1))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder for indices that cannot be saved beside their shards."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(tar_index, "_CACHE_FOLDER", str(folder))
    return folder


def source_of(tmp_path, *members, **options):
    return WebDatasetSource(str(write_tar(tmp_path / "s.tar", members, **options)))


def test_examples_have_their_captions(tmp_path):
    write_shards(tmp_path / "shards", [3, 0, 5, 1])
    source = WebDatasetSource(str(tmp_path / "shards"))
    assert len(source) == 9
    for i in np.random.default_rng(0).permutation(9):  # in any order
        record = source[i]
        assert record.image == encode_image(i)
        assert record.captions == source.captions(i) == (f"picture {i}",)
        assert record.name.endswith(f".tar/{i:06d}.png")
    for i in (-1, 9):
        with pytest.raises(IndexError, match=r"is outside \[0, 9\)"):
            source[i]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_in_any_order(tmp_path, form):
    members = [(f"./{'d' * 90}/{'n' * 60}{name}", data) for i in range(20) for name, data in example(i)]
    order = np.random.default_rng(1).permutation(len(members))
    source = source_of(tmp_path, *(members[i] for i in order), form=form)
    assert sorted(source.captions(i)[0] for i in range(20)) == sorted(f"picture {i}" for i in range(20))
    for i in range(20):
        number = int(source.captions(i)[0].split()[1])
        assert source[i].image == encode_image(number)
        assert source[i].name.endswith(f"n{number:06d}.png")


def test_captions_and_columns_of_members(tmp_path):
    source = source_of(
        tmp_path,
        ("a.JPG", b"1"),
        ("a.txt", "one\r\n\n  two \nd\xe9j\xe0".encode()),
        ("a.json", b'{"caption": "not this", "woman": true, "score": 0.5, "tags": ["x"], "none": null}'),
        ("b.webp", b"2"),
        ("b.json", b'{"caption": "one"}'),
        ("c.jpeg", b"3"),
        ("c.json", b'{"captions": ["one", " ", "two"]}'),
        ("d.png", b"4"),
    )
    assert [source.captions(i) for i in range(4)] == [("one", "two", "d\xe9j\xe0"), ("one",), ("one", "two"), ()]
    assert [source[i].image for i in range(4)] == [b"1", b"2", b"3", b"4"]
    assert source.columns(0) == source[0].columns == {"caption": "not this", "woman": "True", "score": "0.5"}


def test_blank_texts_hide_no_metadata(tmp_path):
    metadata = b'{"captions": "", "caption": "a fox"}'
    members = [(f"{i}.{suffix}", data) for i in range(3) for suffix, data in (("png", b"1"), ("json", metadata))]
    source = source_of(tmp_path, *members, ("0.txt", b""), ("1.txt", b" \n\t"))
    assert [source.captions(i) for i in range(3)] == [("a fox",)] * 3


def test_other_files_beside_shards_are_counted(tmp_path):
    write_shards(tmp_path, [1])
    write_tar(tmp_path / "00001.TAR", example(1))
    write_tar(tmp_path / "below" / "00002.tar", example(2))
    others = ("00003.tar.gz", "4.tgz", "00000_stats.json", "00000.parquet", "._00000.tar", "below/x.txt")
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    source = WebDatasetSource(str(tmp_path))
    assert len(source) == 2
    found = WebDatasetSource(str(tmp_path)).left_out.findings  # again, beside the saved indices
    unused = {name: finding.reason for finding in found if finding.what == "file(s) not used" for name in finding.names}
    assert unused.keys() == {*others, "below/00002.tar"}
    assert "decompress" in unused["00003.tar.gz"] and "decompress" in unused["4.tgz"]
    assert "data.shards" in unused["below/00002.tar"]
    assert ("loop",) in [finding.names for finding in found if finding.reason == storage.LINK_LOOP]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.tar.gz").write_bytes(b"x")
    for name in ("empty", "empty/a.tar.gz", "00000_stats.json"):
        with pytest.raises(ConfigError, match=f"there is no shard in .*{name}"):
            WebDatasetSource([str(tmp_path / "00000.tar"), str(tmp_path / name)])


def test_patterns_of_shards(tmp_path):
    folder = tmp_path / "set [1]"
    write_shards(folder, [1, 1, 1])
    (folder / "notes.txt").write_text("x")
    for pattern, count in (("*.tar", 3), ("0000[01].tar", 2), ("0000?.tar", 3), ("*", 3), ("{00000..00001}.tar", 2)):
        assert len(WebDatasetSource(str(folder / pattern))) == count
    assert len(WebDatasetSource(f"{tmp_path}/*/00000.tar")) == 1
    with pytest.raises(ConfigError, match="there is no shard in"):
        WebDatasetSource(str(folder / "x*.tar"))


def test_shard_is_indexed_once(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", [4, 4])
    first = WebDatasetSource(str(tmp_path / "shards"))
    monkeypatch.setattr(tar_index, "_build_index", None)
    again = WebDatasetSource(str(tmp_path / "shards"))
    assert [again[i] for i in range(8)] == [first[i] for i in range(8)]
    assert again.left_out.findings == first.left_out.findings


def test_changed_shard_is_reindexed(tmp_path):
    path = write_tar(tmp_path / "s.tar", example(1))
    assert WebDatasetSource(str(path)).captions(0) == ("picture 1",)
    before = path.stat()
    write_tar(path, example(2))  # of the same size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert WebDatasetSource(str(path)).captions(0) == ("picture 2",)


def test_index_falls_back_to_cache_folder(tmp_path, monkeypatch, cache):
    write_shards(tmp_path / "shards", [2])
    write = storage.write_file

    def refuse(path, data):
        if not path.startswith(str(cache)):
            raise PermissionError(path)
        write(path, data)

    monkeypatch.setattr(storage, "write_file", refuse)
    before = contents(tmp_path / "shards")
    load_index(expand_shards(str(tmp_path / "shards"), LeftOut())[0])
    assert contents(tmp_path / "shards") == before
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(tar_index, "_build_index", None)
    assert len(WebDatasetSource(str(tmp_path / "shards"))) == 2


@pytest.mark.parametrize("seed", range(20))
def test_damaged_index_is_rebuilt(tmp_path, seed):
    path = str(write_tar(tmp_path / "s.tar", [*example(1), *example(2)]))
    load_index(path)
    index = Path(_index_paths(path)[0])
    intact = index.read_bytes()
    rng = np.random.default_rng(seed)
    if seed % 2:
        damaged = intact[: rng.integers(len(intact))]
    else:
        damaged = bytearray(intact)
        damaged[rng.integers(len(intact))] ^= 1 << rng.integers(8)
    index.write_bytes(damaged)
    source = WebDatasetSource(path)
    assert [source.captions(i) for i in range(len(source))] == [("picture 1",), ("picture 2",)]


def test_forged_index_stays_within_shard(tmp_path):
    path = str(write_tar(tmp_path / "s.tar", example(1)))
    good = load_index(path)
    extents = good.extents.copy()
    extents[0, 0] = 0, 2**32 - 1
    tar_index._save_index(path, storage.file_version(path), good._replace(extents=extents))
    assert WebDatasetSource(path)[0].image == encode_image(1)
    extents[0, 0] = 2, 1
    tar_index._save_index(path, storage.file_version(path), good._replace(extents=extents))
    with pytest.raises(CorruptRecordError, match=r"s.tar at byte 1,024"):
        WebDatasetSource(path)[0]


def test_shard_changed_during_reading_is_corrupt(tmp_path):
    source = source_of(tmp_path, *example(1), *example(2))
    write_tar(tmp_path / "s.tar", [("000001.png", encode_image(3, size=(200, 200))), *example(2)])
    with pytest.raises(CorruptRecordError, match="the shard has changed|no tar header|cut short"):
        [source[i] for i in range(2)]
    os.truncate(tmp_path / "s.tar", 600)
    with pytest.raises(CorruptRecordError, match=r"s.tar at byte .*: cannot be read: is cut short"):
        source[1]
    os.remove(tmp_path / "s.tar")
    with pytest.raises(CorruptRecordError, match=r"s.tar at byte 0: cannot be read: .*No such file"):
        source[0]


def test_few_file_descriptors_are_open(tmp_path):
    """Sixteen threads, 100 shards: no more files are open than threads."""
    resource = pytest.importorskip("resource")
    write_shards(tmp_path / "shards", [2] * 100)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # room for 32 besides what other tests of this process have left open
    opened = {int(name) for name in os.listdir("/dev/fd")}
    limit = next(number for number in itertools.count() if number - sum(fd < number for fd in opened) == 32)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        source = WebDatasetSource(str(tmp_path / "shards"))
        with ThreadPoolExecutor(16) as pool:
            images = list(pool.map(lambda i: source[i % 200].image, range(600)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert images == [encode_image(i % 200) for i in range(600)]


def test_training_order(tmp_path):
    """Several shards, one of them empty, one with a corrupt record."""
    write_shards(tmp_path, [5, 0, 6])
    write_tar(tmp_path / "9.tar", [("cut.png", encode_image(0)[:40])])
    transform = Transform((8, 8), 3, 8, crop="random", flip=True, background=0, upscale=True, max_pixels=1000)
    source = WebDatasetSource(str(tmp_path))
    assert_order_holds(ImageTextDataset(source, 3, transform, CorruptRecords("shards", len(source), max_fraction=0.2)))


def test_shards_by_split_in_config(tmp_path):
    write_shards(tmp_path, [2, 3])
    shards = {"train": f"{tmp_path}/{{00000..00001}}.tar", "test": (f"{tmp_path}/00001.tar",)}
    config = load_config({"data": {"source": "webdataset", "shards": shards}}).data
    assert [len(make_source(config, split, 64)) for split in ("train", "test")] == [5, 3]
    with pytest.raises(ConfigError, match="config.data.shards has no split 'validation': it has train, test"):
        make_source(config, "validation", 64)


class Bucket(MemoryFileSystem):
    """An in-memory file system with the fsspec interface to gs://."""

    protocol = "gs"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")

    def glob(self, path, **options):
        return [name.removeprefix("/") for name in super().glob(path, **options)]


def test_shards_in_bucket(tmp_path, monkeypatch):
    bucket = Bucket()
    monkeypatch.setattr(bucket, "store", {})
    monkeypatch.setattr(fsspec, "filesystem", {"gs": bucket}.get)
    write_shards(tmp_path, [3, 2])
    for path in tmp_path.glob("*.tar"):
        bucket.pipe_file(f"gs://bucket/photos/{path.name}", path.read_bytes())
    for names in ("gs://bucket/photos", "gs://bucket/photos/{00000..00001}.tar"):
        source = WebDatasetSource(names)
        assert [source[i].image for i in range(5)] == [encode_image(i) for i in range(5)]
        assert source[4].name == "gs://bucket/photos/00001.tar/000004.png"
    assert bucket.exists("gs://bucket/photos/00000.tar.index")
    monkeypatch.setattr(tar_index, "_build_index", None)
    assert len(WebDatasetSource("gs://bucket/photos")) == 5
    with pytest.raises(ConfigError, match="shard gs://bucket/photos/00002.tar"):
        WebDatasetSource("gs://bucket/photos/{00000..00002}.tar")


def test_missing_gcsfs_names_extra(monkeypatch):
    def missing(protocol):
        raise ImportError("gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ConfigError, match=r"pip install .imagen_jax\[gcs\]"):
        WebDatasetSource("gs://bucket/photos/0.tar")


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("a.tar", ["a.tar"]),
        ("{0..2}.tar", ["0.tar", "1.tar", "2.tar"]),
        ("x/{008..011}.tar", ["x/008.tar", "x/009.tar", "x/010.tar", "x/011.tar"]),
        ("{1..2}-{a}-{00..01}.tar", ["1-{a}-00.tar", "1-{a}-01.tar", "2-{a}-00.tar", "2-{a}-01.tar"]),
    ],
)
def test_brace_ranges(pattern, names):
    assert _expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{5..4}.tar", "{0..99999999999}.tar", "{0..9999}/{0..9999}.tar"])
def test_invalid_brace_ranges_raise(pattern):
    with pytest.raises(ConfigError, match="stands for no name, or for more than 1,000,000"):
        _expand_braces(pattern)


@pytest.mark.parametrize(
    "name",
    ["pipe:touch {canary}", "pipe: touch {canary}; cat s.tar", "http://x.org/a.tar", "https://x.org/a.tar"]
    + ["ftp://x/a.tar", "file:///a.tar", "s3://x/a.tar", "PIPE:touch {canary}"],
)
def test_commands_and_urls_raise(tmp_path, name):
    canary = tmp_path / "canary"
    with pytest.raises(ConfigError, match="is not a file name"):
        WebDatasetSource(["a.tar", name.format(canary=canary)])
    assert not canary.exists()


def test_shell_syntax_in_name_is_literal(tmp_path):
    name = tmp_path / "$(touch canary);pipe:x.tar"
    write_tar(name, example(1))
    assert len(WebDatasetSource(str(name))) == 1
    assert not list(tmp_path.rglob("canary"))


HOSTILE = {
    "of a long name": ("n" * 5000 + ".png", "its name has more than 4,096 characters"),
    "above": ("../canary.png", "its name leads out of the archive"),
    "far above": ("a/../../canary.png", "its name leads out of the archive"),
    "absolute": ("{folder}/canary.png", "its name leads out of the archive"),
    "pickled": ("a.pkl", "its suffix is none of"),
    "torch's": ("a.pt", "its suffix is none of"),
    "pickled arrays": ("a.npy", "its suffix is none of"),
    "a second picture": ("a.jpg", "its example has another of its kind"),
    "of no picture": ("b.txt", "there is no image with that name"),
}


@pytest.mark.parametrize("name, reason", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members_are_ignored(tmp_path, name, reason):
    name = name.format(folder=tmp_path)
    source = source_of(tmp_path, IMAGE_MEMBER, (name, b"canary"))
    assert [source[i].image for i in range(len(source))] == [IMAGE_MEMBER[1]]
    finding = source.left_out.findings[0]
    assert (finding.place, finding.count) == (str(tmp_path / "s.tar"), 1)
    assert finding.names == (name.removesuffix(".txt")[:4096],)
    assert reason in finding.reason
    assert len(finding.message()) < 1000
    assert not list(tmp_path.parent.rglob("canary*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.tar", "s.tar.index"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_ignored(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(b"secret")
    odd = tarfile.TarInfo("b.png")
    odd.type, odd.linkname = kind, str(tmp_path / "secret.png")
    source = source_of(tmp_path, odd, IMAGE_MEMBER)
    assert [source[i].image for i in range(len(source))] == [IMAGE_MEMBER[1]]
    assert "such as 'b.png': it is a" in source.left_out.messages()[0]
    made = [path for path in tmp_path.iterdir() if not stat.S_ISREG(path.lstat().st_mode)]
    assert not made


def test_oversized_members_are_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_MAX_PART_BYTES", (1000, 10, 10))
    source = source_of(tmp_path, IMAGE_MEMBER, ("big.png", bytes(1001)), ("a.txt", bytes(11)))
    assert len(source) == 1
    assert source.captions(0) == ()
    big, long = source.left_out.messages()[:2]
    assert "'big.png': it has more than 1,000 bytes" in big
    assert "'a.txt': it has more than 10 bytes" in long


def damaged_shards(folder):
    """Yields (expected message, path) of unusable shards."""
    intact = write_tar(folder / "whole.tar", [*example(1), *example(2)]).read_bytes()
    yield "does not exist", folder / "missing.tar"
    for message, data in {
        "is cut short: it ends at byte 0": b"",
        "is cut short": intact[:3000],
        "is compressed": b"\x1f\x8b" + intact,
        "has no tar header at byte 0": b"<html>not found</html>".ljust(2048),
        "after the end mark": intact + intact,
    }.items():
        path = folder / f"{len(message)}{len(data)}.tar"
        path.write_bytes(data)
        yield message, path


def test_damaged_shard_raises(tmp_path):
    for message, path in damaged_shards(tmp_path):
        with pytest.raises(ConfigError, match=f"shard {path} .*{message}.*(put it there|write it again)"):
            WebDatasetSource([str(tmp_path / "whole.tar"), str(path)])
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(ConfigError, match="folder.tar does not exist"):
        WebDatasetSource(str(tmp_path / "folder.tar"))


def test_no_examples_raise(tmp_path):
    with pytest.raises(ConfigError, match="there is no shard in"):
        WebDatasetSource(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="shards is empty"):
        WebDatasetSource(())
    with pytest.raises(ConfigError, match="has no image"):
        source_of(tmp_path, ("a.txt", b"said"))
    shutil.copy(tmp_path / "s.tar", tmp_path / "t.tar")
    with pytest.raises(ConfigError, match="name a file twice"):
        WebDatasetSource([str(tmp_path), str(tmp_path / "t.tar")])


def test_too_many_members_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "_MAX_MEMBERS", 1000)
    write_tar(tmp_path / "s.tar", [(f"{i}.txt", b"") for i in range(1001)])
    with pytest.raises(ConfigError, match="has more than 1,000 members"):
        WebDatasetSource(str(tmp_path / "s.tar"))


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.txt", b"\xff\xfa", "is not UTF-8 text"),
        ("a.txt", "猫と赤い円".encode("shift_jis"), "is not UTF-8 text"),
        ("a.txt", "a caf\xe9".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.txt", "猫と赤い円".encode("iso2022_jp"), "ISO-2022"),
        ("a.json", '{"caption": "a caf\xe9"}'.encode("cp1252"), "is not UTF-8 text"),
        ("a.json", b"{", "is not valid JSON metadata"),
        ("a.json", b"[1]", "a list, expected an object"),
        ("a.json", b"[" * 100_000, "is not valid JSON metadata"),
        ("a.json", b"\xff", "is not UTF-8 text"),
        ("a.json", b'{"caption": 7}', "7 as caption, expected text"),
        ("a.json", b'{"caption": "a fox \\ud83e"}', "half of a surrogate pair"),
        ("a.txt", bytes(100), "NUL"),
        ("a.txt", "ein Fuchs, größer".encode("utf-7"), "UTF-7"),
        ("a.txt", "红色的圆".encode("hz"), "HZ"),
    ],
)
def test_invalid_captions_are_corrupt_records(tmp_path, name, data, message):
    source = source_of(tmp_path, IMAGE_MEMBER, (name, data), *example(1))
    for read in (source.captions, source.__getitem__):
        with pytest.raises(CorruptRecordError, match=f"s.tar/{name}: .*{message}"):
            read(0)
    assert source.captions(1) == ("picture 1",)


def keys_of(source):
    return {source[i].name.rpartition(".tar/")[2]: source.captions(i) for i in range(len(source))}


def left_out_names(source):
    return {name for finding in source.left_out.findings if "not used" in finding.what for name in finding.names}


def test_names_with_dots_keep_their_images(tmp_path):
    source = source_of(
        tmp_path,
        ("d.e/photo.v2.final.jpg", b"1"),
        ("d.e/photo.v2.final.txt", b"x"),
        ("2024.01.05.json", b'{"caption": "y"}'),
        ("2024.01.05.PNG", b"2"),
        ("2024.01.06.webp", b"3"),
        ("a.jpg", b"4"),
        ("a.jpg.txt", b"z"),
        ("a.2.jpg", b"5"),
        ("a.2.txt", b"of its own"),
        ("b.v1.png", b"6"),
        ("b.v1.png.txt", b"b"),
        ("c.image.png", b"7"),
        ("c.txt", b"c"),
    )
    assert keys_of(source) == {
        "d.e/photo.v2.final.jpg": ("x",),
        "2024.01.05.PNG": ("y",),
        "2024.01.06.webp": (),
        "a.jpg": ("z",),
        "a.2.jpg": ("of its own",),
        "b.v1.png": ("b",),
        "c.image.png": ("c",),
    }
    assert left_out_names(source) == set()


def test_fields_of_an_example_are_no_examples(tmp_path):
    source = source_of(
        tmp_path,
        ("a.seg.png", b"0"),
        ("a.seg.json", b"{}"),
        ("a.jpg", b"1"),
        ("a.txt", b"x"),
        ("a.caption.txt", b"y"),
        ("b.in.png", b"2"),
        ("b.out.png", b"3"),
        ("b.txt", b"z"),
    )
    assert keys_of(source) == {"a.jpg": ("x",)}
    assert left_out_names(source) == {"a.seg.png", "a.seg.json", "a.caption.txt", "b.in.png", "b.out.png", "b"}


def test_image_formats_of_shards(tmp_path):
    source = source_of(
        tmp_path,
        *(("a.tiff", b"depth"), ("a.jpg", b"1"), ("b.gif", b"2"), ("c.JFIF", b"3"), ("d.bmp", b"4")),
        *(("e.cr2", b"x"), ("._a.jpg", b"x"), ("Thumbs.db", b"x"), ("@eaDir/a.jpg/THUMB.jpg", b"x")),
    )
    # the format that was read before others were
    assert [source[i].image for i in range(len(source))] == [b"1", b"2", b"3", b"4"]
    assert left_out_names(source) == {"a.tiff", "e.cr2", "._a.jpg", "Thumbs.db", "@eaDir/a.jpg/THUMB.jpg"}
    ((count, names),) = [(f.count, f.names) for f in source.left_out.findings if f.what.startswith("image(s) without")]
    assert (count, [name.rpartition("/")[2] for name in names]) == (4, ["a.jpg", "b.gif", "c.JFIF"])


def test_index_of_other_formats_is_rebuilt(tmp_path, monkeypatch):
    path = str(write_tar(tmp_path / "s.tar", [("a.png", b"1"), ("b.heic", b"2")]))
    for suffixes, count in (({"png": 0}, 1), ({"png": 0, "heic": 0}, 2), ({"png": 0}, 1)):
        monkeypatch.setattr(tar_index, "_PART_OF_SUFFIX", suffixes)
        source = WebDatasetSource(path)
        assert len(source) == count
        assert ("b.heic" in left_out_names(source)) == (count == 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_captions_with_byte_order_marks(tmp_path, encoding):
    source = source_of(
        tmp_path,
        *(("a.png", b"1"), ("a.txt", "gr\xf6\xdfer\n\u732b".encode(encoding))),
        *(("b.png", b"2"), ("b.json", '{"caption": "\u732b"}'.encode(encoding))),
    )
    assert [source.captions(i) for i in range(2)] == [("gr\xf6\xdfer", "\u732b"), ("\u732b",)]


def test_whole_texts_as_captions(tmp_path):
    members = [IMAGE_MEMBER, ("a.txt", b"# A fox\r\n\r\nin snow")]
    path = str(write_tar(tmp_path / "s.tar", members))
    lines, whole = (WebDatasetSource(path, caption_files) for caption_files in ("lines", "whole"))
    assert (lines.captions(0), whole.captions(0)) == (("# A fox", "in snow"), ("# A fox in snow",))
    assert ["caption_files=whole" in message for message in lines.left_out.messages()] == [True]
    assert whole.left_out.messages() == []
