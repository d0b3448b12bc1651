"""The page on which people compare the images of two models: static files that work without a server.

    OUT/index.html               the page
    OUT/images/NNNN_left_N.png   its images, written anew: neither their names nor their files tell of a model
    KEY                          which side is which model, outside of OUT

Which model is left and the order of pairs are random by a seed, which the key has and the page does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.blind.folders import ComparedPrompt, read_compared
from imagen_jax.images.array import Size, format_size
from imagen_jax.images.grid import read_png, save_png
from imagen_jax.io.atomic import atomic_write, write_json
from imagen_jax.io.paths import remove_tree

PAGE, IMAGES = "index.html", "images"
KEY_FORMAT = "imagen_jax blind key 1"
SIDES = ("left", "right")
MODELS = ("a", "b")
QUESTIONS = {
    "fidelity": "Which side looks more real, with fewer flaws?",
    "alignment": "Which side shows better what the text says?",
}
_PAGE_ID_LETTERS = 16
_IMAGE_NAME = re.compile(r"\d+_(left|right)_\d+\.png")
_FILES = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class BlindSettings:
    """How a page is made.

    Attributes:
        seed: of sides and order.
        images: of each side of a pair, at most.
        size: (height, width) to resize all images to; None to show them as they are.
        limit: of pairs; 0 for all.
    """

    seed: int
    images: int = 4
    size: Size | None = None
    limit: int = 0


class BlindPage(NamedTuple):
    """The files that were written, and the number of pairs."""

    page: Path
    key: Path
    pairs: int


def write_page(a: Path, b: Path, out: Path, key: Path, settings: BlindSettings, overwrite: bool = False) -> BlindPage:
    """Writes a page that compares the images of two folders.

    Args:
        a: images of `imagen benchmark_prompts`, or another folder in GenEval's layout, or of `imagen sample`.
        b: those of another model, for the same prompts.
        out: the folder to write to.
        key: the file for the key, outside of `out`.
        settings: how.
        overwrite: whether a page in `out` is replaced.

    Returns:
        What was written.

    Raises:
        ConfigError: the folders have other prompts, or images of other sizes, or are the same; the key would be within
            `out`; or `out` has a page.
    """
    _check_places(a, b, out, key, overwrite)
    prompts = _match(read_compared(a), read_compared(b), (a, b))
    rng = np.random.default_rng(settings.seed)
    chosen = rng.permutation(len(prompts))[: settings.limit or None]
    # as many pairs have A on the left as B, or one more
    swapped = rng.permutation(np.arange(len(chosen)) % 2 == 0)
    pairs: list[dict[str, Any]] = []
    items: dict[str, dict[str, Any]] = {}
    for number, (index, swap) in enumerate(zip(chosen.tolist(), swapped.tolist(), strict=True)):
        models = MODELS[::-1] if swap else MODELS
        both = dict(zip(MODELS, prompts[index], strict=True))
        identifier = f"{number:04d}"
        pair: dict[str, Any] = {"id": identifier, "prompt": both["a"].text}
        images = _load_images(both, settings)
        for side, model in zip(SIDES, models, strict=True):
            names = [f"{IMAGES}/{identifier}_{side}_{i}.png" for i in range(len(images[model]))]
            for name, image in zip(names, images[model], strict=True):
                save_png(image, out / name)
            pair[side] = names
        pairs.append(pair)
        items[identifier] = {"left": models[0], "prompt": both["a"].text, "category": both["a"].category}
    _write(out, key, (a, b), settings.seed, pairs, items)
    return BlindPage(out / PAGE, key, len(pairs))


def _write(
    out: Path,
    key: Path,
    folders: tuple[Path, Path],
    seed: int,
    pairs: Sequence[Mapping[str, Any]],
    items: Mapping[str, Any],
) -> None:
    """Writes the key, and the page last."""
    content = {"seed": seed, **dict(zip(MODELS, map(str, folders), strict=True)), "items": items}
    # of the seed too, which nobody who has the page knows
    page_id = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_PAGE_ID_LETTERS]
    write_json(key, {"format": KEY_FORMAT, "page": page_id, **content})
    questions = [{"name": name, "text": text} for name, text in QUESTIONS.items()]
    data = json.dumps({"page": page_id, "questions": questions, "pairs": pairs})
    parts = {
        "STYLE": (_FILES / "page.css").read_text(encoding="utf-8"),
        "PAIRS": data.replace("<", "\\u003c"),  # nothing in a prompt ends the element
        "SCRIPT": (_FILES / "page.js").read_text(encoding="utf-8"),
    }
    page = (_FILES / "page.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        before, after = page.split(f"/*{name}*/")
        page = before + text + after
    atomic_write(out / PAGE, page.encode())


def _check_places(a: Path, b: Path, out: Path, key: Path, overwrite: bool) -> None:
    """Raises ConfigError unless the files can be where they are asked for; removes an old page."""
    if a.absolute() == b.absolute():
        raise ConfigError(f"--a and --b are both {a}: give the folders of two models")
    if out.absolute() in key.absolute().parents:
        raise ConfigError(f"--key {str(key)!r} is within --out, which raters get: give a file outside of {out}")
    existing = [path for path in (out / PAGE, key) if path.exists()]
    if existing and not overwrite:
        raise ConfigError(f"{existing[0]} exists, and votes may be about it: give another place, or --overwrite")
    images = list((out / IMAGES).glob("*"))
    others = [path for path in images if not _IMAGE_NAME.fullmatch(path.name)]
    if others or (images and not overwrite):
        raise ConfigError(f"--out {str(out)!r} has images, such as {(others or images)[0].name}: give another folder")
    if images:
        remove_tree(out / IMAGES)


def _match(
    a: Sequence[ComparedPrompt], b: Sequence[ComparedPrompt], folders: tuple[Path, Path]
) -> list[tuple[ComparedPrompt, ComparedPrompt]]:
    """Returns the prompts of both. Raises ConfigError if they are not the same ones."""
    by_text = {prompt.text: prompt for prompt in b}
    missing = [prompt.text for prompt in a if prompt.text not in by_text]
    surplus = [text for text in by_text if text not in {prompt.text for prompt in a}]
    for folder, texts in zip(folders[::-1], (missing, surplus), strict=True):
        if texts:
            raise ConfigError(
                f"{folder} has no images of {len(texts)} prompts that the other folder has, the first {texts[0]!r}: "
                "sample both models with the same prompts"
            )
    return [(prompt, by_text[prompt.text]) for prompt in a]


def _load_images(both: Mapping[str, ComparedPrompt], settings: BlindSettings) -> dict[str, list[np.ndarray]]:
    """Returns equally many images of both models, of one size."""
    count = min(settings.images, *(len(prompt.files) for prompt in both.values()))
    images = {model: [read_png(path) for path in prompt.files[:count]] for model, prompt in both.items()}
    if settings.size is not None:
        height, width = settings.size
        return {
            model: [np.asarray(_as_image(image).resize((width, height), Image.Resampling.LANCZOS)) for image in group]
            for model, group in images.items()
        }
    sizes = {model: {image.shape[:2] for image in group} for model, group in images.items()}
    if len(sizes["a"] | sizes["b"]) > 1:
        named = [", ".join(sorted(map(format_size, group))) for group in sizes.values()]
        raise ConfigError(
            f"the images of {both['a'].text!r} have {named[0]} pixels in --a and {named[1]} in --b, which would tell "
            "the models apart: give --size=HEIGHTxWIDTH to resize all"
        )
    return images


def _as_image(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
