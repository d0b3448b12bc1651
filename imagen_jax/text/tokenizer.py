"""Tokenizers: captions to token ids of a fixed length.

Shapes: B batch, L text length. A blank caption has no tokens: it is the unconditional caption of classifier-free
guidance; where padding is encoded, which shows in a network without a mask, it is the end of sequence alone, as for
transformers. Truncation keeps the end-of-sequence token.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json
from imagen_jax.parallel.axes import TOKENS
from imagen_jax.text.cleaning import cleaning_fn

PADDINGS = ("zero", "encoded")

_PAD_ID = 0
_BYTE_EOS_ID = 1
_BYTE_OFFSET = 3  # ids 0, 1, 2 are padding, end of sequence, unknown; byte b is id b + 3
BYTE_VOCAB_SIZE = 384  # 3 + 256 bytes + 125 sentinels

# the files of a transformers tokenizer
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model")

_SPECIAL_TOKEN = re.compile(r"</s>|<pad>|<unk>|<extra_id_\d+>")

# the features of captions in a batch; `tokens` may be embeddings from a cache
FEATURE_AXES = {"tokens": f"{TOKENS} ...", "mask": TOKENS}


class TextInput(Protocol):
    """Converts captions to the inputs of an encoder: arrays [L, ...] and masks, bool [L]. Threads may share it."""

    @property
    def length(self) -> int:
        """Text length L."""
        ...

    @property
    def padding(self) -> str:
        """What an encoder makes of padding, one of PADDINGS."""
        ...

    @property
    def cleaning(self) -> str:
        """What is done to captions before they are tokenized, see `cleaning_fn`."""
        ...

    @property
    def empty_caption(self) -> tuple[np.ndarray, np.ndarray]:
        """(array [L, ...], mask bool [L]) of an empty caption: the end of sequence alone, as for T5's ""."""
        ...

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (array [B, L, ...], mask bool [B, L])."""
        ...

    def as_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the features of a caption in a training batch: `tokens` [L, ...] and `mask` bool [L]."""
        ...

    def count_truncated(self, captions: Sequence[str]) -> int:
        """Returns how many of the captions have more than L tokens and are truncated."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """Converts captions to tokens int32 [L] and masks bool [L]. It has no state, so threads may share it.

    Attributes:
        length: text length L, at least 2.
        ids: maps a caption to its token ids, of any length, with the end of sequence.
        eos_id: id of the end of sequence.
        vocab_size: upper bound of ids, exclusive.
        fingerprint: differs between tokenizers with different ids.
        padding: what an encoder makes of padding, one of PADDINGS; if "encoded", a blank caption has one token.
        cleaning: what is done to captions before all else, see `cleaning_fn`.

    Raises:
        ConfigError: `length` is below 2, or the cleaning needs a package that is not installed.
    """

    length: int
    ids: Callable[[str], Sequence[int] | np.ndarray]
    eos_id: int
    vocab_size: int
    fingerprint: str
    padding: str = "zero"
    cleaning: str = "none"

    def __post_init__(self) -> None:
        cleaning_fn(self.cleaning)
        if self.length < 2:
            raise ConfigError(f"text length is {self.length}, expected at least 2: one token and the end of sequence")

    def clean(self, caption: str) -> str:
        """Returns a caption as it is tokenized."""
        return cleaning_fn(self.cleaning)(caption)

    @property
    def empty_caption(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [L], mask bool [L]) of the end of sequence alone."""
        first = np.arange(self.length) < 1
        return np.where(first, self.eos_id, _PAD_ID).astype(np.int32), first

    def encode_one(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens int32 [L], mask bool [L]) of one caption. Raises ConfigError if it is not a str."""
        tokens, mask = self([caption])
        return tokens[0], mask[0]

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (tokens int32 [B, L], mask bool [B, L]). Raises ConfigError for a caption that is not a str."""
        tokens = np.full((len(captions), self.length), _PAD_ID, np.int32)
        counts = np.zeros(len(captions), np.int32)
        for row, caption in enumerate(captions):
            ids = self._ids(caption)
            counts[row] = min(len(ids), self.length)
            tokens[row, : counts[row]] = ids[: self.length]
            if len(ids) > self.length:
                tokens[row, -1] = self.eos_id
        return tokens, np.arange(self.length) < counts[:, None]

    def as_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the features of a caption in a training batch: `tokens` int32 [L] and `mask` bool [L]."""
        tokens, mask = self.encode_one(caption)
        return {"tokens": tokens, "mask": mask}

    def count_truncated(self, captions: Sequence[str]) -> int:
        """Returns how many of the captions have more than L tokens and are truncated."""
        return sum(len(self._ids(caption)) > self.length for caption in captions)

    def _ids(self, caption: str) -> Sequence[int] | np.ndarray:
        if not isinstance(caption, str):
            raise ConfigError(f"caption {caption!r} is of type {type(caption).__name__}, expected str: decode it first")
        caption = self.clean(caption)
        if caption.strip():
            return self.ids(caption)
        return (self.eos_id,) if self.padding == "encoded" else ()


def byte_tokenizer(length: int, padding: str = "zero", cleaning: str = "none") -> Tokenizer:
    """Returns a tokenizer to UTF-8 bytes: `ByT5Tokenizer` of transformers (arXiv:2105.13626), 50 times faster."""
    return Tokenizer(
        length=length,
        ids=_byte_ids,
        eos_id=_BYTE_EOS_ID,
        vocab_size=BYTE_VOCAB_SIZE,
        fingerprint="UTF-8 bytes",
        padding=padding,
        cleaning=cleaning,
    )


def _byte_ids(caption: str) -> np.ndarray:
    """Returns the ByT5 token ids of a caption with the end of sequence. Lone surrogates become "?"."""
    data = caption.encode("utf-8", errors="replace")
    if "<" in caption and _SPECIAL_TOKEN.search(caption):
        return _special_byte_ids(data.decode("utf-8"))
    ids = np.empty(len(data) + 1, np.int32)
    ids[:-1] = np.frombuffer(data, np.uint8)
    ids[:-1] += _BYTE_OFFSET
    ids[-1] = _BYTE_EOS_ID
    return ids


def _special_byte_ids(caption: str) -> np.ndarray:
    """Returns the token ids of a caption that contains special tokens, for which transformers has its own rules."""
    tokenizer = _transformers_byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(caption))
    # as transformers, which adds nothing to a text that already ends the sequence, but without its warning
    return np.asarray(ids if ids and ids[-1] == _BYTE_EOS_ID else [*ids, _BYTE_EOS_ID], np.int32)


@cache
def _transformers_byte_tokenizer() -> Any:
    from transformers import ByT5Tokenizer  # takes seconds to import

    return ByT5Tokenizer()


def folder_tokenizer(folder: Path, length: int, padding: str = "zero", cleaning: str = "none") -> Tokenizer:
    """Loads the tokenizer in a local folder; `byte_tokenizer` if its config names ByT5Tokenizer.

    Args:
        folder: with the tokenizer files of transformers.
        length: text length L.
        padding: see `Tokenizer`.
        cleaning: likewise.

    Raises:
        ConfigError: the tokenizer cannot be read, needs a package that is not installed, or is not a T5 tokenizer.
    """
    if _is_byte_tokenizer(folder / "tokenizer_config.json"):
        return byte_tokenizer(length, padding, cleaning)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch, which nothing here needs
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the readers of transformers raise various errors
        reason, fix = " ".join(str(error).split()), "put tokenizer.json and tokenizer_config.json there"
        if (folder / "spiece.model").is_file() and find_spec("sentencepiece") is None:
            fix = "pip install sentencepiece, which reads its spiece.model"
        raise ConfigError(f"no tokenizer could be read from {folder} ({reason}): {fix}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {folder} has no end-of-sequence token, expected that of T5, </s>")
    if tokenizer.pad_token_id not in (None, _PAD_ID):
        raise ConfigError(
            f"the tokenizer in {folder} has the padding id {tokenizer.pad_token_id}, expected that of T5, {_PAD_ID}"
        )

    def ids(caption: str) -> list[int]:
        # No padding or truncation: they are state of the tokenizer, which threads share.
        return tokenizer(caption.encode("utf-8", errors="replace").decode("utf-8"))["input_ids"]

    return Tokenizer(
        length=length,
        ids=ids,
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        fingerprint=_hash_files([folder / name for name in FILES]),
        padding=padding,
        cleaning=cleaning,
    )


def _is_byte_tokenizer(config: Path) -> bool:
    """Returns whether a tokenizer_config.json names ByT5Tokenizer; false if it is missing or damaged."""
    try:
        fields = read_json(config)
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("tokenizer_class") == "ByT5Tokenizer"


def _hash_files(paths: Sequence[Path]) -> str:
    """Returns a hash of the names and contents of the files that exist."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
