"""Sets of prompts in categories: read from the files of their authors, or those that come with the package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.prompts import formats, hub, shapes_prompts
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.paths import as_path

_PHOTOGRAPHS = Path(__file__).with_name("photographs.tsv")
SHIPPED = ("photographs", "shapes")  # sets of the package


@dataclasses.dataclass(frozen=True)
class BenchmarkPrompt:
    """A prompt of a set.

    Attributes:
        text: the prompt.
        category: its category, GenEval's `tag`.
        challenge: a second category, such as PartiPrompts have; "" for none.
        question: what GenEval asks of its images, with `include` and `exclude`; None for nothing.
    """

    text: str
    category: str
    challenge: str = ""
    question: Mapping[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """Returns the prompt as the `metadata.jsonl` of GenEval's layout, in which `tag` is the category."""
        if self.question is not None:
            return dict(self.question)
        challenge = {"challenge": self.challenge} if self.challenge else {}
        return {"tag": self.category, "prompt": self.text, **challenge}


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Prompts, and the name of their set."""

    name: str
    prompts: Sequence[BenchmarkPrompt]

    @property
    def categories(self) -> list[str]:
        """The categories, in order of appearance."""
        return list(dict.fromkeys(prompt.category for prompt in self.prompts))

    @property
    def digest(self) -> str:
        """The SHA-256 of prompts, categories and questions."""
        lines = [json.dumps(prompt.metadata(), sort_keys=True) for prompt in self.prompts]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def select(self, categories: Sequence[str] = (), limit: int = 0) -> PromptSet:
        """Returns the prompts of some categories, and of each at most so many, evenly spread; 0 for all.

        Raises:
            ConfigError: there is no such category.
        """
        unknown = [name for name in categories if name not in self.categories]
        if unknown:
            known = ", ".join(self.categories)
            raise ConfigError(f"the prompts of {self.name} have no category {unknown[0]!r}: choose from {known}")
        kept = [prompt for prompt in self.prompts if not categories or prompt.category in categories]
        if limit:
            by_category = [[prompt for prompt in kept if prompt.category == name] for name in self.categories]
            chosen = {id(prompt) for prompts in by_category for prompt in _spread(prompts, limit)}
            kept = [prompt for prompt in kept if id(prompt) in chosen]
        return PromptSet(self.name, kept)


def _spread(prompts: Sequence[BenchmarkPrompt], limit: int) -> list[BenchmarkPrompt]:
    """Returns at most `limit` of the prompts, evenly spread."""
    count = min(limit, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


def load_prompts(name: str) -> PromptSet:
    """Returns a set of prompts.

    Args:
        name: `photographs`, 200 prompts for models of photographs; `shapes`, prompts of the shapes data set with
            GenEval's kinds of questions; or a file as its authors publish it: PartiPrompts.tsv, GenEval's
            evaluation_metadata.jsonl or DrawBench's .csv; or ORG/NAME or ORG/NAME:FILE, a data set on the Hugging Face
            Hub that has such a file.

    Raises:
        ConfigError: there is no such set or file, or it has another format.
    """
    if name == "photographs":
        return PromptSet(name, _from_rows(formats.read_rows(_PHOTOGRAPHS)))
    if name == "shapes":
        return PromptSet(name, _from_rows(shapes_prompts.make_rows()))
    path = as_path(name)
    if not path.is_file():
        if is_bucket(name) or path.is_dir() or not hub.is_hub_name(name):
            raise ConfigError(
                f"the prompts {name!r} are neither {' nor '.join(SHIPPED)} nor a file: give the path of "
                "PartiPrompts.tsv, of GenEval's evaluation_metadata.jsonl or of DrawBench's .csv, or ORG/NAME, a data "
                "set on the Hugging Face Hub"
            )
        path = hub.fetch_prompts(name)
    return PromptSet(path.name, _from_rows(formats.read_rows(path)))


def _from_rows(rows: Sequence[formats.Row]) -> list[BenchmarkPrompt]:
    return [BenchmarkPrompt(row.prompt, row.category, row.challenge, row.question) for row in rows]
