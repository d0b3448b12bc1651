"""Parquet files as the Hugging Face Hub has them: splits, columns, random access, and damage by name."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from imagen_jax.config.load import load_config
from imagen_jax.data.corrupt import CorruptRecords
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.record import CorruptRecordError
from imagen_jax.data.transforms import Transform
from imagen_jax.datasets import row_copy
from imagen_jax.datasets.from_config import make_buckets
from imagen_jax.datasets.parquet import ParquetColumns, ParquetSource
from imagen_jax.datasets.parquet_files import split_of
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from imagen_jax.inspection.inspect import inspect
from tests.helpers.archives import encode_image
from tests.helpers.configs import config_of
from tests.helpers.memory import rise_of_memory
from tests.helpers.orders import assert_order_holds

LENGTH = 1000  # of images in a column of a fixed length


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def rows_of(numbers, **columns):
    """Rows with a struct of an image, as `datasets` writes them, and a caption."""
    return [
        {"image": {"bytes": encode_image(i), "path": f"{i}.png"}, "text": f"picture {i}"}
        | {name: value(i) for name, value in columns.items()}
        for i in numbers
    ]


def write(path, rows, schema=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def source_of(path, cache, split="all", image="image", caption="text", fraction=0.01):
    return ParquetSource(str(path), split, ParquetColumns(image, caption), fraction, str(cache))


def numbers_of(source):
    return [int(source.captions(i)[0].split()[1]) for i in range(len(source))]


def test_rows_in_any_order(tmp_path, cache):
    for file, numbers in enumerate((range(3), range(3, 3), range(3, 8))):
        schema = pa.Table.from_pylist(rows_of([0])).schema
        write(tmp_path / "data" / f"train-{file:05}-of-00003.parquet", rows_of(numbers), schema, row_group_size=2)
    source = source_of(tmp_path / "data", cache)
    assert len(source) == 8
    for i in np.random.default_rng(0).permutation(8):
        record = source[i]
        assert record.image == encode_image(i)
        assert record.captions == source.captions(i) == (f"picture {i}",)
    assert source[7].name.endswith("train-00002-of-00003.parquet row 4")
    for i in (-1, 8):
        with pytest.raises(IndexError, match=r"is outside \[0, 8\)"):
            source[i]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(LENGTH)])
@pytest.mark.parametrize("is_struct", [True, False])
def test_kinds_of_image_columns(tmp_path, cache, kind, is_struct):
    kind = pa.struct([("bytes", kind), ("path", pa.string())]) if is_struct else kind
    images = [encode_image(i).ljust(LENGTH, b"\0") for i in range(3)]
    cells = [{"bytes": image, "path": None} if is_struct else image for image in images]
    schema = pa.schema([("img", kind), ("text", pa.string())])
    rows = [{"img": cell, "text": f"picture {i}"} for i, cell in enumerate(cells)]
    source = source_of(write(tmp_path / "a.parquet", rows, schema), cache, image="img")
    assert [source[i].image for i in range(3)] == images


def test_captions_and_columns(tmp_path, cache):
    """Lists of captions, classes by name, and other columns as text; vectors and other images are left out."""
    rows = rows_of(
        range(3),
        label=lambda i: i % 2,
        texts=lambda i: [f"  one {i}", "", None, f"two {i}"],
        score=lambda i: [0.5, None, 1.5][i],
        good=lambda i: i == 0,
        mask=lambda i: {"bytes": b"mask", "path": None},
        vector=lambda i: [0.0, 1.0],
    )
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    schema = pa.Table.from_pylist(rows).schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path = write(tmp_path / "a.parquet", rows, schema)
    source = source_of(path, cache, caption="texts")
    assert source[1].captions == source.captions(1) == ("one 1", "two 1")
    assert source[0].columns == source.columns(0)
    assert source.columns(0) == {"text": "picture 0", "label": "cat", "score": "0.5", "good": "True"}
    assert "score" not in source.columns(1)
    assert source_of(path, cache, caption="label").captions(1) == ("dog",)
    assert source_of(path, cache, caption="").captions(1) == ()
    assert "text" in source_of(path, cache, caption="").columns(1)


@pytest.mark.parametrize(
    "name, split",
    [
        ("data/train-00000-of-00003.parquet", "train"),
        ("data/train_clean.100-00000-of-00003.parquet", "train_clean.100"),
        ("default/validation/0000.parquet", "validation"),
        ("my_val_1.parquet", "validation"),
        ("DEV.parquet", "validation"),
        ("test/train.parquet", "train"),
        ("eval-0.parquet", "test"),
        ("contest/trained.parquet", ""),
        ("0001.parquet", ""),
    ],
)
def test_split_of_a_file(name, split):
    assert split_of(name) == split


def test_splits_by_file_names(tmp_path, cache):
    for number, name in enumerate(("train-00000-of-00001", "val", "test/0", "extra-00000-of-00001", "other")):
        write(tmp_path / f"{name}.parquet", rows_of([number]))
    expected = {"train": [0], "validation": [1], "valid": [1], "test": [2], "extra": [3], "all": [3, 4, 2, 0, 1]}
    for split, numbers in expected.items():
        assert numbers_of(source_of(tmp_path, cache, split)) == numbers
    with pytest.raises(
        ConfigError,
        match="no files for the split 'none': set data.split to 'extra', 'test', 'train', 'validation' or 'all'",
    ):
        source_of(tmp_path, cache, "none")
    (finding,) = source_of(tmp_path, cache, "test").left_out.findings[1:]
    assert finding.names == ("extra-00000-of-00001.parquet",) and "data.split to 'extra'" in finding.reason
    assert len(source_of(tmp_path, cache, "extra").left_out.findings) == 1


def test_files_of_one_other_split_are_for_training(tmp_path, cache):
    """As those of a data set that has no split but one of its own name."""
    for number in range(2):
        write(tmp_path / f"coco-0000{number}-of-00002.parquet", rows_of(range(6 * number, 6 * number + 6)))
    train, validation, own, every = (
        numbers_of(source_of(tmp_path, cache, split)) for split in ("train", "validation", "coco", "all")
    )
    assert validation and sorted(train + validation) == every == [*range(12)]
    assert own == train
    write(tmp_path / "laion-00000-of-00001.parquet", rows_of([12]))
    with pytest.raises(ConfigError, match="no files for the split 'train': set data.split to 'coco', 'laion' or 'all'"):
        source_of(tmp_path, cache, "train")


def test_one_row_is_in_both_splits(tmp_path, cache):
    write(tmp_path / "a.parquet", rows_of([7]))
    for split in ("train", "validation"):
        source = source_of(tmp_path, cache, split)
        assert numbers_of(source) == [7]
        assert [finding.what for finding in source.left_out.findings] == ["row(s) trained on and validated on"]
    assert source_of(tmp_path, cache, "all").left_out.findings == []


def test_other_files_beside_parquet_are_counted(tmp_path, cache):
    write(tmp_path / "A.PARQUET", rows_of([0]))
    others = ("README.md", ".gitattributes", "images/a.jpg", "b.parquet.gz", ".cache/x.parquet")
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to("nowhere")
    for _ in range(2):  # without copies in a folder within, and with them
        source = source_of(tmp_path, cache)
        assert numbers_of(source) == [0]
        found = source.left_out.findings
        assert {name for finding in found if finding.what == "file(s) not used" for name in finding.names} >= {*others}
        assert sum(finding.count for finding in found if finding.what == "file(s) not used") == len(others) + 1
        assert ("link",) in [finding.names for finding in found if finding.what.startswith("link")]
    (tmp_path / "images" / "README.md").write_text("x")
    with pytest.raises(ConfigError, match="has no Parquet file.*README.md"):
        source_of(tmp_path / "images", cache)


def test_what_is_left_out_is_named(tmp_path, cache):
    """Files of no split beside others of some, and columns that describe nothing."""
    for number, name in enumerate(("train", "other")):
        write(tmp_path / f"{name}.parquet", rows_of([number, 9], vector=lambda i: [0.5], mask=lambda i: b"x"))
    files, columns = source_of(tmp_path, cache, "train").left_out.findings
    assert (files.count, files.names) == (1, ("other.parquet",))
    assert (columns.count, columns.names) == (2, ("vector", "mask"))
    (columns,) = source_of(tmp_path, cache, "all").left_out.findings
    assert columns.names == ("vector", "mask")


@pytest.mark.parametrize("names", [("train-00000-of-00002", "train-00001-of-00002"), ("a", "b")])
@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_validation_is_a_fraction_of_the_rows(tmp_path, cache, names, fraction):
    """Where no file is named after it; at least one row, and the same ones whatever rows follow."""
    for name, numbers in zip(names, (range(12), range(12, 20)), strict=True):
        write(tmp_path / f"{name}.parquet", rows_of(numbers))
    parts = {
        split: numbers_of(source_of(tmp_path, cache, split, fraction=fraction)) for split in ("train", "validation")
    }
    assert sorted(parts["train"] + parts["validation"]) == [*range(20)]
    assert 1 <= len(parts["validation"]) <= 12
    write(tmp_path / f"{names[1]}.parquet", rows_of(range(12, 30)))
    if fraction == 0.3:
        assert set(parts["validation"]) <= set(numbers_of(source_of(tmp_path, cache, "validation", fraction=fraction)))
    with pytest.raises(ConfigError, match="the validation split of .*validation_fraction is 0"):
        source_of(tmp_path, cache, "validation", fraction=0.0)


def test_patterns_and_single_files(tmp_path, cache):
    for number, name in enumerate(("a/train-1", "a/train-2", "b/train-1")):
        write(tmp_path / f"{name}.parquet", rows_of([number]))
    write(tmp_path / ".cache" / "x.parquet", rows_of([9]))
    (tmp_path / "README.md").write_text("no data")
    assert numbers_of(source_of(tmp_path, cache)) == [0, 1, 2]
    assert numbers_of(source_of(tmp_path / "a", cache)) == [0, 1]
    assert numbers_of(source_of(tmp_path / "*" / "train-1.parquet", cache)) == [0, 2]
    assert numbers_of(source_of(tmp_path / "b" / "train-1.parquet", cache)) == [2]
    for number, name in enumerate(("d [1]/x.parquet", "d [1]/y[0].parquet")):
        write(tmp_path / name, rows_of([number]))
    assert numbers_of(source_of(tmp_path / "d [1]", cache)) == [0, 1]
    assert numbers_of(source_of(tmp_path / "d [1]" / "*.parquet", cache)) == [0, 1]
    assert numbers_of(source_of(tmp_path / "d [1]" / "y[0].parquet", cache)) == [1]
    assert numbers_of(source_of(tmp_path / "[d]*" / "[x]*", cache)) == [0]
    with pytest.raises(ConfigError, match="has no Parquet file"):
        source_of(tmp_path / "c*" / "*.parquet", cache)
    with pytest.raises(ConfigError, match="is not a folder"):
        source_of(tmp_path / "none", cache)
    for url in ("https://huggingface.co/datasets/a/b", "hf://datasets/a/b"):
        with pytest.raises(ConfigError, match="web address.*hf download"):
            source_of(url, cache)
    with pytest.raises(ConfigError, match="config.data.path is empty"):
        source_of("", cache)


@pytest.mark.parametrize(
    "image, caption, message",
    [
        ("picture", "text", r"no column 'picture'; it has image \(struct<.*text \(string\).*image_column to 'image'"),
        ("text", "text", r"a column 'text' of string; .*image_column to 'image'"),
        ("image", "prompt", r"no column 'prompt'; .*caption_column to 'text' or 'tags' or ''"),
        ("image", "score", r"a column 'score' of int64; .*caption_column to 'text' or"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, cache, image, caption, message):
    write(tmp_path / "a.parquet", rows_of(range(2), score=lambda i: i, tags=lambda i: ["x"]))
    with pytest.raises(ConfigError, match=message):
        source_of(tmp_path, cache, image=image, caption=caption)
    assert not list(cache.rglob("*.rows"))


def test_rows_without_an_image_are_corrupt_by_name(tmp_path, cache):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [None, {"bytes": None, "path": "there/7.png"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}]
    rows = [{"image": cell, "text": "a"} for cell in [*cells, {"bytes": encode_image(4), "path": None}]]
    path = write(tmp_path / "a.parquet", rows, pa.schema([("image", kind), ("text", pa.string())]))
    source = source_of(path, cache)
    for row, reason in ((0, "has no image"), (1, "only the path 'there/7.png'"), (2, "has no image")):
        with pytest.raises(CorruptRecordError, match=f"a.parquet row {row}: .*{reason}"):
            source[row]
        assert source.captions(row) == ("a",)
    transform = Transform((4, 4), 3, 8, crop="center", flip=False, background=0, upscale=True, max_pixels=1000)
    with pytest.raises(CorruptRecordError, match="a.parquet row 3: the file is empty"):
        transform.decode(source[3].image, source[3].name)
    corrupt = CorruptRecords("it", len(source), 1.0)
    examples = ImageTextDataset(source, 3, transform, corrupt)
    assert all((examples[i].image == examples[4].image).all() for i in range(5))
    assert len(corrupt.pop_new()) == 4


def test_text_that_is_not_utf8_is_corrupt(tmp_path, cache):
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    table = pa.table({"image": [encode_image(0)], "text": broken})
    parquet.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path, cache)
    with pytest.raises(CorruptRecordError, match="a.parquet row 0: its column 'text' is not UTF-8"):
        source[0]


def test_copies_are_made_once_for_each_version(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.parquet", rows_of(range(3)))
    source_of(path, cache)
    (copy,) = cache.rglob("*.rows")
    before = copy.stat().st_mtime_ns
    assert numbers_of(source_of(path, cache)) == [0, 1, 2]
    assert copy.stat().st_mtime_ns == before
    write(path, rows_of(range(5, 9)))
    assert numbers_of(source_of(path, cache)) == [5, 6, 7, 8]
    (new,) = cache.rglob("*.rows")  # the old one is gone
    assert new != copy


def test_damaged_copies(tmp_path, cache):
    """A damaged row costs that row, a damaged index a new copy."""
    path = write(tmp_path / "a.parquet", rows_of(range(3)))
    source = source_of(path, cache)
    (copy,) = cache.rglob("*.rows")
    intact = copy.read_bytes()
    copy.write_bytes(intact[:5] + bytes([intact[5] ^ 1]) + intact[6:])
    with pytest.raises(CorruptRecordError, match="row 0: .*damaged"):
        source[0]
    assert source[1].image == encode_image(1)
    for damaged in (intact[:-40] + bytes([intact[-40] ^ 1]) + intact[-39:], intact[: len(intact) // 2], b""):
        copy.write_bytes(damaged)
        assert source_of(path, cache)[0].image == encode_image(0)
        assert copy.read_bytes() == intact


@pytest.mark.parametrize("length", [0, 4, 2000, -1])
def test_damaged_files_are_named(tmp_path, cache, length):
    path = write(tmp_path / "a.parquet", rows_of(range(200)), compression="zstd")
    data = path.read_bytes()
    middle = len(data) // 4
    path.write_bytes(data[:length] if length >= 0 else data[:middle] + bytes(500) + data[middle + 500 :])
    with pytest.raises(ConfigError, match="a.parquet cannot be read as Parquet"):
        source_of(path, cache)
    assert not list(cache.rglob("*.rows"))


def test_a_full_disk_is_said(tmp_path, cache, monkeypatch):
    path = write(tmp_path / "a.parquet", rows_of(range(3)))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ConfigError, match=r"take [\d,]+ bytes, and .* has 10 free: set config.data.cache_dir"):
        source_of(path, cache)


def test_a_copy_that_cannot_be_written(tmp_path):
    path = write(tmp_path / "a.parquet", rows_of(range(3)))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be copied to .*config.data.cache_dir"):
        source_of(path, tmp_path / "file")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); import signal; "
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from tests.datasets.test_parquet import source_of; "
    code = limit + f"source_of({str(path)!r}, {str(tmp_path / 'small')!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError" in result.stderr and "the disk is full" in result.stderr
    assert not list((tmp_path / "small").rglob("*.rows*"))


def test_leftovers_of_a_killed_process_are_deleted(tmp_path, cache):
    path = write(tmp_path / "a.parquet", rows_of(range(3)))
    source_of(path, cache)
    (copy,) = cache.rglob("*.rows")
    copy.unlink()
    leftover = copy.parent / f".{copy.name}.abc"
    leftover.write_bytes(bytes(10))
    source_of(path, cache)
    assert sorted(file.name for file in copy.parent.iterdir()) == sorted([copy.name, "lock"])


def test_memory_does_not_grow_with_row_groups(tmp_path, cache):
    """A single row group far larger than what is in memory at a time."""
    image = np.random.default_rng(0).bytes(2**19)
    rows = [{"image": {"bytes": bytes([i]) + image, "path": None}, "text": "a"} for i in range(250)]
    options = {"row_group_size": 1000, "write_batch_size": 8, "use_dictionary": False, "compression": "none"}
    path = write(tmp_path / "a.parquet", rows, **options)
    del rows
    assert path.stat().st_size > 120 * 2**20
    assert rise_of_memory(lambda: source_of(path, cache)) < 100 * 2**20


def test_files_in_a_bucket(tmp_path, cache, bucket):
    """Through gcsfs, on a server with the interface of Google's."""
    folder = bucket / "hub"
    (folder / "train-00000-of-00001.parquet").write_bytes(write(tmp_path / "a.parquet", rows_of(range(3))).read_bytes())
    for name in (f"{folder}", f"{folder}/*.parquet", f"{folder}/train-00000-of-00001.parquet"):
        source = source_of(name, cache, "train", fraction=0.0)
        assert source[2].image == encode_image(2)
        assert source[2].name == f"{folder}/train-00000-of-00001.parquet row 2"


