"""The Python examples of docs/python_api.md run, on tiny stages; test_commands.py runs those of other pages."""

import pytest

from tests.helpers.configs import ROOT
from tests.helpers.markdown import code_blocks

pytest_plugins = ("tests.helpers.fixtures",)


@pytest.fixture
def runs(tmp_path, monkeypatch, base_folder, sr_folder):
    """A working directory with the stages of a demo in `runs/demo`, and no configs."""
    (tmp_path / "runs/demo").mkdir(parents=True)
    for name, folder in (("base", base_folder), ("sr", sr_folder)):
        (tmp_path / "runs/demo" / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def run_examples(path):
    """Runs the Python blocks of a document in order, in one namespace."""
    blocks = code_blocks((ROOT / path).read_text(), "python")
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, f"{path}: {block.splitlines()[0]}", "exec"), namespace)
    return namespace


def test_python_api(runs):
    names = run_examples("docs/python_api.md")
    assert names["base"].shape[1:] == (8, 8, 3)
    assert names["enlarged"].shape[1:] == (16, 16, 3)
    assert (runs / "tiny/checkpoints").exists()
    assert (runs / "scores/scores.json").exists()
