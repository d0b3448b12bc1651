"""Samples the images of a set of prompts in GenEval's layout, and scores them by category.

OUT/NNNNN/metadata.jsonl      the prompt, its category, and what GenEval asks
OUT/NNNNN/samples/NNNN.png    its images
OUT/NNNNN/grid.png            a grid of them
OUT/samples.json              what made them, see `output_dir`
OUT/scores.json               scores by category
OUT/results.jsonl             an answer for each image, as GenEval's own program writes it
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError, first_line
from imagen_jax.evaluation.prompts.formats import read_rows
from imagen_jax.evaluation.prompts.prompt_set import BenchmarkPrompt, PromptSet
from imagen_jax.evaluation.prompts.questions import answer_by_shapes, check_shapes_question
from imagen_jax.evaluation.prompts.scores import (
    clip_scores,
    format_clip_scores,
    format_question_scores,
    question_scores,
)
from imagen_jax.images.grid import image_grid, is_valid_png, read_png, save_png
from imagen_jax.io.atomic import atomic_write, write_json
from imagen_jax.io.json_lines import write_json_lines
from imagen_jax.io.paths import bucket_path
from imagen_jax.parallel import multihost
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import GenEvalLayout
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.sample_to_folder import MAX_GRID, sample_to_folder
from imagen_jax.text.clip import CLIP

SCORES, RESULTS, METADATA, GRID = "scores.json", "results.jsonl", "metadata.jsonl", "grid.png"
JUDGES = ("shapes",)
_DIGITS = 5  # at least, of the names of prompts' folders


@dataclasses.dataclass(frozen=True)
class ClipJudge:
    """A CLIP that scores images, its name, and the kind of score."""

    clip: CLIP
    name: str
    kind: str = "cosine"


@dataclasses.dataclass(frozen=True)
class BenchmarkFolder:
    """A folder of images in GenEval's layout.

    Attributes:
        path: the folder.
        name: of the prompts.
        prompts: of its folders, in order.
        files: of each prompt's images, one at least.
    """

    path: Path
    name: str
    prompts: Sequence[BenchmarkPrompt]
    files: Sequence[Sequence[Path]]

    def images(self, index: int) -> list[np.ndarray]:
        """Returns the images [H, W, C] of a prompt."""
        return [read_png(path) for path in self.files[index]]


def sample_benchmark(
    pipeline: ImagenPipeline,
    prompts: PromptSet,
    request: SampleRequest,
    out: Path,
    images: int,
    overwrite: bool = False,
) -> None:
    """Samples images of each prompt into a folder; complete ones of an earlier call with the same settings are kept.

    Args:
        pipeline: the cascade; in multi-host runs all processes sample.
        prompts: of the benchmark.
        request: seed and batch size; its texts are those of `benchmark_texts`.
        out: the folder.
        images: of each prompt.
        overwrite: whether images of another run are removed.

    Raises:
        ConfigError: the folder holds images of another run.
    """
    if multihost.is_main_process() and overwrite:
        _remove_scores(out)
    result = sample_to_folder(pipeline, request, out, overwrite=overwrite, layout=GenEvalLayout(images))
    if result is None:
        return
    for folder in _prompt_folders(out)[len(prompts.prompts) :]:  # of another run with more, whose images are removed
        _remove_prompt(folder)
    for index, prompt in enumerate(prompts.prompts):
        folder = out / f"{index:05d}"
        atomic_write(folder / METADATA, json.dumps(prompt.metadata(), ensure_ascii=False).encode())
        if result.existing < result.total or not is_valid_png(folder / GRID):
            files = [folder / "samples" / f"{number:04d}.png" for number in range(min(images, MAX_GRID))]
            shown = np.stack([read_png(path) for path in files])
            save_png(image_grid(shown, [""] * len(shown), math.ceil(math.sqrt(len(shown)))), folder / GRID)


def benchmark_texts(prompts: PromptSet, images: int) -> list[str]:
    """Returns the prompt of each image, those of a prompt one after the other."""
    return [prompt.text for prompt in prompts.prompts for _ in range(images)]


def _remove_scores(out: Path) -> None:
    for name in (SCORES, RESULTS):
        (out / name).unlink(missing_ok=True)


def read_benchmark(folder: Path, name: str = "") -> BenchmarkFolder:
    """Returns a folder of images in GenEval's layout, of this program or another.

    Args:
        folder: with folders NNNNN, each with metadata.jsonl and samples.
        name: of the prompts, for results.

    Raises:
        ConfigError: it has no such folders, or one is not complete.
    """
    folders = _prompt_folders(folder)
    if not folders:
        raise ConfigError(
            f"{folder} has no images in GenEval's layout (00000/{METADATA}, 00000/samples/0000.png): sample them by "
            "--stages, or give the folder that has them"
        )
    prompts, files = [], []
    for path in folders:
        images = sorted((path / "samples").glob("*.png"))
        damaged = [image for image in images if not is_valid_png(image)]
        if not images or damaged:
            what = f"a damaged image, {damaged[0].name}" if damaged else "no images"
            raise ConfigError(f"{path}/samples has {what}: run the command that sampled them again")
        prompts.append(_read_metadata(path / METADATA))
        files.append(images)
    return BenchmarkFolder(folder, name or folder.name, prompts, files)


def _prompt_folders(folder: Path) -> list[Path]:
    """Returns the folders of the prompts, in order."""
    numbered = sorted(path for path in folder.glob("*") if path.name.isdecimal() and len(path.name) >= _DIGITS)
    return [path for path in numbered if (path / METADATA).is_file() or (path / "samples").is_dir()]


def _remove_prompt(folder: Path) -> None:
    """Removes what this program has written about a prompt whose images are removed, and nothing else."""
    for name in (METADATA, GRID):
        (folder / name).unlink(missing_ok=True)
    if bucket_path(folder) is None:
        for path in (folder / "samples", folder):
            with contextlib.suppress(OSError):  # it has something else
                path.rmdir()


def _read_metadata(path: Path) -> BenchmarkPrompt:
    """Returns the prompt of a metadata.jsonl."""
    if not path.is_file():
        raise ConfigError(f"{path.parent} has no {METADATA}, which has its prompt: copy the folder again")
    rows = read_rows(path)
    if len(rows) != 1:
        raise ConfigError(f"{path} has {len(rows)} prompts: expected one")
    return BenchmarkPrompt(rows[0].prompt, rows[0].category, rows[0].challenge, rows[0].question)


def check_judge(judge: str, prompts: Sequence[BenchmarkPrompt]) -> None:
    """Raises ConfigError unless a judge, "" for none, can answer the questions of all prompts."""
    if not judge:
        return
    if judge not in JUDGES:
        raise ConfigError(f"--judge {judge!r} is not known: give {' or '.join(JUDGES)}, or leave it out")
    without = [prompt.text for prompt in prompts if prompt.question is None]
    if without:
        raise ConfigError(
            f"{len(without)} prompts, the first {without[0]!r}, have no question for the judge {judge!r}: leave it "
            "out, and give --clip for scores"
        )
    for prompt in prompts:
        assert prompt.question is not None
        try:
            check_shapes_question(prompt.question)
        except ConfigError as error:
            raise ConfigError(f"the prompt {prompt.text!r} is not about shapes: {first_line(error)}") from error


def score_benchmark(
    folder: BenchmarkFolder, judge: str = "", clip: ClipJudge | None = None, batch_size: int = 64
) -> dict[str, Any]:
    """Scores the images of a folder, and writes `scores.json` and, with a judge, `results.jsonl` into it.

    Args:
        folder: the images.
        judge: that answers GenEval's questions: "shapes", or "" for none.
        clip: for CLIP scores; None for none.
        batch_size: images that CLIP encodes at once.

    Returns:
        What `scores.json` has: `prompts`, and `geneval` and `clip` where they are asked for.

    Raises:
        ConfigError: the judge cannot answer a question.
    """
    check_judge(judge, folder.prompts)
    counts = sorted({len(files) for files in folder.files})
    scores: dict[str, Any] = {
        "prompts": {
            "name": folder.name,
            "count": len(folder.prompts),
            "sha256": PromptSet(folder.name, folder.prompts).digest,
            "images_of_each": counts[0] if len(counts) == 1 else counts,
        }
    }
    if judge:
        scores["geneval"] = {"judge": judge, **question_scores(folder.prompts, _answer_all(folder))}
    if clip is not None:
        table = clip_scores(folder.prompts, folder.images, clip.clip, clip.kind, batch_size)
        scores["clip"] = {"model": clip.name, **table}
    write_json(folder.path / SCORES, scores)
    return scores


def _answer_all(folder: BenchmarkFolder) -> list[list[bool]]:
    """Returns whether each image is correct, and writes all answers."""
    correct, lines = [], []
    for index, prompt in enumerate(folder.prompts):
        assert prompt.question is not None
        answers = [answer_by_shapes(image, prompt.question) for image in folder.images(index)]
        correct.append([answer.correct for answer in answers])
        for path, answer in zip(folder.files[index], answers, strict=True):
            lines.append(
                {
                    "filename": f"{path.parent.parent.name}/samples/{path.name}",
                    "tag": prompt.category,
                    "prompt": prompt.text,
                    "correct": answer.correct,
                    "reason": answer.reason,
                    "metadata": json.dumps(prompt.metadata()),
                }
            )
    write_json_lines(folder.path / RESULTS, lines)
    return correct


def format_scores(scores: dict[str, Any]) -> str:
    """Returns the scores as tables."""
    tables = []
    if "geneval" in scores:
        tables.append(format_question_scores(scores["geneval"]))
    if "clip" in scores:
        tables.append(format_clip_scores(scores["clip"]))
    return "\n\n".join(tables)
