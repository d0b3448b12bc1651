"""Names become paths in one place: `~` is a home folder there, and nowhere else."""

import os
import pwd
from pathlib import Path

import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path, expand_user


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def test_home_is_expanded(home):
    assert as_path("~/runs/base") == home / "runs/base"
    assert as_path("~") == as_path(Path("~")) == home
    user = pwd.getpwuid(os.getuid())
    assert as_path(f"~{user.pw_name}/x") == Path(user.pw_dir, "x")


def test_other_names_stay():
    for name in ("runs/~", "a~", "/~/x", "$HOME/x", "", "gs://bucket/~/x", "file://~/x", "owner/name", "./~/x"):
        assert expand_user(name) == name
    assert str(as_path("gs://bucket/~/x")) == "gs://bucket/~/x"


@pytest.mark.parametrize("name", ["./~", "./~/x", "./~nobody-here", ".//~root/x"])
def test_folder_named_tilde(tmp_path, name):
    path = as_path(name)
    assert path == tmp_path / name
    assert as_path(path) == as_path(str(path)) == path


@pytest.mark.parametrize("name", ["~nobody-here/x", "~nobody-here"])
def test_unknown_user(name):
    with pytest.raises(ConfigError, match="'nobody-here'"):
        as_path(name)
