"""Mixtures and balanced sources: shares, epochs, and positions."""

import json
import re

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from imagen_jax.config.load import default_config, from_json, load_config, to_json
from imagen_jax.data.dataset import ImageTextDataset
from imagen_jax.data.pipeline import training_batches
from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.data.shuffle import _integer_weights, training_order
from imagen_jax.datasets.from_config import make_buckets, make_examples
from imagen_jax.datasets.mixtures import BalancedSource, MixtureSource
from imagen_jax.datasets.registry import make_source
from imagen_jax.errors import ConfigError
from tests.helpers.archives import encode_image, write_shards, write_tar
from tests.helpers.configs import ROOT, config_of


class Named:
    """Record i is named "name i" and has the given column value."""

    def __init__(self, name, values, corrupt=()):
        self._name, self._values, self._broken = name, values, corrupt

    def __len__(self):
        return len(self._values)

    def __getitem__(self, index):
        if index in self._broken:
            raise CorruptRecordError(f"{self._name} {index}", "broken")
        image = np.zeros((2, 2, 1), np.uint8)
        columns = {} if self._values[index] is None else {"kind": self._values[index]}
        return Record(image, self.captions(index), f"{self._name} {index}", columns)

    def captions(self, index):
        return (f"{self._name} {index}",)

    def __repr__(self):
        return f"Named({self._name!r})"


def mixture(lengths, weights):
    parts = {f"part{i}": Named(f"part{i}", [None] * length) for i, length in enumerate(lengths)}
    return MixtureSource(parts, {f"part{i}": weight for i, weight in enumerate(weights)})


def samples(source, count, seed=0, first=0):
    """Returns the names of the records at positions."""
    places = training_order(source, seed)
    return [source[places[first + i]].name for i in range(count)]


@pytest.mark.parametrize("lengths", [(1,), (2,), (1, 1), (3, 50), (7, 1, 11), (100, 55, 34)])
def test_mixture_has_every_record_once(lengths):
    source = mixture(lengths, [1] * len(lengths))
    everything = {f"part{part} {i}" for part, length in enumerate(lengths) for i in range(length)}
    result = [source[i] for i in range(len(source))]
    assert len(source) == len(everything)
    assert {record.name for record in result} == everything
    for i, record in enumerate(result):
        assert record.captions == source.captions(i) == (record.name,)
        assert record.columns == source.columns(i) == {"part": record.name.split()[0]}
    for i in (-1, len(source)):
        with pytest.raises(IndexError):
            source[i]


def test_mixture_alternates_parts():
    """Previews and validation losses use the first records."""
    source = mixture((1000, 3000), (1, 1))
    first = [source[i].columns["part"] for i in range(40)]
    assert 8 <= first.count("part0") <= 12


