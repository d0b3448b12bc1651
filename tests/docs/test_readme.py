"""The pages: their length, their links, and the commands within sentences, whose names and flags exist.

Commands in blocks are run by test_commands.py.
"""

import importlib
import importlib.util
import re

import pytest

from imagen_jax.cli import app
from imagen_jax.cli.flags import CommandFlags
from tests.helpers.configs import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.md")])


def anchors(path):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def inline_commands(path):
    """Yields the commands within sentences that have flags, as (module, flags)."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", text):
        words = code.replace("[", "").replace("]", "").split(" > ")[0].split()
        flags = [word for word in words if word.startswith("--")]
        if words[:3] == ["python", "-m", "imagen_jax"]:
            words = ["imagen", *words[3:]]
        if words[:1] == ["imagen"] and len(words) > 1 and words[1].isidentifier() and words[1].islower():
            assert words[1] in app.COMMANDS, code
            yield f"imagen_jax.cli.{words[1]}", flags
        elif flags and words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            is_package = importlib.util.find_spec(words[2]).submodule_search_locations is not None
            yield f"{words[2]}.__main__" if is_package else words[2], flags


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_have_targets(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_inline_commands_have_known_flags(path):
    for module, arguments in inline_commands(path):
        args = CommandFlags(importlib.import_module(module))
        args.parse(arguments)
        config = getattr(args, "config", None) or ""
        assert not config.startswith("configs/") or (ROOT / config.partition(":")[0]).exists()
