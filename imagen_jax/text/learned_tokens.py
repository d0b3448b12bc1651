"""Learned tokens (textual inversion, arXiv:2208.01618): words with rows of their own in a text encoder's token table.

    learned_embeds.safetensors    for each word a tensor of its name, [D] or [N, D], as diffusers has it

A word with N rows is N tokens, one after another. The encoder stays as it is, and so do captions without the word. The
header of files of this package says which encoder the rows were learned with, and has a checksum of it all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import sha256_file
from imagen_jax.io.tensor_files import FLOATS, TensorFiles, TensorSpec, write_tensors
from imagen_jax.io.text import printable
from imagen_jax.text.tokenizer import Tokenizer

FILE = "learned_embeds.safetensors"
MAX_ROWS = 64  # of a word
_MAX_WORDS = 1000
_MAX_LENGTH = 128  # characters of a word
_OURS = "imagen_jax"
_UNNAMED = "emb_params"  # what some programs call the tensor of a file whose name is the word

Words = Mapping[str, np.ndarray]
"""Word -> its rows, float32 [N, D]."""


class _Origin(BaseModel):
    """What the rows of a file were learned with: the fingerprint of the text encoder, and their checksum."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    encoder: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedFile:
    """The words in a file.

    Attributes:
        path: the file.
        words: their rows.
        digest: SHA-256 of the file.
        encoder: fingerprint of the text encoder that they were learned with; "" in a file of another program.
    """

    path: Path
    words: Words
    digest: str
    encoder: str

    def fitting(self, width: int, fingerprint: Callable[[], str]) -> Words:
        """Returns the words, checked to be of a text encoder.

        Args:
            width: D of its embeddings.
            fingerprint: returns its fingerprint; called for files of this package alone.

        Raises:
            ConfigError: they are of another one.
        """
        for word, rows in self.words.items():
            if rows.shape[1] != width:
                raise ConfigError(
                    f"{self.path}: {printable(word)!r} has rows of {rows.shape[1]} numbers, and the text encoder's "
                    f"have {width}: give one that was learned with this encoder"
                )
        if self.encoder and self.encoder != fingerprint():
            raise ConfigError(
                f"{self.path} was learned with the text encoder {self.encoder}, and the cascade has {fingerprint()}: "
                "give one that was learned with this encoder"
            )
        return self.words