def parquet_config(path, cache, **changes):
    data = {"source": "parquet", "path": str(path), "cache_dir": str(cache), "transform": {"upscale": True}}
    return load_config(config_of("folder_base.py", **{"image_size": 8, "data": data, **changes}))


def test_training_order_and_buckets(tmp_path, cache):
    rows = [{"image": encode_image(i, (8, 8) if i % 3 else (16, 8)), "text": f"picture {i}"} for i in range(30)]
    write(tmp_path / "train.parquet", rows)
    config = parquet_config(tmp_path / "train.parquet", cache, **{"data.buckets": ((8, 16),)})
    buckets = make_buckets(config.data, "all", 8, 3)
    assert [len(bucket) for bucket in buckets] == [20, 10]
    assert_order_holds(buckets[0])


def test_mixtures_and_balance(tmp_path, cache):
    write(tmp_path / "train.parquet", rows_of(range(12), kind=lambda i: "rare" if i == 0 else "common"))
    part = {"source": "parquet", "path": str(tmp_path), "cache_dir": str(cache), "validation_fraction": 0.0}
    balance = {"column": "kind", "weights": ()}
    config = load_config({"data": {"source": "mixture", "parts": {"a": {**part, "weight": 1.0, "balance": balance}}}})
    source = make_source(config.data, "train", 8)
    order = source.order(0)
    kinds = [source.columns(order[i])["kind"] for i in range(20)]
    assert kinds.count("rare") == 10


