"""CLIP's tokenizer: byte-level pairs of lower-case text, from the files of transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.errors import ConfigError, first_line

# tokenizer.json, or vocab.json with merges.txt
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class CLIPTokenizer:
    """Converts texts to tokens. It has no state, so threads may share it.

    Attributes:
        tokenizer: of transformers.
        length: text length L, with the start and the end of text.
    """

    tokenizer: Any
    length: int

    @property
    def vocab_size(self) -> int:
        """Upper bound of tokens, exclusive."""
        return len(self.tokenizer)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns tokens int32 [B, L]: start, text, end, padding; longer texts are cut off before their end.

        Raises ConfigError for a text that is not a str.
        """
        end, padding = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        tokens = np.full((len(texts), self.length), end if padding is None else padding, np.int32)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ConfigError(f"text {text!r} is of type {type(text).__name__}, expected str: decode it first")
            # no padding or truncation: they are state of the tokenizer, which threads share
            ids = self.tokenizer(text.encode("utf-8", errors="replace").decode("utf-8"))["input_ids"]
            if len(ids) > self.length:
                ids = [*ids[: self.length - 1], end]
            tokens[row, : len(ids)] = ids
        return tokens


def load_clip_tokenizer(folder: Path, length: int) -> CLIPTokenizer:
    """Loads the tokenizer in a local folder.

    Args:
        folder: with tokenizer.json, or vocab.json and merges.txt.
        length: text length L.

    Raises:
        ConfigError: the files are missing or damaged.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch, which nothing here needs
    from transformers import CLIPTokenizer as Tokenizer

    if not (folder / "tokenizer.json").is_file() and not (folder / "merges.txt").is_file():
        raise ConfigError(f"{folder} has neither tokenizer.json nor vocab.json with merges.txt: copy one of them there")
    try:
        tokenizer = Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the readers of transformers raise various errors
        raise ConfigError(
            f"no tokenizer could be read from {folder} ({first_line(error)}): copy its files there again"
        ) from error
    return CLIPTokenizer(tokenizer, length)
