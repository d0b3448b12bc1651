"""Make docs/claims.md from figures: ``python -m benchmarks.claims.document --figures=runs/claims --docs=docs``.

The figures are kept beside it, ``DOCS/claims/CLAIM.json``, and read from there where ``--figures`` is not given.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import Figures
from imagen_jax import commands
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import write_json, write_whole

FIGURES = flags.DEFINE_string("figures", None, "The folder with the JSON files of all claims; DOCS/claims by default.")
DOCS = flags.DEFINE_string("docs", "docs", "The folder to write claims.md, claims/ and images/ to.")


def main() -> None:
    """Makes the document of the flags."""
    docs = commands.writable_folder(DOCS.value, "docs", "docs")
    figures = read_figures(Path(FIGURES.value) if FIGURES.value else docs / "claims")
    for folder in ("claims", "images"):
        (docs / folder).mkdir(exist_ok=True)
    for name, found in figures.items():
        write_json(docs / "claims" / f"{name}.json", found)
        CLAIMS[name].plot(found).savefig(docs / "images" / f"claims_{name}.png", dpi=90)
    write_whole(docs / "claims.md", document(figures).encode())
    print(f"{docs / 'claims.md'} tells of {', '.join(figures)}")


def read_figures(folder: Path) -> dict[str, Figures]:
    """The figures of every claim. Raises UsageError where one was not measured."""
    missing = [name for name in CLAIMS if not (folder / f"{name}.json").exists()]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} has no figures of {', '.join(missing)}: run python -m benchmarks.claims "
            f"--claim={missing[0]} --out={folder}"
        )
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CLAIMS}


def document(figures: dict[str, Figures]) -> str:
    """docs/claims.md."""
    findings = [
        f"- **{CLAIMS[name].TITLE}.** The paper: {CLAIMS[name].CLAIM}. Here: {CLAIMS[name].find(found)}"
        for name, found in figures.items()
    ]
    parts = [INTRODUCTION, "\n".join(findings)]
    for name, found in figures.items():
        command = f"python -m benchmarks.claims --claim={name} --out=runs/claims"
        parts += [
            f"## {CLAIMS[name].TITLE}",
            f"`{command}`, on {found['machine']}",
            CLAIMS[name].tell(found),
            f"![{CLAIMS[name].TITLE}](images/claims_{name}.png)",
        ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """# The paper's claims, small

What the paper says of its methods, measured on `shapes` with stages like the demo's, at 32×32 and 64×64, each trained
for a minute or two. So small, not every claim shows: below is what was found, for them and against.

After `make demo`, each command trains what it needs beside the demo's stages, scores it as `imagen_jax.evaluate` does,
and writes its figures; stopped and run again, it goes on. All of them take about 50 minutes of one core.
`python -m benchmarks.claims.document --figures=runs/claims` makes this page and its plots of what they found.

In brackets behind a rate stands its 95% interval, Wilson's: of the captions, not of training, which was done once each.
A difference is called clear where intervals do not overlap. Captions are held out: each names a combination that
training never showed. "All right" is all that a caption claims, with nothing wrong, missing, extra or malformed."""


if __name__ == "__main__":
    commands.run(main)
