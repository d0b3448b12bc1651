"""Write docs/licences.md, of what is installed: ``python -m benchmarks.licences``.

It lists every package that imagen_jax needs to run, and those that they need. Fails if one of them has no licence that
is known here to ask for nothing of those who use it beside their own code.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from imagen_jax.io.atomic import write_whole

DOCUMENT = Path("docs/licences.md")
KNOWN = re.compile(r"Apache|MIT|BSD|ISC|Zlib|Mozilla|MPL|Python Software Foundation|PSF", re.IGNORECASE)
# LGPL and AGPL too
REFUSED = re.compile(r"GPL|General Public", re.IGNORECASE)
HEADER = """# Licences

`make licences` writes this table: what imagen_jax needs to run, with all that this needs in turn, and which licence
each names in its metadata. It fails at one that is unknown to it, or of the GPL's family. Tools of tests are left out.

| package | version | licence |
|---|---|---|
"""


def packages(root: str) -> list[Distribution]:
    """The installed packages that one needs on this machine, by their names; the one itself is left out."""
    found: dict[str, Distribution] = {}
    waiting, seen = [Requirement(root)], set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                found[name] = distribution(name)
                needs = map(Requirement, found[name].requires or ())
                waiting += [one for one in needs if one.marker is None or one.marker.evaluate({"extra": extra})]
    del found[canonicalize_name(root)]
    return [found[name] for name in sorted(found)]


def licence(package: Distribution) -> str:
    """What a package's metadata name: an SPDX expression, or else classifiers, or else the first line of a text."""
    expressions, texts, kinds = (
        package.metadata.get_all(name) or [] for name in ("License-Expression", "License", "Classifier")
    )
    named = [kind.split(" :: ")[-1] for kind in kinds if kind.startswith("License ::")]
    first_lines = [text.strip().partition("\n")[0] for text in texts]
    return ", ".join(expressions or named or first_lines) or "unknown"


def is_fine(said: str) -> bool:
    """Whether a licence is a known one, and not of the GPL's family."""
    return bool(KNOWN.search(said)) and not REFUSED.search(said)


def rows(found: list[Distribution]) -> list[str]:
    """A line of the table for each package."""
    return [f"| {package.name} | {package.version} | {licence(package)} |" for package in found]


def main() -> None:
    """Writes the document, or names what is wrong."""
    found = packages("imagen_jax")
    wrong = [f"{package.name} ({licence(package)})" for package in found if not is_fine(licence(package))]
    if wrong:
        sys.exit(f"error: look at the licences of {', '.join(wrong)}")
    write_whole(DOCUMENT, (HEADER + "\n".join(rows(found)) + "\n").encode())
    print(f"{DOCUMENT}: {len(found)} packages")


if __name__ == "__main__":
    main()
