"""Settings of the documentation site: `make docs` builds it into build/docs, without a network.

README.md and other files of the repository's root are pages of the site too. `PAGES` names them; their links are
rewritten when the site is built, so that the same files work on the site and in the repository.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent

project = "imagen_jax"
author = "The imagen_jax authors"
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["plans", "claims"]
html_theme = "furo"
html_title = "imagen_jax"

# Docstrings write `code` with single backticks, as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures without types: docstrings give types and shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_heading_anchors = 3

# Each build runs the notebook, which has no outputs in the repository. A cell that fails is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_timeout = 1200  # seconds for a cell: to train takes a minute, and several on a loaded machine
nb_output_stderr = "remove"  # progress bars and times, which differ from build to build

# Pages that stand elsewhere in the repository; docs/ has a stub for each.
PAGES = {
    "index": "README.md",
    "launch": "launch/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "notebook": "notebooks/quickstart.ipynb",
}


def setup(app: Sphinx) -> None:
    """Connects the functions that prepare pages and docstrings."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", escape_docstring, priority=0)  # before napoleon


def escape_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escapes what has a meaning in reStructuredText and none in Markdown: |x| and single stars."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            lines[index] = "`".join(parts)


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces a stub by its page, and links to files of the repository by links to pages."""
    path = ROOT / PAGES.get(docname, f"docs/{docname}.md")
    if docname in PAGES:
        app.env.note_dependency(str(path))
        if path.suffix == ".ipynb":  # it shows what the package does, so it is run again when that changes
            for file in (*ROOT.glob("imagen_jax/**/*.py"), *ROOT.glob("configs/*.py")):
                app.env.note_dependency(str(file))
        table_of_contents = source[0] if docname == "index" else ""
        source[0] = path.read_text(encoding="utf-8") + table_of_contents
    source[0] = re.sub(r"(!?)\[([^]]*)]\(([^)\s]+)\)", lambda link: _rewrite(link, path.parent), source[0])


def _rewrite(link: re.Match[str], folder: Path) -> str:
    """Returns a link to a page of the site; without a target if the site has no such page."""
    image, text, target = link.groups()
    file, hash_sign, anchor = target.partition("#")
    if not file or "://" in file:
        return link[0]
    path = (folder / file).resolve()
    for docname, page in PAGES.items():
        if path == ROOT / page:
            return f"[{text}]({docname}{path.suffix}{hash_sign}{anchor})"
    if path.is_relative_to(ROOT / "docs"):
        return f"{image}[{text}]({path.relative_to(ROOT / 'docs')}{hash_sign}{anchor})"
    return text
