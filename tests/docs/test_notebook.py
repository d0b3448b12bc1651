"""The notebook as a file: nothing of a run is in it, and Colab finds it. `make docs` runs it."""

import ast
import json
import re
import runpy

import pytest

from tests.helpers.configs import ROOT

PATH = "notebooks/quickstart.ipynb"
CELLS = json.loads((ROOT / PATH).read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TEXT = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
URL = re.search(r'url="https://github.com/([^"]+)"', (ROOT / "setup.py").read_text())[1]


@pytest.fixture(scope="module")
def site():
    return runpy.run_path(str(ROOT / "docs/conf.py"))


def test_outputs_are_stripped():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, cell["source"]
        assert not cell["metadata"].keys() - {"cellView"}
        assert "attachments" not in cell


@pytest.mark.parametrize("text", [TEXT, (ROOT / "README.md").read_text()], ids=["notebook", "readme"])
def test_badge_opens_the_notebook(text):
    badge = re.search(r"]\(https://colab\.research\.google\.com/github/([^)]+)\)", text)
    assert badge[1] == f"{URL}/blob/main/{PATH}"


def test_addresses_agree():
    texts = [TEXT, *CODE, *((ROOT / name).read_text() for name in ("CITATION.cff", "README.md"))]
    repositories = {name for text in texts for name in re.findall(r"github(?:\.com)?/([^/\s]+/imagen_jax)", text)}
    assert repositories == {URL}
    assert f"https://github.com/{URL}" in CODE[0] and f"https://github.com/{URL}" in texts[-2]


def test_first_cell_installs():
    install, *others = CODE
    assert 'find_spec("imagen_jax") is None' in install and "%pip install" in install
    assert not any("%pip" in cell or "!" in re.sub(r"!=|![srf]}", "", cell) for cell in others)


def test_form_fields_have_values():
    fields = [line for cell in CODE for line in cell.splitlines() if "@param" in line]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "raw": object}
    assert fields
    for line in fields:
        value, _, field = line.partition("  # @param ")
        (assignment,) = ast.parse(value.strip()).body
        assert isinstance(assignment, ast.Assign) and len(assignment.targets) == 1
        assert isinstance(ast.literal_eval(assignment.value), kinds[json.loads(field)["type"]]), line


def test_every_cell_has_a_form_title():
    assert all(cell.startswith("# @title ") for cell in CODE)


def test_site_runs_the_notebook(site):
    assert site["PAGES"]["notebook"] == PATH
    assert site["nb_execution_mode"] == "force" and site["nb_execution_raise_on_error"]