def test_inspect(tmp_path, cache):
    rows = rows_of(range(6))
    rows[3]["image"]["bytes"] = b"damaged"
    write(tmp_path / "data" / "train.parquet", rows)
    config = parquet_config(tmp_path / "data", cache, **{"data.max_corrupt": 0.5, "data.validation_fraction": 0.0})
    report = inspect(config, tmp_path / "out", split="train", records=0, groupings=[])
    assert (report["records"], report["unreadable"]) == (6, 1)


def test_row_copy_is_not_another_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="not a copy"):
        row_copy.RowCopy(tmp_path / "a")


def test_several_processes_copy_once(tmp_path, cache, monkeypatch):
    """The claim is on an open file: threads wait for each other as processes do."""
    path, copied = write(tmp_path / "a.parquet", rows_of(range(20))), []
    real = row_copy.write_rows
    monkeypatch.setattr("imagen_jax.datasets.parquet.write_rows", lambda *args: (copied.append(1), real(*args)))
    with ThreadPoolExecutor(4) as pool:
        assert [len(source) for source in pool.map(lambda _: source_of(path, cache), range(4))] == [20] * 4
    assert len(copied) == 1


def test_copies_are_on_a_local_disk(tmp_path):
    path = write(tmp_path / "a.parquet", rows_of(range(2)))
    with pytest.raises(ConfigError, match="config.data.cache_dir 'gs://bucket/x' is in a bucket"):
        source_of(path, "gs://bucket/x")