def write_learned(path: Path, words: Words, encoder: str) -> None:
    """Writes words to a file.

    Args:
        path: the file, on a disk.
        words: their rows.
        encoder: fingerprint of the text encoder that they were learned with.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {word: np.ascontiguousarray(rows, np.float32) for word, rows in words.items()}
    origin = _Origin(encoder=encoder)
    origin = origin.model_copy(update={"sha256": _digest(origin, tensors)})
    specs = {word: TensorSpec("F32", rows.shape) for word, rows in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, specs, tensors.__getitem__, {"format": "pt", _OURS: origin.model_dump_json()})


def read_learned(path: Path, word: str = "") -> LearnedFile:
    """Reads the words in a file, or in the file FILE of a folder.

    Args:
        path: the file, of this package, of diffusers, or of a program that calls its only tensor `emb_params`.
        word: in place of the one in the file; needed where it names none.

    Raises:
        ConfigError: there is no such file, it is damaged, a tensor is not [D] or [N, D] of finite floats, or a word
            cannot be one.
    """
    path = path / FILE if path.is_dir() else path
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path} is not a safetensors file: pickled embeddings are not read, as unpickling can run code; save it "
            "again, safetensors.torch.save_file({WORD: ROWS}, FILE)"
        )
    if not path.is_file():
        raise ConfigError(f"{path} is not there: give a {FILE}, or the folder that has it")
    files = TensorFiles([path])
    if not files.shapes or len(files.shapes) > _MAX_WORDS:
        raise ConfigError(f"{path} has {len(files.shapes)} words, expected 1 to {_MAX_WORDS}: copy it again")
    tensors = {name: _read(files, name, path) for name in files.shapes}
    encoder = _check_origin(path, files.metadata[path.name], tensors)
    if word or _UNNAMED in tensors:
        if len(tensors) > 1:
            raise ConfigError(f"{path} has {len(tensors)} words, and one name was given: give the file without a name")
        word = word or path.stem
        tensors = {word: next(iter(tensors.values()))}
    for name in tensors:
        check_word(name, f"{path}: ")
    return LearnedFile(path, tensors, sha256_file(path), encoder)


def check_word(word: str, where: str = "") -> None:
    """Raises ConfigError if a learned token cannot be found in captions under this word."""
    if not word.strip() or word != " ".join(word.split()) or len(word) > _MAX_LENGTH or not word.isprintable():
        raise ConfigError(
            f"{where}the word {printable(word)!r} of a learned token is not 1 to {_MAX_LENGTH} printable characters, "
            "with single spaces in between at most: give another, such as 'sks star'"
        )


def _read(files: TensorFiles, name: str, path: Path) -> np.ndarray:
    """Returns the rows of a word, float32 [N, D]. Raises ConfigError for another shape or values."""
    shape = files.shapes[name]
    if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[0] > MAX_ROWS):
        raise ConfigError(
            f"{path}: {printable(name)!r} has the shape {list(shape)}, expected [D] or [N, D] with at most {MAX_ROWS} "
            "rows: give the file of a textual inversion"
        )
    if files.dtypes[name] not in FLOATS:
        raise ConfigError(f"{path}: {printable(name)!r} is not of floats: give the file of a textual inversion")
    array = files.read(name, tuple(slice(0, size) for size in shape)).astype(np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{path}: {printable(name)!r} has values that are not finite: train it again")
    return array.reshape(-1, shape[-1])


def _check_origin(path: Path, metadata: Mapping[str, str], tensors: Words) -> str:
    """Returns the encoder of a file of this package, once its checksum is right; "" for another program's."""
    if _OURS not in metadata:
        return ""
    try:
        origin = _Origin.model_validate_json(metadata[_OURS])
    except ValidationError as error:
        raise ConfigError(f"{path} is damaged: its header does not say what it is of; copy it again") from error
    if origin.sha256 != _digest(origin.model_copy(update={"sha256": ""}), tensors):
        raise ConfigError(f"{path} is damaged: its checksum is not that of its tensors; copy it again")
    return origin.encoder


def _digest(origin: _Origin, tensors: Words) -> str:
    digest = hashlib.sha256(origin.model_dump_json().encode())
    for word in sorted(tensors):
        digest.update(f"{word} {tensors[word].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[word]).tobytes())
    return digest.hexdigest()


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Returns what finds words in captions: where no letter or digit is before them, the longest first."""
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})")


def with_words(tokenizer: Tokenizer, counts: Mapping[str, int], first: int) -> Tokenizer:
    """Returns a tokenizer that knows more words, each as a number of tokens with consecutive ids.

    A word is found where no letter or digit is before it, also in its plural, the longest first; the text in between is
    tokenized by itself, as by `add_tokens` of transformers.

    Args:
        tokenizer: of the text in between.
        counts: word -> number of its tokens, in the order of their ids.
        first: the first id.

    Raises:
        ConfigError: captions are cleaned, and a word does not stay as it is.
    """
    for word in counts:
        check_word(word)
        if tokenizer.clean(word) != word:
            raise ConfigError(
                f"the word {printable(word)!r} of a learned token becomes {printable(tokenizer.clean(word))!r} where "
                "captions are cleaned (text.cleaning): give one that stays, of lower-case letters and digits"
            )
    ids, start = {}, first
    for word, count in counts.items():
        ids[word] = range(start, start + count)
        start += count
    pattern = word_pattern(counts)

    def tokenize(caption: str) -> Sequence[int] | np.ndarray:
        parts = pattern.split(caption)
        if len(parts) == 1:
            return tokenizer.ids(caption)
        found: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                found += ids[part]
            elif part:
                found += _without_end(tokenizer, part)
        return [*found, tokenizer.eos_id]

    return dataclasses.replace(tokenizer, ids=tokenize, vocab_size=max(tokenizer.vocab_size, start))


def _without_end(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of text without the end of sequence."""
    ids = [int(token) for token in tokenizer.ids(text)]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_id else ids