@pytest.mark.parametrize("lengths, weights", [((5, 9), (1, 3)), ((20, 3, 7), (0.5, 0.2, 0.3)), ((4, 4), (1, 1))])
def test_parts_have_shares_and_epochs(lengths, weights):
    names = samples(mixture(lengths, weights), 2000)
    for part, (length, weight) in enumerate(zip(lengths, weights, strict=True)):
        of_part = [name for name in names if name.startswith(f"part{part} ")]
        share = weight / sum(weights)
        assert abs(len(of_part) - 2000 * share) <= 1
        for epoch in range(len(of_part) // length):
            assert len(set(of_part[epoch * length : (epoch + 1) * length])) == length
        # in every stretch, not only in the long run
        for start in range(0, 1900, 7):
            stretch = [name.startswith(f"part{part} ") for name in names[start : start + 50]]
            assert abs(sum(stretch) - 50 * share) <= len(lengths)


def test_parts_are_shuffled_independently():
    names = samples(mixture((12, 12), (1, 1)), 480)
    orders = [[name.split()[1] for name in names if name.startswith(part)] for part in ("part0", "part1")]
    epochs = [tuple(order[at : at + 12]) for order in orders for at in range(0, 240, 12)]
    assert len(set(epochs)) == len(epochs)


def test_order_is_random_access_by_seed():
    source = mixture((9, 14), (2, 1))
    full = samples(source, 300, seed=5)
    assert samples(source, 300, seed=5) == full
    assert samples(source, 300, seed=6) != full
    assert [samples(source, 1, seed=5, first=i)[0] for i in (299, 0, 150)] == [full[i] for i in (299, 0, 150)]


def test_only_weight_ratios_matter():
    assert (
        _integer_weights([1, 3]).tolist()
        == _integer_weights([0.25, 0.75]).tolist()
        == _integer_weights([1e6, 3e6]).tolist()
        == [1, 3]
    )
    assert _integer_weights([1] * 7).tolist() == [1] * 7
    assert _integer_weights([1, 1e12]).tolist() == [1, 10_000]
    counts = _integer_weights([np.pi, np.e, 1])
    np.testing.assert_allclose(counts / counts.sum(), np.array([np.pi, np.e, 1]) / (np.pi + np.e + 1), atol=5e-5)


def test_nested_mixtures():
    inner = mixture((3, 5), (1, 1))
    names = samples(
        MixtureSource({"both": inner, "other": Named("other", [None] * 4)}, {"both": 1.0, "other": 1.0}), 400
    )
    assert [sum(name.startswith(part) for name in names) for part in ("part0", "part1", "other")] == [100, 100, 200]


VALUES = ["woman"] * 3 + ["man"] * 30 + ["child"] * 7


def test_balanced_source_samples_values_evenly():
    source = BalancedSource(Named("x", VALUES), "kind")
    places = training_order(source, 0)
    result = [places[i] for i in range(3 * 210)]
    for value in set(VALUES):
        own = [i for i in result if VALUES[i] == value]
        assert len(own) == 210
        members = [i for i, other in enumerate(VALUES) if other == value]
        for epoch in range(210 // len(members)):
            assert sorted(own[epoch * len(members) : (epoch + 1) * len(members)]) == members
    assert [source[i].name for i in range(len(VALUES))] == [f"x {i}" for i in range(len(VALUES))]


def test_balanced_source_with_weights():
    source = BalancedSource(Named("x", VALUES), "kind", (("man", 1), ("child", 1), ("woman", 2.0)))
    places = training_order(source, 3)
    result = [VALUES[places[i]] for i in range(400)]
    assert [result.count(value) for value in ("woman", "man", "child")] == [200, 100, 100]


def test_missing_column_is_a_value():
    source = BalancedSource(Named("x", ["a", None, "a", None, "b"], corrupt=(4,)), "kind")
    places = training_order(source, 0)
    assert sorted(places[i] for i in range(4)) == [0, 1, 2, 3]
    assert [source.columns(0), source.columns(1)] == [{"kind": "a"}, {}]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: BalancedSource(Named("x", VALUES), "gender"), r"no record of Named\('x'\) has the column 'gender'"),
        (
            lambda: BalancedSource(Named("x", [str(i) for i in range(1001)]), "kind"),
            "has 1,001 values, and at most 1,000",
        ),
        (lambda: BalancedSource(Named("x", VALUES), "kind", (("man", 1), ("woman", 1))), "'man', 'woman', the column"),
        (
            lambda: BalancedSource(Named("x", ["a"]), "kind", (("a", 1), ("a", 1))),
            "give each value of the column one weight",
        ),
        (lambda: mixture((2, 0), (1, 1)), r"parts.part1, Named\('part1'\), is empty: leave it out"),
    ],
)
def test_invalid_mixtures_raise(make, message):
    with pytest.raises(ConfigError, match=message):
        training_order(make(), 0)


def test_mixture_and_balance_from_config(tmp_path):
    write_shards(tmp_path, [4])
    parts = {
        "digits": {"source": "digits", "bits": 8, "weight": 1.0, "balance": {"column": "digit", "weights": ()}},
        "shards": {"source": "webdataset", "shards": {"train": str(tmp_path)}, "weight": 3.0},
    }
    config = load_config({"data": {"source": "mixture", "parts": parts}})
    config = from_json(to_json(config)).data  # as a stage's folder keeps it
    source = make_source(config, "train", 8)
    places = training_order(source, 0)
    result = [source.columns(places[i]) for i in range(80)]
    assert [columns["part"] for columns in result].count("digits") == 20
    digits = [columns["digit"] for columns in result if columns["part"] == "digits"]
    assert sorted(digits) == sorted([*set(digits)] * 2) and len(set(digits)) == 10


def test_part_needs_source_and_weight():
    for part, key in (({"source": "digits", "bits": 8}, "weight"), ({"weight": 1.0}, "source")):
        with pytest.raises(ConfigError, match=f"data.parts.digits.{key} is missing"):
            load_config({"data": {"source": "mixture", "parts": {"digits": part}}})


