"""Data without any caption are refused where text is learned, and captions that cannot be read are named."""

import logging

import pytest

from imagen_jax.data.record import CorruptRecordError, Record
from imagen_jax.datasets.captions import SourceCaptions, no_captions_reason, warn_unreadable
from imagen_jax.datasets.folder import FolderSource
from imagen_jax.errors import ConfigError
from imagen_jax.inspection.inspect import inspect
from imagen_jax.stages.precompute_text import embed
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.loop import train
from tests.helpers.archives import encode_image, write_tar
from tests.helpers.configs import config_of, contents, one_device

ALLOW = {"data.allow_no_captions": True}


class Captions:
    """A source of captions alone that counts its reads."""

    def __init__(self, captions, count=0):
        self._captions, self._count = captions, count or len(captions)
        self.reads = 0

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return Record(b"", self.captions(index), str(index))

    def captions(self, index):
        self.reads += 1
        captions = self._captions.get(index, ()) if isinstance(self._captions, dict) else self._captions[index]
        if captions is None:
            raise CorruptRecordError(f"{index}.txt", "is not UTF-8 text")
        return captions


def test_one_caption_is_enough_and_read_first():
    source = Captions({}, count=10**6)
    source._captions = {index: ("a fox",) for index in range(10**6)}
    assert no_captions_reason(source) == ""
    assert source.reads == 1


@pytest.mark.parametrize("index", [0, 777, 9_999])
def test_a_rare_caption_is_found(index):
    assert no_captions_reason(Captions({index: ("", "a fox")}, count=10_000)) == ""


def test_few_of_very_many_are_looked_at():
    source = Captions({}, count=10**8)
    assert "100,000 looked at of 100,000,000" in no_captions_reason(source)
    assert source.reads < 110_000


@pytest.mark.parametrize("captions", [[()], [(" ", "\n")], [(), (""), ("\t",)]])
def test_blank_captions_are_none(captions):
    assert no_captions_reason(Captions(captions))


def test_unreadable_captions_are_named(caplog):
    source = Captions([None, (), None])
    assert "2 cannot, such as 0.txt: is not UTF-8 text" in no_captions_reason(source)
    captions = SourceCaptions([source])
    assert [captions[i] for i in range(3)] == [(), (), ()]
    with caplog.at_level(logging.WARNING):
        warn_unreadable(captions)
    assert "2 example(s)" in caplog.text and "2.txt" in caplog.text


def folder_config(path, **changes):
    return config_of("folder_base.py", **{"data.path": str(path), "data.transform.upscale": True, **changes})


def shards_config(path, **changes):
    shards = {"train": str(path), "validation": str(path)}
    return config_of("folder_base.py").with_changes({"data.source": "webdataset", "data.shards": shards, **changes})


@pytest.fixture(params=["unreadable files", "other files", "shards"])
def captionless(request, tmp_path):
    """A function of changes that returns the config of data without a caption."""
    folder = tmp_path / "data"
    folder.mkdir()
    suffix, text = (".caption", b"a fox") if request.param == "other files" else (".txt", b"caf\xe9")
    for i in range(6):
        (folder / f"{i}.png").write_bytes(encode_image(i, (20, 20)))
        (folder / f"{i}{suffix}").write_bytes(text)
    if request.param != "shards":
        return lambda **changes: folder_config(folder, **changes)
    members = [(f"{i}.png", encode_image(i, (20, 20))) for i in range(6)]
    path = write_tar(tmp_path / "shards" / "0.tar", [*members, ("0.json", b"{}")])
    return lambda **changes: shards_config(path, **changes)


def test_training_and_embedding_are_refused(captionless, tmp_path):
    for command in (train, embed):
        with pytest.raises(ConfigError, match="data.allow_no_captions=True|too many corrupt.*not UTF-8") as error:
            command(captionless(), tmp_path / "out")
        assert len(str(error.value).splitlines()) == 1
        assert not contents(tmp_path / "out")


def test_inspection_finds_them_unusable(captionless, tmp_path):
    report = inspect(captionless(), tmp_path / "report", records=0)
    assert report["unusable"]
    allowed = inspect(captionless(**ALLOW, **{"data.max_corrupt": 1.0}), tmp_path / "report", records=0)
    assert bool(allowed["unusable"]) == (allowed["unreadable"] == allowed["scanned"])


def test_no_captions_are_allowed_where_they_are_wanted(tmp_path):
    source = Captions([(), ()])
    config = folder_config(tmp_path)
    with pytest.raises(ConfigError, match="none of the 2 examples"):
        DiffusionTask(config, one_device()).check_sources([source])
    for changes in (ALLOW, {"diffusion.cond_drop_prob": 1.0}):
        DiffusionTask(config.with_changes(changes), one_device()).check_sources([source])
    # one bucket of several has a caption
    DiffusionTask(config, one_device()).check_sources([source, Captions([("a fox",)])])


def test_captions_under_another_suffix_are_hinted_at(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_image(0, (20, 20)))
    (tmp_path / "a.caption").write_text("a fox")
    with pytest.raises(ConfigError, match="--config.data.caption_suffix=.caption"):
        train(folder_config(tmp_path), tmp_path / "out")
    embed(folder_config(tmp_path, **{"data.caption_suffix": ".caption"}), tmp_path / "out")


@pytest.mark.parametrize(
    "name, text",
    [
        ("metadata.csv", "file_name,text\rfox.png,a fox\rcat.png,a cat\r"),
        ("metadata.jsonl", '{"file_name": "fox.png", "text": "a fox"}\r{"file_name": "cat.png", "text": "a cat"}\r'),
    ],
)
def test_metadata_with_carriage_returns_alone(tmp_path, name, text):
    for image in ("fox.png", "cat.png"):
        (tmp_path / image).write_bytes(encode_image(0))
    (tmp_path / name).write_bytes(text.encode())
    source = FolderSource(str(tmp_path), "all", 0.0, "text")
    assert [source.captions(i) for i in range(2)] == [("a cat",), ("a fox",)]