@pytest.mark.parametrize("names", [("image", "text", "text"), ("image", "image", "text")])
def test_columns_of_one_name(tmp_path, cache, names):
    arrays = [pa.array([encode_image(0) if name == "image" else name]) for name in names]
    parquet.write_table(pa.Table.from_arrays(arrays, names), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="has several columns '(text|image)'"):
        source_of(tmp_path, cache)


def test_columns_of_all_types(tmp_path, cache):
    """Those that describe an image are kept as text, whatever their names; none makes the file unreadable."""
    table = pa.table(
        {
            "image": [encode_image(0)],
            "a.text": ["picture 0"],
            "time": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
            "late": pa.array([2**40], pa.timestamp("s")),
            "price": pa.array([Decimal("1.50")], pa.decimal128(5, 2)),
            "kind": pa.array(["x"]).dictionary_encode(),
            "half": pa.array([np.float16(0.5)]),
            "nothing": pa.nulls(1),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    source = source_of(tmp_path, cache, caption="a.text")
    assert source.captions(0) == ("picture 0",)
    assert source.columns(0).keys() == {"time", "late", "price", "kind", "half"}
    assert source.columns(0)["price"] == "1.50" and source.columns(0)["kind"] == "x"
    assert source.columns(0)["time"].startswith("2023-11-14")
