"""docs/licenses.md lists what is installed, and all of it is permissive."""

from importlib.metadata import Distribution

import pytest

from benchmarks import licenses
from tests.helpers.configs import ROOT


@pytest.fixture(scope="module")
def packages():
    return licenses.find_packages("imagen_jax[data,demo,fonts,gcs,if,serve]")


def test_dependencies_are_transitive(packages):
    names = {package.name.lower() for package in packages}
    # only jax needs jaxlib; pytest, ruff and mypy are for tests and tools
    assert names >= {"jax", "jaxlib", "numpy", "transformers", "tokenizers"}
    assert not names & {"imagen_jax", "pytest", "ruff", "mypy"}


def test_all_licenses_are_permissive(packages):
    assert [package.name for package in packages if not licenses.is_permissive(licenses.license_of(package))] == []


def test_document_is_current(packages):
    written = (ROOT / licenses.DOCUMENT).read_text().splitlines()
    assert [row for row in licenses.table_rows(packages) if row not in written] == []


class Package(Distribution):
    """A distribution with the given lines of metadata."""

    def __init__(self, *lines):
        self.lines = lines

    def read_text(self, filename):
        return "\n".join(["Metadata-Version: 2.4", "Name: a", "Version: 1", *self.lines])

    def locate_file(self, path):
        raise NotImplementedError


@pytest.mark.parametrize(
    "lines, text, permissive",
    [
        (["License-Expression: MIT", "License: something"], "MIT", True),
        (["Classifier: License :: OSI Approved :: BSD License", "License: Copyright"], "BSD License", True),
        (["License: Apache 2.0"], "Apache 2.0", True),
        ([], "unknown", False),
        (["License: do what you like"], "do what you like", False),
        (["License-Expression: MIT AND GPL-3.0-only"], "MIT AND GPL-3.0-only", False),
        (["License-Expression: LGPL-2.1-or-later"], "LGPL-2.1-or-later", False),
        (
            ["Classifier: License :: OSI Approved :: GNU Affero General Public License v3"],
            "GNU Affero General Public License v3",
            False,
        ),
    ],
    ids=str,
)
def test_license_from_metadata(lines, text, permissive):
    assert licenses.license_of(Package(*lines)) == text
    assert licenses.is_permissive(text) == permissive
