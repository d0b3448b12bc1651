"""An embedding cache: text embeddings of captions, computed once, with random access.

    OUT/manifest.json                      description; written last, so a cache without it is incomplete
    OUT/keys                               sorted hashes of the captions, 16 bytes each
    OUT/shard-00000-of-00012.array_record  a row for each caption, in the order of the keys
    OUT/null_text.safetensors              that of the encoder, if it has one, see `null_text.py`

A row is a caption and the embeddings of its tokens, without padding, or all L if padding is encoded. ArrayRecord stores
a checksum with each row and verifies it on each read. The shards themselves are not hashed at start: a large cache has
terabytes. Their hashes in the manifest are for the command that writes them, which uses them to verify that a shard is
complete.

Shapes: B batch, L text length, D embedding width, n tokens of a caption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import read_json
from imagen_jax.io.bucket import BucketError
from imagen_jax.io.local_copy import local_file
from imagen_jax.io.paths import file_sizes
from imagen_jax.parallel import runtime
from imagen_jax.text.encoder import TextEncoder, in_memory_reader
from imagen_jax.text.null_text import FILE as NULL_TEXT
from imagen_jax.text.null_text import read_null_text
from imagen_jax.text.tokenizer import PADDINGS

MANIFEST = "manifest.json"
KEYS = "keys"
KEY_BYTES = 16
BFLOAT16 = np.dtype(jnp.bfloat16)
# (dtype of stored embeddings, bytes of a token's scale)
STORAGE_DTYPES = {"bfloat16": (BFLOAT16, 0), "int8": (np.dtype(np.int8), 4)}
_OTHER_FILES = 256  # open files of a process besides the shards
_RERUN_HINT = "run the embed command again: it keeps complete shards and rewrites the others"


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """The contents of a cache, known before anything is embedded. The names are keys in its files.

    Attributes:
        fingerprint: fingerprint of the text encoder.
        length: text length L.
        width: embedding width D.
        dtype: dtype of stored embeddings: "bfloat16", or "int8" with a scale for each token.
        captions: number of distinct captions, the empty one included; each has a row.
        given: number of captions of all examples, duplicates included.
        shard_rows: rows per shard; the last shard may have fewer.
        captions_hash: SHA-256 of the file of keys.
        padding: "zero", or "encoded" if rows have all L embeddings; see `TextEncoder`.
        cleaning: how captions were cleaned before they were tokenized; the keys are those of captions as given.
    """

    fingerprint: str
    length: int
    width: int
    dtype: str
    captions: int
    given: int
    shard_rows: int
    captions_hash: str
    # caches of earlier versions do not name these
    padding: str = "zero"
    cleaning: str = "none"

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.captions // self.shard_rows)

    def rows(self, shard: int) -> range:
        """Returns the rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.captions))

    def shard_name(self, shard: int) -> str:
        """Returns the file name of a shard."""
        return f"shard-{shard:05d}-of-{self.shards:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """Description of a complete shard. The names are keys in its files.

    Attributes:
        bytes: size of its file.
        sha256: hash of its file.
        tokens: number of tokens of all its captions.
        cut: number of captions truncated to L tokens.
        cosine_error: 1 - cosine between the encoder's output and the stored embedding, summed over tokens.
        worst_cosine_error: the largest of these errors.
    """

    bytes: int
    sha256: str
    tokens: int
    cut: int
    cosine_error: float
    worst_cosine_error: float


class Manifest(NamedTuple):
    """Description of a complete cache."""

    plan: CachePlan
    shards: list[ShardInfo]


def manifest_json(plan: CachePlan, shards: Sequence[ShardInfo]) -> bytes:
    """Returns the contents of a manifest file."""
    parts = [dataclasses.asdict(shard) for shard in shards]
    return (json.dumps({**dataclasses.asdict(plan), "shards": parts}, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a cache. Raises ConfigError if it is missing or damaged."""
    path = folder / MANIFEST
    try:
        fields = read_json(path)
        parts = fields.pop("shards")
        manifest = Manifest(parse_dataclass(CachePlan, fields), [parse_dataclass(ShardInfo, part) for part in parts])
        if (
            len(parts) != manifest.plan.shards
            or manifest.plan.dtype not in STORAGE_DTYPES
            or manifest.plan.padding not in PADDINGS
        ):
            raise ValueError("its values are inconsistent")
    except BucketError as error:
        raise ConfigError(f"the embedding cache cannot be read: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} is not a complete embedding cache, it has no {MANIFEST}: give the --out of the embed "
            "command, or run that command to its end"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and run the embed command again") from error
    return manifest


def parse_dataclass(cls: type[Any], fields: dict[str, Any]) -> Any:
    """Builds a dataclass from JSON fields. Raises TypeError or ValueError if names or types do not match."""
    parsed = cls(**fields)
    for field in dataclasses.fields(cls):
        if type(getattr(parsed, field.name)).__name__ != field.type:
            raise ValueError(f"{field.name} is {getattr(parsed, field.name)!r}, expected {field.type}")
    return parsed


def caption_key(caption: str) -> bytes:
    """Returns the hash of a caption, without trailing zeros, as elements of NumPy's bytes arrays."""
    return hashlib.blake2b(_encode(caption), digest_size=KEY_BYTES).digest().rstrip(b"\0")


def _encode(caption: str) -> bytes:
    """Encodes a caption as UTF-8 that also allows lone surrogates, so that different captions stay different."""
    return caption.encode("utf-8", errors="surrogatepass")


_HEADER = struct.Struct("<IIB")  # bytes of the caption, number of tokens, whether truncated


def pack_row(caption: str, tokens: int, cut: bool, values: np.ndarray, scales: np.ndarray) -> bytes:
    """Packs a row.

    Args:
        caption: the caption.
        tokens: its number of tokens n.
        cut: whether it was truncated.
        values: [n, D], or [L, D] if padding is encoded, in the stored dtype.
        scales: float32 of each of these, or [0] if the dtype has no scales.
    """
    text = _encode(caption)
    return _HEADER.pack(len(text), tokens, cut) + text + scales.tobytes() + values.tobytes()


class _Row(NamedTuple):
    """An unpacked row: encoded caption, number of tokens, whether truncated, embeddings bfloat16 [n or L, D]."""

    text: bytes
    tokens: int
    cut: bool
    embeddings: np.ndarray


def _unpack_row(data: bytes, plan: CachePlan) -> _Row:
    """Unpacks a row. Raises ValueError if it does not match the plan."""
    dtype, scale_bytes = STORAGE_DTYPES[plan.dtype]
    text_bytes, tokens, cut = _HEADER.unpack_from(data)
    count = plan.length if plan.padding == "encoded" else tokens
    scales_at = _HEADER.size + text_bytes
    values_at = scales_at + count * scale_bytes
    if tokens > plan.length or len(data) != values_at + count * plan.width * dtype.itemsize:
        raise ValueError(f"a row of {len(data)} bytes cannot have {tokens} tokens")
    values = np.frombuffer(data, dtype, offset=values_at).reshape(count, plan.width)
    if scale_bytes:
        scales = np.frombuffer(data, np.float32, count, offset=scales_at)
        values = (values * scales[:, None]).astype(BFLOAT16)
    return _Row(data[_HEADER.size : scales_at], tokens, bool(cut), values)


class EmbeddingCache:
    """An open cache, which maps captions to embeddings in place of a tokenizer. Threads may share it.

    It takes 16 bytes of memory per caption.

    Args:
        folder: the folder of the cache.

    Raises:
        ConfigError: the cache is incomplete or damaged, as far as can be seen without reading the shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.plan, shards = read_manifest(folder)
        self._keys = _read_keys(folder, self.plan)
        sizes = file_sizes(folder)
        for number, shard in enumerate(shards):
            path = folder / self.plan.shard_name(number)
            size = sizes.get(path.name)
            if size != shard.bytes:
                problem = "is missing" if size is None else f"has {size} bytes, expected {shard.bytes}"
                raise ConfigError(f"{path} {problem}: {_RERUN_HINT}")
        instead = ", or write it with more --shard_rows"
        runtime.raise_open_file_limit(len(shards) + _OTHER_FILES, repr(str(folder)), instead)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def length(self) -> int:
        """Text length L."""
        return self.plan.length

    @property
    def padding(self) -> str:
        """Whether rows have the embeddings of padding."""
        return self.plan.padding

    @property
    def cleaning(self) -> str:
        """How captions were cleaned before they were tokenized."""
        return self.plan.cleaning

    @property
    def empty_caption(self) -> tuple[np.ndarray, np.ndarray]:
        """(embeddings bfloat16 [L, D], mask bool [L]) of the end of sequence alone: the row of the empty caption."""
        return self._padded(self._row(""))

    @property
    def null_text(self) -> np.ndarray:
        """The null text that was stored beside the encoder, float32 [L, D]. Raises ConfigError if there was none."""
        file = self._folder / NULL_TEXT
        return read_null_text(local_file(file) if file.is_file() else file, (self.plan.length, self.plan.width))

    def __contains__(self, caption: str) -> bool:
        return not caption.strip() or self._find_row(caption) is not None

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the embeddings of captions; blank captions have no tokens, or the end of sequence, see `Tokenizer`.

        Returns:
            (embeddings bfloat16 [B, L, D], mask bool [B, L]); after the last token they are zero, or those of padding.

        Raises:
            ConfigError: a caption is not in the cache, or a row is damaged.
        """
        embeddings, masks = zip(*map(self.encode_one, captions), strict=True)
        return np.stack(embeddings), np.stack(masks)

    def encode_one(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (embeddings bfloat16 [L, D], mask bool [L]) of one caption. Raises ConfigError as `__call__`."""
        if caption.strip():
            return self._padded(self._row(caption))
        if self.padding == "encoded":
            return self.empty_caption
        return np.zeros((self.plan.length, self.plan.width), BFLOAT16), np.zeros(self.plan.length, bool)

    def as_features(self, caption: str) -> dict[str, np.ndarray]:
        """Returns the features of a caption in a training batch: embeddings `tokens` [L, D] and `mask` bool [L]."""
        embeddings, mask = self.encode_one(caption)
        return {"tokens": embeddings, "mask": mask}

    def count_truncated(self, captions: Sequence[str]) -> int:
        """Returns how many of the captions had more than L tokens and were truncated."""
        return sum(self._row(caption).cut for caption in captions if caption.strip())

    def check_captions(self, captions: Iterable[str]) -> None:
        """Raises ConfigError for the first of the captions that is not in the cache."""
        for caption in captions:
            if caption not in self:
                raise self._missing_caption_error(caption)

    def _missing_caption_error(self, caption: str) -> ConfigError:
        return ConfigError(
            f"embedding cache {str(self._folder)!r} lacks the caption {caption[:200]!r}: "
            "embed the captions of this config into a new folder"
        )

    def _find_row(self, caption: str) -> int | None:
        key = caption_key(caption)
        row = int(np.searchsorted(self._keys, key))
        return row if row < len(self._keys) and self._keys[row] == key else None

    def _row(self, caption: str) -> _Row:
        number = self._find_row(caption)
        if number is None:
            raise self._missing_caption_error(caption)
        shard, index = divmod(number, self.plan.shard_rows)
        try:
            row = _unpack_row(self._reader(shard).read([index])[0], self.plan)
            if row.text != _encode(caption):
                raise ValueError(f"row {index} has another caption")
        except (RuntimeError, ValueError, IndexError, struct.error) as error:
            path = self._folder / self.plan.shard_name(shard)
            raise ConfigError(f"{path} is damaged ({str(error).splitlines()[0]}): {_RERUN_HINT}") from error
        return row

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = _open_shard(self._folder / self.plan.shard_name(shard))
        return self._readers[shard]

    def _padded(self, row: _Row) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((self.plan.length, self.plan.width), BFLOAT16)
        padded[: len(row.embeddings)] = row.embeddings
        return padded, np.arange(self.plan.length) < row.tokens


def _open_shard(path: Path) -> Any:
    """Returns a reader of a shard's rows with random access; it reads a local copy of one in a bucket.

    Threads may share it.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    file = str(local_file(path))
    return ArrayRecordReader(file, "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15)


def _read_keys(folder: Path, plan: CachePlan) -> np.ndarray:
    """Reads the sorted keys of the captions. Raises ConfigError if they do not match the plan."""
    path = folder / KEYS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != plan.captions_hash or len(data) != plan.captions * KEY_BYTES:
        raise ConfigError(f"{path} is damaged: {_RERUN_HINT}")
    return np.frombuffer(data, f"S{KEY_BYTES}")


def cached_encoder(cache: EmbeddingCache, dtype: Any) -> TextEncoder:
    """Returns a text encoder without weights, whose tokens are the embeddings in a cache, cast to `dtype`."""
    return TextEncoder(
        shapes={},
        read=in_memory_reader({}),
        width=cache.plan.width,
        length=cache.plan.length,
        tokenize=cache,
        encode=lambda params, embeddings, mask: embeddings.astype(dtype),
        fingerprint=lambda: cache.plan.fingerprint,
        null_text=lambda: cache.null_text,
    )