def test_buckets_with_ordered_source_raise(tmp_path):
    write_shards(tmp_path, [4])
    parts = {"a": {"source": "webdataset", "shards": {"train": str(tmp_path)}, "weight": 1.0}}
    changes = {"data.source": "mixture", "data.buckets": ((16, 32),), "data.parts": parts}
    config = config_of("folder_base.py", **changes)
    with pytest.raises(ConfigError, match=r"data.buckets \(\(16, 32\),\) go with no mixture"):
        make_buckets(config.data, "train", 16, 3)


def number(caption):
    return {"tokens": np.array(int(caption.split()[1]), np.int32)}


SOURCES = {"mixture": mixture((9, 4), (9, 4)), "balanced": BalancedSource(Named("x", ["a"] * 13), "kind")}


def stream(source, batch_size, rows=None):
    return training_batches(ImageTextDataset(source, 1), number, batch_size, seed=1, threads=2, prefetch=4, rows=rows)


def take(iterator, count):
    return np.stack([next(iterator)["tokens"] for _ in range(count)])


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_mixture_resumes_across_processes(source):
    """13 records in batches of 4 over 2 processes: epochs end within batches."""
    full = take(stream(source, 4), 13)
    both = [take(stream(source, 4, rows), 13) for rows in ([0, 1], [2, 3])]
    np.testing.assert_array_equal(np.concatenate(both, axis=1), full)
    for epoch in full.reshape(4, 13):
        assert sorted(epoch) == sorted([*range(9), *range(4)] if isinstance(source, MixtureSource) else range(13))
    unbroken = stream(source, 4)
    take(unbroken, 5)
    state = json.loads(json.dumps(unbroken.get_state()))
    resumed = stream(source, 4)
    take(resumed, 2)
    resumed.set_state(state)
    np.testing.assert_array_equal(take(resumed, 8), full[5:])


@pytest.fixture
def by_the_docs(tmp_path, monkeypatch):
    """Returns a function from the number of a recipe in docs/data.md to the config that it changes."""
    monkeypatch.chdir(tmp_path)
    for number in range(100):
        message = {"caption": "someone", "gender": "man" if number % 10 else "woman"}
        members = [("0.png", encode_image(number)), ("0.json", json.dumps(message).encode())]
        write_tar(tmp_path / "shards" / f"{number:05d}.tar", members)
    write_shards(tmp_path / "photos/train", [4, 4])
    write_shards(tmp_path / "photos/test", [2])
    monkeypatch.setenv("HOME", str(tmp_path))  # copies of Parquet files go there
    (tmp_path / "paintings").mkdir()
    rows = [{"image": encode_image(number), "text": f"picture {number}"} for number in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "paintings" / "train-00000-of-00001.parquet")
    (tmp_path / "drawings").mkdir()
    for number in range(300):
        (tmp_path / "drawings" / f"{number}.png").write_bytes(encode_image(number))
    recipes = re.findall(r"``python\n(.*?)``", (ROOT / "docs/data.md").read_text(), flags=re.DOTALL)

    def changed(*numbers):
        config = default_config(source="folder")
        config.image_size = 16
        for number in numbers:
            exec(recipes[number], {"config": config})
        config.data.transform = {"upscale": True}
        config = load_config(config)
        return {split: make_examples(config.data, split, 16, 3) for split in ("train", "validation")}

    return changed


def test_recipe_for_shards(by_the_docs):
    examples = by_the_docs(0)
    assert [len(part) for part in examples.values()] == [99, 1]
    assert examples["train"].fit(examples["train"][98].image).shape == (16, 16, 3)


def test_recipe_for_parquet_files(by_the_docs):
    examples = by_the_docs(1)
    assert sum(len(part) for part in examples.values()) == 40
    assert examples["validation"][0].captions[0].startswith("picture")


def test_recipe_for_mixtures(by_the_docs):
    examples = by_the_docs(2)
    train, validation = (len(part) for part in examples.values())
    assert train + validation == 8 + 2 + 300 and validation > 2
    source = examples["train"].source
    places = training_order(source, 0)
    assert [source.columns(places[i])["part"] for i in range(40)].count("photos") == 30


def test_recipe_for_balance(by_the_docs):
    source = by_the_docs(0, 3)["train"].source
    places = training_order(source, 0)
    assert [source.columns(places[i])["gender"] for i in range(40)].count("woman") == 20
