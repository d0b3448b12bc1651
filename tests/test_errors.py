import pytest

from imagen_jax.errors import ConfigError, require, unknown_name_error


def test_unknown_name_lists_choices_and_nearest():
    message = str(unknown_name_error("config.data.source", "foldr", ("shapes", "folder")))
    assert "config.data.source 'foldr'" in message
    assert "shapes, folder" in message
    assert "did you mean 'folder'" in message


def test_unknown_name_without_near_choice_or_choices():
    assert "did you mean" not in str(unknown_name_error("split", 7, ("train", "test")))
    assert "none" in str(unknown_name_error("split", "train", ()))


def test_require_returns_module():
    assert require("json.decoder", "data").JSONDecoder


def test_require_names_extra_of_missing_package():
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'imagen_jax\[data\]'"):
        require("no_such_package.module", "data")
