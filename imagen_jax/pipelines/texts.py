"""The texts of a call: prompts or their embeddings, negative ones, and what each stage gets of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.batching import pad_batch, shard_host_batch
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages.text import PromptEncoder, repeat_text
from imagen_jax.text.encoder import TEXT_CONDITION_AXES, TextCondition


@dataclasses.dataclass(frozen=True)
class Texts:
    """The texts of N images.

    Attributes:
        prompts: N prompts; with `embeds` they are not read.
        negative_prompts: N texts that stand in the place of the unconditional text; None for the null text.
        embeds: for each stage the text in place of the prompts, [N, L, D].
        negative_embeds: for each stage the text in place of the negative prompts, [N, L, D].
    """

    prompts: Sequence[str]
    negative_prompts: Sequence[str] | None = None
    embeds: Sequence[TextCondition] | None = None
    negative_embeds: Sequence[TextCondition] | None = None

    @property
    def has_negative(self) -> bool:
        """Whether anything stands in the place of the null text."""
        return self.negative_prompts is not None or self.negative_embeds is not None


def make_texts(
    prompts: Any,
    negative_prompt: Any = None,
    embeds: Any = None,
    negative_embeds: Any = None,
    widths: Sequence[int] = (),
) -> Texts:
    """Returns the texts of a call's arguments, see `ImagenPipeline.__call__`.

    Args:
        prompts: one or more prompts, or None.
        negative_prompt: one or as many, or None.
        embeds: text conditions in place of prompts, or None.
        negative_embeds: likewise.
        widths: D of each stage; only embeddings need them.

    Raises:
        ConfigError: they are not of the right kind, or their numbers do not fit.
    """
    if (prompts is None) == (embeds is None):
        raise ConfigError("give either prompts or prompt_embeds")
    if negative_prompt is not None and negative_embeds is not None:
        raise ConfigError("give either negative_prompt or negative_prompt_embeds, not both")
    embeds = None if embeds is None else _as_embeds("prompt_embeds", embeds, widths)
    texts = as_prompts(prompts) if embeds is None else [""] * len(embeds[0].mask)
    negative = None if negative_prompt is None else as_prompts(negative_prompt, "negative_prompt")
    if negative is not None:
        _check_count("negative_prompt", len(negative), len(texts))
        negative = negative * (len(texts) // len(negative))
    if negative_embeds is not None:
        negative_embeds = _as_embeds("negative_prompt_embeds", negative_embeds, widths)
        given = len(negative_embeds[0].mask)
        _check_count("negative_prompt_embeds", given, len(texts))
        negative_embeds = [TextCondition(*(np.repeat(a, len(texts) // given, 0) for a in t)) for t in negative_embeds]
    return Texts(texts, negative, embeds, negative_embeds)


def as_prompts(prompts: str | Sequence[str], name: str = "prompts") -> list[str]:
    """Returns a list of prompts. Raises ConfigError if there are none, or one is not text."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, Iterable):
        raise ConfigError(f"{name} is {prompts!r}, which is not text: give a string, or a list of strings")
    prompts = list(prompts)
    if not prompts:
        raise ConfigError(f"{name} is empty: give a prompt, or a list of prompts")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise ConfigError(f"{name} has {prompt!r}, which is not text: give strings")
    return prompts


def _check_count(name: str, given: int, count: int) -> None:
    """Raises ConfigError unless there is one text for all, or one for each."""
    if given not in (1, count):
        raise ConfigError(f"{name} has {given} texts for {count} prompts: give one, or one for each")


