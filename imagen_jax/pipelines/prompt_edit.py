"""Editing an image by a change of its prompt (prompt-to-prompt, arXiv:2208.01626): what goes beside each stage's walk.

Each image is sampled twice in one batch: by the prompt of what it shows, and after it by the new one. The first walk
is that of the image itself; the second takes over its attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.texts import as_prompts, required
from imagen_jax.stages.sampling import Pairs
from imagen_jax.stages.stage import Stage
from imagen_jax.stages.text import PromptEncoder
from imagen_jax.text.alignment import align_tokens
from imagen_jax.text.encoder import load_tokenizer
from imagen_jax.text.tokenizer import Tokenizer

_THRESHOLD = 0.3  # of the largest change of an image: what is below is not changed
_OF_EACH = ("negative_prompt", "seed")  # settings that may have a value for each image

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class PromptEdit:
    """How images are edited.

    Attributes:
        source_prompts: N texts of what they show.
        prompts: N texts of what they are to show.
        cross_steps: in [0, 1]: in which first share of the steps the attention to the text is that of the source.
        self_steps: in [0, 1]: likewise the attention among pixels.
        blend: whether all that the new text does not change stays as it is, to the bit.

    Raises:
        ConfigError: a share is not in [0, 1].
    """

    source_prompts: list[str]
    prompts: list[str]
    cross_steps: float
    self_steps: float
    blend: bool

    def __post_init__(self) -> None:
        for name in ("cross_steps", "self_steps"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ConfigError(
                    f"{name} {share} is not in [0, 1]: it is the first share of the steps in which attention is that "
                    "of the source"
                )

    @classmethod
    def of(
        cls, source_prompt: str | Sequence[str], prompt: str | Sequence[str], cross: float, self_: float, blend: bool
    ) -> PromptEdit:
        """Returns the edit of a call's arguments, with one source prompt for all prompts or for each, or vice versa.

        Raises:
            ConfigError: their numbers differ, one is not text, or a share is not in [0, 1].
        """
        sources, prompts = as_prompts(source_prompt, "source_prompt"), as_prompts(prompt, "prompt")
        count = max(len(sources), len(prompts))
        if {len(sources), len(prompts)} - {1, count}:
            raise ConfigError(
                f"source_prompt has {len(sources)} texts and prompt {len(prompts)}: give one for all, or one for each"
            )
        return cls(sources * (count // len(sources)), prompts * (count // len(prompts)), cross, self_, blend)

    @property
    def texts(self) -> list[str]:
        """The prompts of the walks, [2N]: each source's, and after it the new one."""
        return [text for pair in zip(self.source_prompts, self.prompts, strict=True) for text in pair]

    def settings(self, given: Mapping[str, Any], own_scales: Sequence[float]) -> dict[str, Any]:
        """Returns the settings of a call for its 2N walks: both walks of a pair have the same noise.

        Guidance leads from the source prompt to the new one, if no other negative prompt is given. It then raises only
        what differs, and scales are by default twice as far from 1.

        Args:
            given: settings of the call.
            own_scales: the guidance scale of each stage's config.

        Raises:
            ConfigError: embeddings are given in place of prompts.
        """
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if given.get(name) is not None:
                raise ConfigError(f"edit compares the words of prompts, and was given {name}: give prompts")
        settings: dict[str, Any] = default_settings(own_scales) | {
            name: value for name, value in given.items() if value is not None
        }
        settings["batch_size"] = 2 * given.get("batch_size", 16)
        if settings.get("negative_prompt") is None and np.any(np.asarray(settings["guidance_scale"]) != 1):
            settings["negative_prompt"] = self.source_prompts
        seed = settings.get("seed", 0)
        settings["seed"] = seed if isinstance(seed, Sequence) else [seed + index for index in range(len(self.prompts))]
        for name in _OF_EACH:
            if isinstance(settings.get(name), Sequence) and not isinstance(settings[name], str):
                settings[name] = twice(settings[name])
        if np.ndim(settings["guidance_scale"]) == 2:
            settings["guidance_scale"] = np.repeat(np.asarray(settings["guidance_scale"]), 2, axis=1)
        return settings

    def pairs(self, stage: Stage, encoder: PromptEncoder | None, images: np.ndarray) -> Pairs:
        """Returns what the walks of a stage need; `images` [2N, H, W, C] are the sources, each twice."""
        tokenizer = _tokenizer(stage, encoder)
        texts = zip(self.source_prompts, self.prompts, strict=True)
        alignment = np.stack(twice([align_tokens(tokenizer, source, prompt) for source, prompt in texts]))
        numbers = (self.cross_steps, self.self_steps, _THRESHOLD if self.blend else 0.0)
        arrays: Any = (images, alignment, *(np.full(len(images), number, np.float32) for number in numbers))
        return Pairs(*arrays)


def default_settings(own_scales: Sequence[float]) -> dict[str, Any]:
    """Returns the sampling settings of an edit unless others are given, from the guidance scale of each stage."""
    scales = [1 + 2 * (scale - 1) for scale in own_scales]
    return {"sampler": "ddim", "num_inference_steps": 16, "guidance_scale": scales}


def twice(values: Sequence[Item]) -> list[Item]:
    """Returns each of the values twice in succession."""
    return [value for value in values for _ in range(2)]


def _tokenizer(stage: Stage, encoder: PromptEncoder | None) -> Tokenizer:
    """Returns the tokenizer of a stage's text encoder, also if embeddings come from a cache."""
    tokenize = required(encoder).encoder.tokenize
    if isinstance(tokenize, Tokenizer):
        return tokenize
    text = stage.config.text
    return load_tokenizer(text.model, text.length, text.padding, text.cleaning)
