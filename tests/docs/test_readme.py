"""README.md: its length, its links, and its commands, which name files and flags that exist."""

import importlib
import re
import shlex

import pytest

from imagen_jax.cli import app
from imagen_jax.cli.flags import CommandFlags
from tests.helpers.configs import ROOT
from tests.helpers.markdown import code_blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path):
    """Returns the `imagen` commands in a page's code blocks, as lists of words."""
    for language, code in code_blocks(path.read_text()):
        if not language:
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line)
                if words[:1] == ["imagen"] and words[1:2] != ["COMMAND"]:
                    yield words[1:]


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
def test_commands_have_known_flags(path):
    for name, *arguments in commands(path):
        assert name in app.COMMANDS
        args = CommandFlags(importlib.import_module(f"imagen_jax.cli.{name}"))
        assert not args.parse(arguments)
        config = getattr(args, "config", None) or ""
        assert not config.startswith("configs/") or (ROOT / config.partition(":")[0]).exists()