def _as_embeds(name: str, value: Any, widths: Sequence[int]) -> list[TextCondition]:
    """Returns a text condition for each stage, NumPy arrays [N, L, D] and [N, L].

    Args:
        name: of the argument, for messages.
        value: one for all stages, or one for each.
        widths: D of each stage.

    Raises:
        ConfigError: shapes do not fit, or there is another number of them than there are stages.
    """
    given = [value] * len(widths) if isinstance(value, TextCondition) else value
    is_sequence = isinstance(given, Sequence) and all(isinstance(text, TextCondition) for text in given)
    if not is_sequence or len(given) != len(widths):
        raise ConfigError(
            f"{name} is not a TextCondition(embeddings [N, L, D], mask [N, L]), as encode_prompt returns, nor one for "
            f"each of {len(widths)} stages"
        )
    for index, (text, width) in enumerate(zip(given, widths, strict=True)):
        shape, mask = np.shape(text.embeddings), np.shape(text.mask)
        if len(shape) != 3 or not shape[0] or shape[:2] != mask or shape[2] != width or shape[0] != len(given[0].mask):
            raise ConfigError(
                f"{name} for stage {index} has embeddings {list(shape)} and mask {list(mask)}, expected [N, L, {width}]"
                " and [N, L]: give those of the stage's text encoder"
            )
    return [TextCondition(np.asarray(text.embeddings), np.asarray(text.mask, bool)) for text in given]


def encode_batch(
    texts: Texts,
    encoders: Sequence[PromptEncoder | None],
    stages: Sequence[TrainedStage],
    batch: slice,
    size: int,
    mesh: Mesh,
    isolated: bool = False,
) -> tuple[list[TextCondition], list[TextCondition]]:
    """Returns the text and the null text of a batch for each stage, [size, L, D]; each encoder encodes them once.

    Args:
        texts: of all images.
        encoders: of each stage.
        stages: of the cascade.
        batch: which of the images.
        size: of the batch, with padding.
        mesh: the devices.
        isolated: whether each text is encoded by itself, see `SampleRequest`.

    Raises:
        ConfigError: an encoder is needed, and there is none.
    """

    def encoded(prompts: Sequence[str] | None, embeds: Sequence[TextCondition] | None) -> list[TextCondition]:
        if embeds is not None:
            return [_place(text, batch, size, mesh) for text in embeds]
        assert prompts is not None
        padded = pad_batch(list(prompts[batch]), size, "")
        encode = functools.cache(lambda encoder: _encode_each(encoder, padded) if isolated else encoder(padded))
        return [encode(required(encoder)) for encoder in encoders]

    if texts.has_negative:
        return encoded(texts.prompts, texts.embeds), encoded(texts.negative_prompts, texts.negative_embeds)
    null = [_null_text(trained, encoder) for trained, encoder in zip(stages, encoders, strict=True)]
    return encoded(texts.prompts, texts.embeds), [repeat_text(text, size, mesh) for text in null]


def _encode_each(encoder: PromptEncoder, prompts: Sequence[str]) -> TextCondition:
    """Returns prompts encoded in batches of one for each device, each prompt once."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    text = encoder.on_host(list(rows), 1)
    each = TextCondition(*(array[[rows[prompt] for prompt in prompts]] for array in text))
    return _place(each, slice(None), len(prompts), encoder.mesh)


def required(encoder: PromptEncoder | None) -> PromptEncoder:
    """Returns an encoder. Raises ConfigError if there is none."""
    if encoder is None:
        raise ConfigError("this pipeline has no text encoder: give prompt_embeds, or load it with text_encoder=True")
    return encoder


def _place(text: TextCondition, batch: slice, size: int, mesh: Mesh) -> TextCondition:
    """Returns a batch of host arrays on a mesh, padded to `size`."""
    padded = {name: pad_batch(np.asarray(array[batch]), size) for name, array in text._asdict().items()}
    return TextCondition(**shard_host_batch(padded, TEXT_CONDITION_AXES._asdict(), mesh))


def _null_text(trained: TrainedStage, encoder: PromptEncoder | None) -> TextCondition:
    """Returns the null text of a stage, [L, D] and [L]; one of zeros needs no encoder."""
    config = trained.stage.config
    if encoder is None and config.diffusion.null_text == "zero":
        return TextCondition(
            np.zeros((config.text.length, trained.stage.text_width), np.float32), np.zeros(config.text.length, bool)
        )
    return required(encoder).null_text(config.diffusion.null_text)
