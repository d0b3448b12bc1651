from importlib.metadata import Distribution

import pytest

from benchmarks import licences
from tests.helpers.configs import ROOT


@pytest.fixture(scope="module")
def needed():
    return licences.packages("imagen_jax")


def test_what_is_needed_is_found_to_its_end_and_no_further(needed):
    names = {package.name.lower() for package in needed}
    # jaxlib is needed by jax alone; the last ones by tests and tools
    assert names >= {"jax", "jaxlib", "numpy", "transformers", "tokenizers"}
    assert not names & {"imagen_jax", "pytest", "ruff", "mypy"}


def test_every_licence_is_known_and_none_is_of_the_gpl(needed):
    assert [package.name for package in needed if not licences.is_fine(licences.licence(package))] == []


def test_the_document_has_every_package_as_it_is_installed(needed):
    written = (ROOT / licences.DOCUMENT).read_text().splitlines()
    assert [row for row in licences.rows(needed) if row not in written] == []


class Package(Distribution):
    """One with these lines of metadata."""

    def __init__(self, *lines):
        self.lines = lines

    def read_text(self, filename):
        return "\n".join(["Metadata-Version: 2.4", "Name: a", "Version: 1", *self.lines])

    def locate_file(self, path):
        raise NotImplementedError


@pytest.mark.parametrize(
    "lines, said, fine",
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
def test_what_metadata_say_is_judged(lines, said, fine):
    assert licences.licence(Package(*lines)) == said
    assert licences.is_fine(said) == fine
