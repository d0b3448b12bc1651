"""Who tells the group of an image: the reader of shapes, CLIP, or a function of the user's.

A judge takes images uint8 [H, W, C] and returns for each the name of its group, or None for none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.datasets.shapes.detect import detect
from imagen_jax.datasets.shapes.scenes import BACKGROUNDS, COLORS, NEW_SHAPES, SHAPES, SIZES
from imagen_jax.errors import ConfigError, first_line
from imagen_jax.evaluation.fairness.groups import Group
from imagen_jax.images.array import alpha_composite, to_uint8
from imagen_jax.text.clip import CLIP

Judge = Callable[[Sequence[np.ndarray]], list[str | None]]

_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": (*SHAPES, *NEW_SHAPES),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}
_SCALE = 100.0  # of cosines, as in CLIP's training


def shapes_judge(groups: Sequence[Group]) -> Judge:
    """Returns a judge of shapes images: of colors, shapes or sizes of their objects, or of their backgrounds.

    An image belongs to a group if all of its objects do.

    Raises:
        ConfigError: the groups are not values of one attribute.
    """
    names = [group.name for group in groups]
    attribute = next((key for key, values in _ATTRIBUTES.items() if set(names) <= set(values)), None)
    if attribute is None:
        known = "; ".join(f"{key}: {', '.join(values)}" for key, values in _ATTRIBUTES.items())
        raise ConfigError(
            f"the groups {', '.join(names)} are not values of one attribute of shapes: choose from {known}"
        )

    def judge(images: Sequence[np.ndarray]) -> list[str | None]:
        return [_only_value(image, attribute, names) for image in images]

    return judge


def _only_value(image: np.ndarray, attribute: str, names: Sequence[str]) -> str | None:
    """Returns the value that all objects of an image have, if it is one of the names."""
    image = to_uint8(image)
    scene = detect(alpha_composite(image, 255) if image.shape[-1] == 4 else image)
    values = {scene.background} if attribute == "background" else {getattr(item, attribute) for item in scene.objects}
    value = values.pop() if len(values) == 1 else None
    return value if value in names else None


def clip_judge(groups: Sequence[Group], clip: CLIP, template: str, least: float = 0.0) -> Judge:
    """Returns a judge that compares images with texts about each group (zero-shot, arXiv:2103.00020, Section 3.1).

    CLIP has preferences of its own, so that small differences between groups are its as much as the model's.

    Args:
        groups: the groups; the vectors of a group's words are averaged.
        clip: with a text tower.
        template: of the texts, such as "a photo of a {}".
        least: the probability under which an image belongs to none.

    Raises:
        ConfigError: the template has no {}.
    """
    if "{}" not in template:
        raise ConfigError(
            f"--template {template!r} has no {{}} for the words of groups: give such as 'a photo of a {{}}'"
        )
    vectors = [
        clip.encode_text([template.replace("{}", word) for word in group.words]).mean(axis=0) for group in groups
    ]
    texts = np.stack([vector / np.linalg.norm(vector) for vector in vectors])

    def judge(images: Sequence[np.ndarray]) -> list[str | None]:
        logits = _SCALE * clip.encode_images(list(images)) @ texts.T
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        best = probabilities.argmax(axis=1)
        return [
            groups[index].name if row[index] >= least else None
            for index, row in zip(best.tolist(), probabilities, strict=True)
        ]

    return judge


def function_judge(name: str, groups: Sequence[Group]) -> Judge:
    """Returns a function of the user's as a judge.

    Args:
        name: `MODULE:FUNCTION`, or `FILE.py:FUNCTION`; it takes a list of images uint8 [H, W, C], and returns as many
            names of groups; any other value stands for none of them.
        groups: the groups.

    Raises:
        ConfigError: there is no such function; or, when it is called, it fails or returns another number of values.
    """
    function = _find_function(name)
    names = {group.name for group in groups}

    def judge(images: Sequence[np.ndarray]) -> list[str | None]:
        try:
            values = list(function([to_uint8(image) for image in images]))
        except Exception as error:
            raise ConfigError(
                f"the judge {name} failed with {type(error).__name__}: {first_line(error)}; it gets a list of images "
                "uint8 [H, W, C]"
            ) from error
        if len(values) != len(images):
            raise ConfigError(
                f"the judge {name} returned {len(values)} values for {len(images)} images: return one each"
            )
        return [value if isinstance(value, str) and value in names else None for value in values]

    return judge


def _find_function(name: str) -> Callable[..., Any]:
    """Returns the function of a name. Raises ConfigError."""
    module_name, _, function_name = name.rpartition(":")
    hint = "give shapes, clip, or MODULE:FUNCTION or FILE.py:FUNCTION"
    if not module_name or not function_name.isidentifier():
        raise ConfigError(f"--judge {name!r} is not known: {hint}")
    try:
        module = (
            _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except Exception as error:  # whatever the user's module raises
        raise ConfigError(
            f"--judge {name!r} cannot be imported ({type(error).__name__}: {first_line(error)}): {hint}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"--judge {name!r}: {module_name} has no function {function_name}: {hint}")
    return function


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
