"""Every key that is a path is known as one, and `~` in it is a home folder wherever it is used."""

import os
import re
import shutil

import pytest

from imagen_jax.config.data_schema import DataConfig
from imagen_jax.config.fields import groups_in
from imagen_jax.config.load import load_config
from imagen_jax.config.messages import keys_of
from imagen_jax.config.paths import holds_paths, map_paths
from imagen_jax.config.schema import EvaluationConfig, PretrainTextConfig, StageConfig
from imagen_jax.datasets.builders import prepare
from imagen_jax.datasets.registry import SOURCES, make_source
from imagen_jax.errors import ConfigError
from imagen_jax.stages.text import make_cached_encoder, make_encoder
from imagen_jax.stages.workdir import open_workdir
from imagen_jax.text.encoder import SHAPES_ENCODER
from imagen_jax.training.init_from import StartingPoint
from tests.helpers.archives import encode_image, write_shards
from tests.helpers.configs import base_config, write_stage

# keys about the files of a folder, which name none of them
ABOUT_FILES = ("caption_suffix", "caption_files")
PLACE = re.compile(r"\b(folders?|files?|directory|directories)\b", re.IGNORECASE)
NOBODY = "~nobody-here/x"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with images, shards and a text encoder, while another folder is the working directory."""
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos/red.png").write_bytes(encode_image(200))
    write_shards(home / "shards", [2])
    shutil.copytree(SHAPES_ENCODER, home / "t5")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(home))
    return home


def text_keys(schema):
    """Yields the keys of a schema, of parts too, whose values are or contain texts."""
    for key, field in keys_of(schema):
        if "str" in str(field.annotation) and "ml_collections" not in str(field.annotation):
            yield key, field


@pytest.mark.parametrize("schema", [StageConfig, EvaluationConfig, PretrainTextConfig])
def test_path_keys_are_marked(schema):
    for key, field in text_keys(schema):
        if key.rpartition(".")[2] in ABOUT_FILES:
            continue
        assert holds_paths(field) or not PLACE.search(field.description), key
        assert holds_paths(field) or not re.search(r"(^|[._])(path|folder|dir|file|shards)s?$", key), key


def test_marked_keys_are_found():
    marked = {key for key, field in keys_of(StageConfig) if holds_paths(field)}
    assert {"text.model", "text.cache", "training.init_from", "data.path", "data.shards"} <= marked
    assert not marked & {"text.dtype", "data.split", "data.source", "training.trainable", "data.caption_column"}


def folder_data(path):
    return {"source": "folder", "path": path, "validation_fraction": 0.0}


def test_every_path_is_mapped():
    parts = {
        "a": {"weight": 1.0, **folder_data("~/a")},
        "b": {"weight": 1.0, "source": "webdataset", "shards": {"train": ("~/b", "c"), "validation": "~/d.tar"}},
    }
    tree = base_config().to_dict() | {"data": {"source": "mixture", "parts": parts}}
    config = load_config(tree, {"text.cache": "~/cache", "training.init_from": "~/run", "sampling.sampler": "ddpm"})
    mapped = map_paths(config, lambda path: path.replace("~", "HOME"))
    assert mapped.text.cache == "HOME/cache"
    assert mapped.training.init_from == "HOME/run"
    assert mapped.data.parts["a"].path == "HOME/a"
    assert mapped.data.parts["b"].shards == {"train": ("HOME/b", "c"), "validation": "HOME/d.tar"}
    assert map_paths(config, str) == config


def data_with(source, path):
    """Returns a `data` group whose every path key is `path`, by the schema's marks."""
    schema = next(group for group in groups_in(DataConfig) if group.model_fields["source"].default == source)
    if source == "mixture":
        return {"source": source, "parts": {"photos": {"weight": 1.0, **folder_data(path)}}}
    keys = {name: path for name, field in schema.model_fields.items() if holds_paths(field)}
    return {"source": source, **{name: {"train": path} if name == "shards" else path for name in keys}}


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("shapes", "figures", "digits")])
def test_source_of_unknown_user(source):
    config = load_config(base_config().to_dict() | {"data": data_with(source, NOBODY)})
    with pytest.raises(ConfigError, match="nobody-here"):
        make_source(config.data, "train", 8)


@pytest.mark.parametrize("source, folder", [("folder", "photos"), ("mixture", "photos"), ("webdataset", "shards")])
def test_data_in_home(home, source, folder):
    config = load_config(base_config().to_dict() | {"data": data_with(source, f"~/{folder}")})
    assert len(make_source(config.data, "train", 8)) > 0
    assert not os.listdir()


def test_prepared_data_in_home(home):
    pytest.importorskip("tensorflow_datasets")
    prepare("digits", home / "data")
    config = base_config(**{"data.source": "tfds", "data.path": "~/data/digits", "data.captions": ("label",)})
    assert len(make_source(config.data, "train", 8)) > 0


def test_text_encoder_in_home(home):
    text = base_config(**{"text.model": "~/t5"}).text
    assert make_encoder(text).width == 64


def test_unknown_user_in_text_and_init():
    with pytest.raises(ConfigError, match="nobody-here"):
        make_encoder(base_config(**{"text.model": NOBODY}).text)
    with pytest.raises(ConfigError, match="nobody-here"):
        make_cached_encoder(base_config(**{"text.cache": NOBODY}).text)
    with pytest.raises(ConfigError, match="nobody-here"):
        StartingPoint(base_config(**{"training.init_from": NOBODY}), {})


def test_config_file_in_home(home):
    (home / "mine.py").write_text("def get_config(variant=''):\n    return {'seed': len(variant)}\n")
    assert load_config("~/mine.py:four").seed == 4
    with pytest.raises(ConfigError, match="nobody-here"):
        load_config("~nobody-here/mine.py")


def test_saved_paths_stay_as_given(home, tmp_path):
    given = base_config(**{"text.model": "~/t5", "training.init_from": "~nobody-here/run"})
    workdir = write_stage(tmp_path / "run", given)
    full = given.with_changes({"text.model": str(home / "t5")})
    open_workdir(workdir, full)  # the same encoder
    open_workdir(workdir, given)
    assert '"~/t5"' in (workdir / "config.json").read_text()
    with pytest.raises(ConfigError, match="text.model"):
        open_workdir(workdir, given.with_changes({"text.model": "~/other"}))
