"""Flags that change how stages are sampled: one for each key of a config's ``sampling``, the same for every command.

A flag has one value for all stages or, separated by commas, one for each. Where there are prompts, ``--guidance`` may
have such values for each of them, separated by semicolons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags

from imagen_jax.errors import UsageError


class Kind(NamedTuple):
    """What a value is: how its text is read, by a function that raises ValueError, and its name in a sentence."""

    read: Callable[[str], object]
    name: str


def read_number(text: str) -> float:
    """A finite number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def read_range(text: str) -> tuple[float, float]:
    """Two numbers with a colon between them; the second may be inf."""
    low, high = map(float, text.split(":"))
    return low, high


def read_size(text: str) -> int | tuple[int, int]:
    """A number of pixels, or two with an × or an x between them."""
    sides = [int(side) for side in text.replace("×", "x").split("x")]
    if len(sides) > 2:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def read_switch(text: str) -> bool:
    """True or false."""
    return {"true": True, "false": False}[text.lower()]


TEXT, COUNT, NUMBER = Kind(str, "text"), Kind(int, "a whole number"), Kind(read_number, "a number")
SIZE = Kind(read_size, "a number of pixels, or HEIGHTxWIDTH")
RANGE, SWITCH = Kind(read_range, "a range such as 0.05:50"), Kind(read_switch, "true or false")

SETTINGS: dict[str, tuple[Kind, str]] = {
    "sampler": (TEXT, "ddpm, ddim, dpm_solver or heun"),
    "steps": (COUNT, "steps of the sampler"),
    "grid": (TEXT, "times of the steps: uniform, quadratic or karras"),
    "variance": (TEXT, "variance of ddpm's noise: small, large or learned"),
    "eta": (NUMBER, "noise of ddim in [0, 1]; 0 is none"),
    "churn": (NUMBER, "noise that heun adds on its way; 0 is none"),
    "churn_range": (RANGE, "noise levels sigma / alpha at which heun adds it, LOW:HIGH"),
    "churn_noise": (NUMBER, "deviation of that noise; 1 is what the levels call for"),
    "guidance": (
        NUMBER,
        "guidance weight, 1 is none; of sample also such weights for each prompt, separated by semicolons",
    ),
    "guidance_from": (NUMBER, "least noise level, in [0, 1], that is guided"),
    "guidance_to": (NUMBER, "greatest noise level, in [0, 1], that is guided"),
    "guidance_rescale": (NUMBER, "share in [0, 1] of rescaled guidance; 0 is none"),
    "guidance_oscillates": (SWITCH, "true: the weight alternates with guidance_low"),
    "guidance_low": (NUMBER, "weight of every second step of an oscillation"),
    "guidance_constant_steps": (COUNT, "steps before an oscillation begins"),
    "threshold": (TEXT, "of the image in each step: none, static or dynamic"),
    "percentile": (NUMBER, "of a dynamic threshold, in per cent, such as 99.5"),
    "aug_level": (NUMBER, "noise in [0, 1] added to a low-resolution image"),
    "tile_size": (SIZE, "side of the tiles that images are drawn in, or HEIGHTxWIDTH; 0: whole images"),
    "tile_overlap": (COUNT, "pixels that neighbouring tiles share"),
    "bits": (COUNT, "bits a channel of the pictures: 8 or 16"),
}
FLAGS = {
    name: flags.DEFINE_string(name, None, f"Sampling: {text}. One for all stages, or one for each; else the configs'.")
    for name, (_, text) in SETTINGS.items()
}


def stage_changes(stages: int, with_guidance: bool = True) -> list[dict[str, object]]:
    """What the flags change in the ``sampling`` of each stage's config.

    Args:
        stages: how many there are.
        with_guidance: False if ``prompt_weights`` has read that flag.

    Raises:
        UsageError: a flag with another number of values than 1 and ``stages``, or with one of the wrong kind.
    """
    columns = {
        name: per_stage(name, flag.value, stages)
        for name, flag in FLAGS.items()
        if flag.value is not None and (with_guidance or name != "guidance")
    }
    return [{name: values[place] for name, values in columns.items()} for place in range(stages)]


def prompt_weights(stages: int, prompts: int) -> np.ndarray | None:
    """Guidance weights float32 [stages, prompts], if ``--guidance`` has them for each prompt; None if it has not.

    Raises:
        UsageError: as ``stage_changes``, or there are weights for another number of prompts.
    """
    text = FLAGS["guidance"].value
    if text is None or ";" not in text:
        return None
    groups = text.split(";")
    if len(groups) != prompts:
        raise UsageError(
            f"--guidance has weights for {len(groups)} prompts, and there are {prompts}: "
            "give them once for all, or for each, separated by semicolons"
        )
    return np.array([per_stage("guidance", group, stages) for group in groups], np.float32).T


def per_stage(name: str, text: str, stages: int) -> list[object]:
    """The values, one a stage, of a flag's text."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, stages):
        raise UsageError(f"--{name} has {len(parts)} values for {stages} stages: give one for all, or one for each")
    kind, _ = SETTINGS[name]
    values = []
    for part in parts:
        try:
            values.append(kind.read(part))
        except (ValueError, KeyError) as error:
            raise UsageError(f"--{name} {part!r} is not {kind.name}") from error
    return values * stages if len(values) == 1 else values
