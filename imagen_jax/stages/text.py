"""The text of stages: the encoder that a config names, and prompts encoded once for all stages that share it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax.config.fields import DTYPES
from imagen_jax.config.schema import TextConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import as_path
from imagen_jax.models.t5 import LEARNED_TOKENS
from imagen_jax.parallel import multihost, runtime
from imagen_jax.parallel.axes import TEXT, TOKENS
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size, shard_host_batch
from imagen_jax.parallel.mesh import num_batch_shards
from imagen_jax.parallel.sharding import load_params, param_shardings
from imagen_jax.text.embedding_cache import EmbeddingCache, cached_encoder
from imagen_jax.text.encoder import TextCondition, TextEncoder, load_encoder
from imagen_jax.text.learned_tokens import Words, read_learned
from imagen_jax.text.tokenizer import FEATURE_AXES

logger = logging.getLogger(__name__)


def make_encoder(config: TextConfig) -> TextEncoder:
    """Returns the text encoder that a config names, with its learned tokens; its weights are not yet read.

    Raises ConfigError if there is none, or the tokens are of another one.
    """
    try:
        encoder = load_encoder(config.model, config.length, DTYPES[config.dtype], config.padding, config.cleaning)
    except ValueError as error:
        raise ConfigError(f"text: {error}") from error
    files = [read_learned(as_path(path)) for path in config.learned]
    words = [file.fitting(encoder.width, lambda: config.fingerprint or encoder.fingerprint()) for file in files]
    return functools.reduce(TextEncoder.with_learned, words, encoder)


def make_cached_encoder(config: TextConfig) -> TextEncoder:
    """Returns an encoder that looks embeddings up in a config's `text.cache`.

    With `text.fingerprint` the encoder's files are not needed; without it all of its weights are read once, to compute
    the fingerprint.

    Raises:
        ConfigError: the cache is of another encoder, length, padding or cleaning.
    """
    cache = EmbeddingCache(as_path(config.cache))
    expected_values = {name: getattr(config, name) for name in ("length", "padding", "cleaning", "fingerprint")}
    if not config.fingerprint:
        try:
            encoder = make_encoder(config)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; or, to train from {config.cache!r} alone, set text.fingerprint: `imagen embed` printed it"
            ) from error
        expected_values |= {"width": encoder.width, "fingerprint": encoder.fingerprint()}
    for name, expected in expected_values.items():
        cached = getattr(cache.plan, name)
        if cached != expected:
            raise ConfigError(
                f"text.cache {config.cache!r} has {name} {cached}, and the config's text encoder has {expected}: "
                "give a cache that was written with this config, or none"
            )
    return cached_encoder(cache, DTYPES[config.dtype])


def check_fingerprint(encoder: TextEncoder, config: TextConfig) -> None:
    """Raises ConfigError if a config's `text.fingerprint` is that of another encoder; reads all weights to check."""
    if config.fingerprint and config.fingerprint != encoder.fingerprint():
        raise ConfigError(
            f"text encoder {config.model!r} has fingerprint {encoder.fingerprint()}, and text.fingerprint is "
            f"{config.fingerprint}: set text.model to the encoder of that fingerprint, or correct it"
        )


def null_text(kind: str, encoder: TextEncoder, params: Any) -> TextCondition:
    """Returns the text of a dropped caption, in training and in guidance: embeddings [L, D] and mask [L].

    Args:
        kind: `diffusion.null_text`: "zero", zeros and an empty mask (arXiv:2205.11487, Section 2.2); or "empty", the
            encoding of the empty caption, whose only token is the end of the sequence; or "stored", an embedding beside
            the encoder, as DeepFloyd IF's own code has it.
        encoder: the text encoder.
        params: its parameters; used for "empty" alone.

    Raises:
        ConfigError: none is stored, or one of another shape.
    """
    if kind == "zero":
        return TextCondition(jnp.zeros((encoder.length, encoder.width)), jnp.zeros(encoder.length, bool))
    if kind == "stored":
        return TextCondition(jnp.asarray(encoder.null_text()), jnp.ones(encoder.length, bool))
    tokens, mask = map(jnp.asarray, encoder.tokenize.empty_caption)
    return TextCondition(encoder.encode(params, tokens[None], mask[None])[0], mask)


