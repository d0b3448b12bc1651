"""Textual inversion (arXiv:2208.01618): the objective that learns a word of the frozen text encoder.

The diffusion loss is as of any run, and its gradient goes through the network and the encoder, which both stay as they
are, to the rows of the word in the token table.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config.schema import AdapterConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.text import printable
from imagen_jax.models.t5 import LEARNED_TOKENS
from imagen_jax.parallel.axes import TOKENS, VECTOR
from imagen_jax.stages.adapter import LEARNED, ROWS
from imagen_jax.stages.loss import DIFFUSION_BATCH_AXES, DiffusionBatch, Losses
from imagen_jax.stages.text import null_text
from imagen_jax.text.encoder import TextCondition, TextEncoder
from imagen_jax.training.diffusion import DiffusionObjective, noised_examples
from imagen_jax.training.objective import Batch
from imagen_jax.training.stage_objective import dropped_captions, replace_text


class TokenText(NamedTuple):
    """The text of examples before it is encoded: tokens and mask [B, L], and bool [B], which captions are dropped."""

    tokens: jax.Array
    mask: jax.Array
    drop: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class InversionObjective(DiffusionObjective):
    """The diffusion objective of a stage whose captions are encoded within the loss.

    Attributes:
        rows: what the rows of the word start as, float32 [N, D].
    """

    example_axes: ClassVar[Any] = DIFFUSION_BATCH_AXES._replace(text=TokenText(TOKENS, TOKENS, VECTOR))  # type: ignore[arg-type]

    rows: np.ndarray

    def init(self, key: jax.Array) -> Any:
        """Returns random parameters of the network, and the word's first rows."""
        return {**super().init(key), LEARNED: {ROWS: jnp.asarray(self.rows)}}

    def draw(self, networks: Any, batch: Batch, key: jax.Array, step: jax.Array) -> DiffusionBatch:
        """Returns the examples of a batch, whose text is a `TokenText`."""
        tokens, mask, rate = batch["tokens"], batch["mask"], self.stage.config.diffusion.cond_drop_prob

        def text_of(key: jax.Array) -> TokenText:
            return TokenText(tokens, mask, dropped_captions(key, batch, rate))

        return noised_examples(self.stage, batch, key, text_of)

    def loss(self, params: Any, networks: Any, examples: Any) -> Losses:
        """Returns the loss of each example, see `diffusion_loss`."""
        tokens, mask, drop = examples.text
        encoder_params = with_rows(networks, params[LEARNED][ROWS])
        text = TextCondition(self.encoder.encode(encoder_params, tokens, mask), mask)
        dropped = null_text(self.stage.config.diffusion.null_text, self.encoder, networks)
        return super().loss(params, networks, examples._replace(text=replace_text(text, dropped, drop)))


def with_rows(encoder_params: Any, rows: jax.Array) -> Any:
    """Returns parameters of a text encoder with rows [N, D] in the place of those of its last word."""
    others = encoder_params[LEARNED_TOKENS][: -len(rows)]
    return {**encoder_params, LEARNED_TOKENS: jnp.concatenate([others, rows.astype(others.dtype)])}


def first_rows(encoder: TextEncoder, adapter: AdapterConfig) -> np.ndarray:
    """Returns the rows that a word starts as, float32 [N, D]: those of another word, repeated or cut, or the mean row.

    Args:
        encoder: the text encoder; its token table is read.
        adapter: of the run.

    Raises:
        ConfigError: the encoder has the word already, the initializer has no tokens, or embeddings are from a cache.
    """
    if adapter.token in encoder.learned:
        raise ConfigError(
            f"adapter.token {printable(adapter.token)!r} is among the words of text.learned: give another word, or "
            "leave that file out"
        )
    if encoder.module is None:
        raise ConfigError("embeddings from a cache have no learned tokens: set text.cache to ''")
    table = ("token_embedding", "embedding")
    every = slice(None)
    if not adapter.initializer.strip():
        mean = np.asarray(encoder.read(table, (every, every)), np.float32).mean(axis=0)
        return np.tile(mean, (adapter.vectors, 1))
    tokens, mask = encoder.tokenize([adapter.initializer])
    ids = [int(token) for token, used in zip(tokens[0], mask[0], strict=True) if used][:-1]  # without the end
    if not ids:
        raise ConfigError(
            f"adapter.initializer {printable(adapter.initializer)!r} has no tokens: give a word that the text "
            "encoder knows"
        )
    chosen = [ids[index % len(ids)] for index in range(adapter.vectors)]
    vocabulary = encoder.module.vocab_size
    if any(token >= vocabulary for token in chosen):
        raise ConfigError(
            f"adapter.initializer {printable(adapter.initializer)!r} has a learned word: give one of the encoder's own"
        )
    rows = [np.asarray(encoder.read(table, (slice(token, token + 1), every)), np.float32) for token in chosen]
    return np.concatenate(rows)
