"""Write docs/claims.md from figures: `python -m benchmarks.claims.document --figures=runs/claims --docs=docs`.

The figures are copied to `DOCS/claims/CLAIM.json`, and read from there if `--figures` is not given.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from benchmarks import app
from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import Figures
from imagen_jax.cli.flags import CommandFlags, define_path
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import atomic_write, write_json


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    define_path(values, "figures", None, "The folder with the JSON files of all claims; DOCS/claims by default.")
    define_path(values, "docs", "docs", "The folder to write claims.md, claims/ and images/ to.")


def run(args: CommandFlags) -> None:
    """Writes the document and its plots."""
    docs = Path(args.docs)
    figures = read_figures(Path(args.figures) if args.figures else docs / "claims")
    for folder in ("claims", "images"):
        (docs / folder).mkdir(parents=True, exist_ok=True)
    for name, claim_figures in figures.items():
        write_json(docs / "claims" / f"{name}.json", claim_figures)
        CLAIMS[name].plot(claim_figures).savefig(docs / "images" / f"claims_{name}.png", dpi=90)
    atomic_write(docs / "claims.md", format_document(figures).encode())
    print(f"{docs / 'claims.md'} has the claims {', '.join(figures)}")


def read_figures(folder: Path) -> dict[str, Figures]:
    """Returns the figures of all claims. Raises ConfigError if a claim has not been measured."""
    missing = [name for name in CLAIMS if not (folder / f"{name}.json").exists()]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} has no figures of {', '.join(missing)}: run python -m benchmarks.claims "
            f"--claim={missing[0]} --out={folder}"
        )
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CLAIMS}


def format_document(figures: dict[str, Figures]) -> str:
    """Returns the text of docs/claims.md."""
    findings = [
        f"- **{CLAIMS[name].TITLE}.** The paper: {CLAIMS[name].CLAIM}. Here: {CLAIMS[name].summarize(claim_figures)}"
        for name, claim_figures in figures.items()
    ]
    parts = [INTRODUCTION, "\n".join(findings)]
    for name, claim_figures in figures.items():
        command = f"python -m benchmarks.claims --claim={name} --out=runs/claims"
        parts += [
            f"## {CLAIMS[name].TITLE}",
            f"`{command}`, on {claim_figures['machine']}",
            CLAIMS[name].describe(claim_figures),
            f"![{CLAIMS[name].TITLE}](images/claims_{name}.png)",
        ]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """# The paper's claims at a small scale

Claims of the paper, measured on `shapes` with stages like the demo's, at 32×32 and 64×64, each trained for a minute or
two. Not every claim can be seen at this scale: the results below support some claims and contradict others.

After `make demo`, each command trains the stages that it needs, scores them like `imagen evaluate`, and writes its
figures; run again after a break, it resumes. All of them take about 50 minutes on one core.
`python -m benchmarks.claims.document --figures=runs/claims` writes this page and its plots.

Rates are followed by their 95% Wilson interval in parentheses. It covers the choice of captions, not of the training
seed: each stage was trained once. A difference is called clear if the intervals do not overlap. Captions are held out:
each names a combination that training never showed. "Fully correct" means that an image shows everything that its
caption claims, with nothing wrong, missing, extra or malformed."""


if __name__ == "__main__":
    app.main(__name__)