class PromptEncoder:
    """Encodes prompts on a mesh; the weights of the encoder are loaded at first use.

    Args:
        encoder: the text encoder, or one that looks embeddings up in a cache.
        mesh: the devices; prompts are split over all of them.
        config: checked against the encoder when its weights are loaded; None for no check.
        others: encodes batches with a prompt that is not in the cache of `encoder`; None to refuse them.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        mesh: Mesh,
        config: TextConfig | None = None,
        others: PromptEncoder | None = None,
    ) -> None:
        self.encoder, self.mesh = encoder, mesh
        self._config, self._others = config, others
        options = runtime.compiler_options(mesh)
        self._encode = jax.jit(encoder.encode, out_shardings=batch_sharding(mesh, TEXT), compiler_options=options)
        self._null_texts: dict[str, TextCondition] = {}

    @property
    def width(self) -> int:
        """Width D of the embeddings."""
        return self.encoder.width

    @functools.cached_property
    def params(self) -> Any:
        """The weights of the encoder on the mesh. Raises ConfigError as `check_fingerprint`."""
        if self._config is not None:
            check_fingerprint(self.encoder, self._config)
        return self.encoder.load(self.mesh)

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the encoder; if no config gives it, all weights are read to compute it."""
        return (self._config and self._config.fingerprint) or self.encoder.fingerprint()

    def with_learned(self, words: Words) -> PromptEncoder:
        """Returns this encoder with more words, see `TextEncoder.with_learned`; weights that are loaded are shared.

        Embeddings are no longer looked up in a cache, whose captions may have the words in another meaning.

        Raises:
            ConfigError: there is only a cache, or a word cannot be one.
        """
        if self._others is not None:
            return self._others.with_learned(words)
        other = PromptEncoder(self.encoder.with_learned(words), self.mesh, self._config)
        if words and "params" in self.__dict__:
            rows = {LEARNED_TOKENS: other.encoder.shapes[LEARNED_TOKENS]}
            other.__dict__["params"] = self.params | load_params(rows, other.encoder.read, self.mesh)
        return other

    def on(self, mesh: Mesh) -> PromptEncoder:
        """Returns this encoder on other devices; weights that are loaded are copied."""
        other = PromptEncoder(self.encoder, mesh, self._config, self._others and self._others.on(mesh))
        if "params" in self.__dict__:
            other.__dict__["params"] = jax.device_put(self.params, param_shardings(self.params, mesh))
        return other

    def __call__(self, prompts: Sequence[str]) -> TextCondition:
        """Returns embeddings [B, L, D] and mask [B, L] of B prompts on the mesh; logs how many are truncated.

        Args:
            prompts: a multiple of the mesh's batch shards.

        Raises:
            ConfigError: a prompt is not in the cache, and there are no `others`.
        """
        cache = self.encoder.tokenize
        if self._others and isinstance(cache, EmbeddingCache) and not all(prompt in cache for prompt in prompts):
            return self._others(prompts)
        tokens, mask = self.encoder.tokenize(prompts)
        # only texts that use every position may have had more tokens
        longest = [prompt for prompt, is_used in zip(prompts, mask[:, -1], strict=True) if is_used]
        truncated = self.encoder.tokenize.count_truncated(longest)
        if truncated:
            logger.warning(
                "%d of %d prompts have more tokens than text.length=%d: their ends are not read",
                truncated,
                len(prompts),
                self.encoder.length,
            )
        batch = shard_host_batch({"tokens": tokens, "mask": mask}, FEATURE_AXES, self.mesh)
        return TextCondition(self._encode(self.params, batch["tokens"], batch["mask"]), batch["mask"])

    def on_host(self, prompts: Sequence[str], batch_size: int) -> TextCondition:
        """Returns embeddings [N, L, D] and mask [N, L] of N prompts as NumPy arrays, encoded in batches."""
        size = padded_size(min(batch_size, len(prompts)), num_batch_shards(self.mesh))
        parts = []
        for start in range(0, len(prompts), size):
            batch = list(prompts[start : start + size])
            text = self(pad_batch(batch, size, ""))
            parts.append([multihost.all_gather(array)[: len(batch)] for array in text])
        embeddings, masks = zip(*parts, strict=True)
        return TextCondition(np.concatenate(embeddings), np.concatenate(masks))

    def null_text(self, kind: str) -> TextCondition:
        """Returns the text of a dropped caption, see `null_text`; the encoder is used only for "empty"."""
        if kind not in self._null_texts:
            params = self.params if kind == "empty" else {}
            self._null_texts[kind] = jax.jit(functools.partial(null_text, kind, self.encoder))(params)
        return self._null_texts[kind]


def repeat_text(text: TextCondition, size: int, mesh: Mesh) -> TextCondition:
    """Returns a text [L, D] and [L] repeated for a batch, [size, L, D] and [size, L], on a mesh."""
    return _repeat_program(size, mesh)(text)


@functools.cache
def _repeat_program(size: int, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns a program that repeats a text [L, D] for a batch, [size, L, D], on a mesh."""
    tuple_shardings: Any = TextCondition(batch_sharding(mesh, TEXT), batch_sharding(mesh, TOKENS))  # type: ignore[arg-type]
    return jax.jit(
        lambda text: jax.tree.map(lambda array: jnp.broadcast_to(array, (size, *array.shape)), text),
        out_shardings=tuple_shardings,
    )
