"""Captions to token ids of fixed length.

B batch, L text length. A blank caption has no token at all: it is the unconditional caption of classifier-free
guidance. Truncation keeps the end-of-sequence token.
"""

import hashlib
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

PAD_ID = 0
BYTE_EOS_ID = 1
BYTE_OFFSET = 3  # ids 0, 1, 2 are padding, end of sequence, unknown; byte b is id b + 3
BYTE_VOCAB_SIZE = 384  # 3 + 256 bytes + 125 sentinels
FIRST_SENTINEL_ID = BYTE_OFFSET + 256

# where transformers keeps a tokenizer
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spiece.model")

SPECIAL_TOKEN = re.compile(r"</s>|<pad>|<unk>|<extra_id_\d+>")


class CaptionReader(Protocol):
    """Captions to what an encoder takes of them: arrays [L, ...], a mask bool [L]. Many threads may ask at once."""

    @property
    def length(self) -> int: ...

    @property
    def no_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Array [L, ...] and mask bool [L] of a caption without words: the end of sequence alone, as for T5's ""."""
        ...

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Array [B, L, ...] and mask bool [B, L]."""
        ...

    def arrays(self, caption: str) -> dict[str, np.ndarray]:
        """What stands for a caption in a training example: ``tokens`` [L, ...] and ``mask`` bool [L]."""
        ...

    def overlong(self, captions: Sequence[str]) -> int:
        """How many of these captions do not fit into L tokens and are truncated."""
        ...


@dataclass(frozen=True)
class Tokenizer:
    """Captions to tokens int32 [L] and mask bool [L]. Holds no state, so threads may share it.

    ids: caption -> its token ids, end of sequence included, of any length
    eos_id: the id that ends a sequence
    vocab_size: every id is below it
    fingerprint: differs from that of any tokenizer with other ids
    """

    length: int
    ids: Callable[[str], Sequence[int] | np.ndarray]
    eos_id: int
    vocab_size: int
    fingerprint: str

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ConfigError(f"text length is {self.length}, expected at least 2: one token and the end of sequence")

    @property
    def no_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [L] and mask bool [L] of the end of sequence alone."""
        first = np.arange(self.length) < 1
        return np.where(first, self.eos_id, PAD_ID).astype(np.int32), first

    def one(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [L] and mask bool [L] of one caption."""
        tokens, mask = self([caption])
        return tokens[0], mask[0]

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [B, L] and mask bool [B, L]. Raises UsageError for a caption that is not a str."""
        tokens = np.full((len(captions), self.length), PAD_ID, np.int32)
        counts = np.zeros(len(captions), np.int32)
        for row, caption in enumerate(captions):
            ids = self._ids(caption)
            counts[row] = min(len(ids), self.length)
            tokens[row, : counts[row]] = ids[: self.length]
            if len(ids) > self.length:
                tokens[row, -1] = self.eos_id
        return tokens, np.arange(self.length) < counts[:, None]

    def arrays(self, caption: str) -> dict[str, np.ndarray]:
        """What stands for a caption in a training example: ``tokens`` int32 [L] and ``mask`` bool [L]."""
        tokens, mask = self.one(caption)
        return {"tokens": tokens, "mask": mask}

    def overlong(self, captions: Sequence[str]) -> int:
        """How many of these captions do not fit into L tokens and are truncated."""
        return sum(len(self._ids(caption)) > self.length for caption in captions)

    def _ids(self, caption: str) -> Sequence[int] | np.ndarray:
        if not isinstance(caption, str):
            raise ConfigError(f"caption {caption!r} is of type {type(caption).__name__}, expected str: decode it first")
        return self.ids(caption) if caption.strip() else ()


def byte_tokenizer(length: int) -> Tokenizer:
    """UTF-8 bytes, as transformers' `ByT5Tokenizer` (arXiv:2105.13626) gives them, some fifty times faster."""
    return Tokenizer(
        length=length, ids=byte_ids, eos_id=BYTE_EOS_ID, vocab_size=BYTE_VOCAB_SIZE, fingerprint="UTF-8 bytes"
    )


def byte_ids(caption: str) -> np.ndarray:
    """ByT5 token ids of a caption, end of sequence included. A lone surrogate, which UTF-8 lacks, becomes "?"."""
    data = caption.encode("utf-8", errors="replace")
    if "<" in caption and SPECIAL_TOKEN.search(caption):
        return special_byte_ids(data.decode("utf-8"))
    ids = np.empty(len(data) + 1, np.int32)
    ids[:-1] = np.frombuffer(data, np.uint8)
    ids[:-1] += BYTE_OFFSET
    ids[-1] = BYTE_EOS_ID
    return ids


def special_byte_ids(caption: str) -> np.ndarray:
    """Token ids of a caption that spells special tokens. transformers has rules of its own there, so it decides."""
    tokenizer = transformers_byte_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(caption))
    # transformers warns when the text already ends the sequence, and adds nothing: the same, without the warning
    return np.asarray(ids if ids and ids[-1] == BYTE_EOS_ID else [*ids, BYTE_EOS_ID], np.int32)


@cache
def transformers_byte_tokenizer() -> Any:
    """transformers' own, imported only when needed: it takes seconds to import."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def folder_tokenizer(folder: Path, length: int) -> Tokenizer:
    """The tokenizer whose files lie in a local folder; the byte path where they name ByT5Tokenizer.

    Raises UsageError when the folder holds no readable tokenizer.
    """
    if names_byte_tokenizer(folder / "tokenizer_config.json"):
        return byte_tokenizer(length)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers raise
        mend = "put tokenizer.json and tokenizer_config.json there"
        if (folder / "spiece.model").is_file() and find_spec("sentencepiece") is None:
            mend = "pip install sentencepiece, which reads its spiece.model"
        said = " ".join(str(error).split())
        raise ConfigError(f"no tokenizer could be read from {folder} ({said}): {mend}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {folder} has no end-of-sequence token, expected T5's: </s>")
    if tokenizer.pad_token_id not in (None, PAD_ID):
        raise ConfigError(f"the tokenizer in {folder} pads with id {tokenizer.pad_token_id}, expected T5's: {PAD_ID}")

    def ids(caption: str) -> list[int]:
        # No padding or truncation is asked of it: those are stored in the tokenizer, and threads would fight over it.
        return tokenizer(caption.encode("utf-8", errors="replace").decode("utf-8"))["input_ids"]

    return Tokenizer(
        length=length,
        ids=ids,
        eos_id=tokenizer.eos_token_id,
        vocab_size=len(tokenizer),
        fingerprint=files_fingerprint([folder / name for name in FILES]),
    )


def names_byte_tokenizer(config: Path) -> bool:
    """Whether a tokenizer_config.json names ByT5Tokenizer; what is missing or damaged names none."""
    try:
        found = read_json(config)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("tokenizer_class") == "ByT5Tokenizer"


def files_fingerprint(paths: Sequence[Path]) -> str:
    """A hash of the names and contents of those of the files that exist."""
    whole = hashlib.sha256()
    for path in paths:
        if path.is_file():
            whole.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()
