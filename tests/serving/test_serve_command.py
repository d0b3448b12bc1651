"""The command `imagen serve`: what it refuses before it loads anything."""

import sys

import pytest

from imagen_jax.cli import serve as command
from imagen_jax.cli.flags import CommandFlags
from tests.helpers.cli import run_command

TOKEN = "a token, of no use".replace(" ", "-").replace(",", "")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--host=0.0.0.0"], "there is no token"),
        (["--host=::"], "there is no token"),
        (["--host=0.0.0.0", "--token="], "--token is empty"),
        (["--token=a b"], "--token"),
        (["--token_file=nowhere.txt"], "nowhere.txt"),
        (["--port=70000"], "port"),
        (["--cors_origin=example.com"], "--cors_origin"),
        (["--batch_sizes=1,x"], "--batch_sizes"),
        (["--num_inference_steps=0"], "num_inference_steps"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, capfd, flags, message):
    assert run_command("serve", "--stages=shapes", f"--out={tmp_path}", "--port=0", *flags) == 2
    error = capfd.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_empty_token_file_is_refused(tmp_path, capfd):
    (tmp_path / "tokens").write_text("# none yet\n\n")
    assert run_command("serve", "--stages=shapes", f"--out={tmp_path}", f"--token_file={tmp_path / 'tokens'}") == 2
    assert "has no token" in capfd.readouterr().err


def test_missing_extra_is_named(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_command("serve", "--stages=shapes", f"--out={tmp_path}") == 2
    assert "pip install 'imagen_jax[serve]'" in capfd.readouterr().err


def test_tokens_come_from_flag_file_or_environment(tmp_path, monkeypatch):
    def tokens(*flags):
        args = CommandFlags(command)
        args.parse(flags)
        return command._tokens(args)

    assert tokens() == []
    monkeypatch.setenv("IMAGEN_TOKEN", "from-the-environment")
    assert tokens() == ["from-the-environment"]
    assert tokens("--token=one,two") == ["one", "two"]
    (tmp_path / "tokens").write_text("# of Ann\nfirst\n\nsecond \n")
    assert tokens(f"--token_file={tmp_path / 'tokens'}", "--token=one") == ["first", "second"]


@pytest.mark.parametrize(
    "names, name",
    [
        (["shapes"], "shapes"),
        (["org/name@main"], "org/name@main"),
        (["runs/base", "runs/sr"], "base+sr"),
        (["/a/b/"], "/a/b/"),
    ],
)
def test_cascade_has_a_name(names, name):
    assert command._cascade_name(names) == name
