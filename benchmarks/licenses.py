"""Write docs/licenses.md from the installed packages: `python -m benchmarks.licenses`.

Lists every package that imagen_jax needs to run, its optional data sets included, with all dependencies. Fails if a
package has a license that is not known to be permissive.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from imagen_jax.io.atomic import atomic_write

# Not in the lock: its wheels contain x265 (GPL), which its metadata do not say. Who installs the extra chooses that.
NOT_LOCKED = {"pillow-heif"}

DOCUMENT = Path("docs/licenses.md")
KNOWN = re.compile(r"Apache|OFL|MIT|BSD|ISC|Zlib|Mozilla|MPL|Python Software Foundation|PSF", re.IGNORECASE)
# matches LGPL and AGPL too
REFUSED = re.compile(r"GPL|General Public", re.IGNORECASE)
HEADER = """# Licenses

`make licenses` writes this table: all packages that imagen_jax needs to run, with their dependencies, and the license
that each names in its metadata. It fails at an unknown license and at one of the GPL family. Test tools are left out,
and so is pillow-heif of the extra `data`, which decodes HEIC images: its wheels contain libheif and libde265 (LGPL) and
x265 (GPL). It is not in `requirements.lock`; imagen_jax runs without it.

| package | version | license |
|---|---|---|
"""


def find_packages(root: str) -> list[Distribution]:
    """Returns the installed packages that `root` depends on here, transitively, by name; without `root` itself."""
    packages: dict[str, Distribution] = {}
    pending, seen = [Requirement(root)], set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in NOT_LOCKED:
            continue
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                packages[name] = distribution(name)
                needs = map(Requirement, packages[name].requires or ())
                pending += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    del packages[canonicalize_name(Requirement(root).name)]
    return [packages[name] for name in sorted(packages)]


def license_of(package: Distribution) -> str:
    """Returns the license in a package's metadata: an SPDX expression, else classifiers, else a text's first line."""
    expressions, texts, classifiers = (
        package.metadata.get_all(name) or [] for name in ("License-Expression", "License", "Classifier")
    )
    classified = [text.split(" :: ")[-1] for text in classifiers if text.startswith("License ::")]
    first_lines = [text.strip().partition("\n")[0] for text in texts]
    return ", ".join(expressions or classified or first_lines) or "unknown"


def is_permissive(text: str) -> bool:
    """Returns whether a license is a known permissive one, and not of the GPL family."""
    return bool(KNOWN.search(text)) and not REFUSED.search(text)


def table_rows(packages: list[Distribution]) -> list[str]:
    """Returns a row of the table for each package."""
    return [f"| {package.name} | {package.version} | {license_of(package)} |" for package in packages]


def main() -> None:
    """Writes the document. Exits with an error if a license is not permissive."""
    packages = find_packages("imagen_jax[data,demo,fonts,gcs,if,serve]")
    refused = [
        f"{package.name} ({license_of(package)})" for package in packages if not is_permissive(license_of(package))
    ]
    if refused:
        sys.exit(f"error: check the licenses of {', '.join(refused)}")
    atomic_write(DOCUMENT, (HEADER + "\n".join(table_rows(packages)) + "\n").encode())
    print(f"{DOCUMENT}: {len(packages)} packages")


if __name__ == "__main__":
    main()
