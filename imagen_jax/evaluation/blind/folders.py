"""The images of a model that are compared, by prompt: in GenEval's layout, or as `imagen sample` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.evaluation.prompts.benchmark import read_benchmark
from imagen_jax.images.grid import is_valid_png
from imagen_jax.io.atomic import read_json
from imagen_jax.pipelines.output_dir import IMAGES, MANIFEST


@dataclasses.dataclass(frozen=True)
class ComparedPrompt:
    """A prompt, its category, "" for none, and its images, one at least."""

    text: str
    category: str
    files: Sequence[Path]


def read_compared(folder: Path) -> list[ComparedPrompt]:
    """Returns the prompts of a folder with their images; those with the same text are one.

    Raises:
        ConfigError: it is not a folder of images in one of the two layouts, or it is not complete.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is not a folder: give one of imagen benchmark_prompts or imagen sample")
    if (folder / IMAGES).is_dir() and (folder / MANIFEST).is_file():
        return _join([(text, "", [path]) for text, path in _flat_images(folder)])
    benchmark = read_benchmark(folder)
    return _join(
        [
            (prompt.text, prompt.category, files)
            for prompt, files in zip(benchmark.prompts, benchmark.files, strict=True)
        ]
    )


def _flat_images(folder: Path) -> list[tuple[str, Path]]:
    """Returns (prompt, file) of each image of `imagen sample`. Raises ConfigError."""
    path = folder / MANIFEST
    try:
        prompts = dict(read_json(path)["prompts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}): run imagen sample again") from error
    images = [(str(text), folder / IMAGES / name) for name, text in prompts.items()]
    missing = [file.name for _, file in images if not is_valid_png(file)]
    if missing or not images:
        raise ConfigError(f"{folder} lacks the image {(missing or ['0000.png'])[0]}: run imagen sample again")
    return images


def _join(prompts: Sequence[tuple[str, str, Sequence[Path]]]) -> list[ComparedPrompt]:
    """Returns one prompt for each text."""
    joined: dict[str, ComparedPrompt] = {}
    for text, category, files in prompts:
        before = joined.get(text)
        joined[text] = ComparedPrompt(text, category, [*before.files, *files] if before else list(files))
    return list(joined.values())
