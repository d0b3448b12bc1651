"""An embedding cache: what a text encoder makes of captions, computed once and read at random.

    OUT/manifest.json                      what it is; written last, so that a cache without one is unfinished
    OUT/keys                               the hashes of its captions, sorted, 16 bytes each
    OUT/shard-00000-of-00012.array_record  a row for each caption, in the order of the keys

A row is a caption and the embeddings of its own tokens, no padding. ArrayRecord keeps a hash with every row and checks
it whenever the row is read. So nothing is read without being checked, and nothing is checked that is not read: a large
cache has terabytes, too many to hash at every start. The manifest's hashes of whole shards are for the command that
writes them, which takes none for finished that differs from its own.

B batch, L text length, D width of an embedding, n tokens of a caption.
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
from imagen_jax.parallel import runtime
from imagen_jax.text.encoder import TextEncoder, in_memory_reader

MANIFEST = "manifest.json"
KEYS = "keys"
KEY_BYTES = 16
BFLOAT16 = np.dtype(jnp.bfloat16)
# of what is kept, and how many bytes a token's scale takes
STORAGE_DTYPES = {"bfloat16": (BFLOAT16, 0), "int8": (np.dtype(np.int8), 4)}
OTHER_FILES = 256  # that a process may have open beside the shards
AGAIN = "run the embed command again: it keeps what is whole and writes the rest anew"


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """What a cache holds, known before anything is embedded.

    fingerprint: of the encoder
    length: L
    width: D
    dtype: of the embeddings: "bfloat16", or "int8", whose every token has a scale
    captions: distinct ones, a row each; the empty caption is one of them
    given: captions of all examples, those that are alike counted each
    shard_rows: rows of a shard; the last has what is left
    captions_hash: SHA-256 of the file of keys
    """

    fingerprint: str
    length: int
    width: int
    dtype: str
    captions: int
    given: int
    shard_rows: int
    captions_hash: str

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.captions // self.shard_rows)

    def rows(self, shard: int) -> range:
        """Those of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.captions))

    def shard_name(self, shard: int) -> str:
        """The name of a shard's file."""
        return f"shard-{shard:05d}-of-{self.shards:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What is known of a shard once it is written.

    bytes, sha256: of its file
    tokens: of all its captions
    cut: captions that did not fit into L tokens
    cosine_error: 1 - cosine of what the encoder said and what is kept, summed over its tokens
    worst_cosine_error: of a token
    """

    bytes: int
    sha256: str
    tokens: int
    cut: int
    cosine_error: float
    worst_cosine_error: float


class Manifest(NamedTuple):
    """What a whole cache is."""

    plan: CachePlan
    shards: list[ShardInfo]


def manifest_json(plan: CachePlan, shards: Sequence[ShardInfo]) -> bytes:
    """A manifest as its file has it."""
    parts = [dataclasses.asdict(shard) for shard in shards]
    return (json.dumps({**dataclasses.asdict(plan), "shards": parts}, indent=2) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache. Raises UsageError if there is none, or if it is not as it was written."""
    path = folder / MANIFEST
    try:
        found = read_json(path)
        parts = found.pop("shards")
        manifest = Manifest(parse_dataclass(CachePlan, found), [parse_dataclass(ShardInfo, part) for part in parts])
        if len(parts) != manifest.plan.shards or manifest.plan.dtype not in STORAGE_DTYPES:
            raise ValueError("its figures do not fit each other")
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} is no whole embedding cache, it has no {MANIFEST}: give the --out of the embed command, "
            "or run that again to its end"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and run the embed command again") from error
    return manifest


def parse_dataclass(kind: type[Any], fields: dict[str, Any]) -> Any:
    """A dataclass of JSON's fields. Raises TypeError or ValueError unless they are its own, of its own types."""
    made = kind(**fields)
    for field in dataclasses.fields(kind):
        if type(getattr(made, field.name)).__name__ != field.type:
            raise ValueError(f"{field.name} is {getattr(made, field.name)!r}, expected {field.type}")
    return made


def caption_key(caption: str) -> bytes:
    """The hash of a caption, as NumPy has it in an array of KEY_BYTES bytes each: without zeros at its end."""
    return hashlib.blake2b(encoded(caption), digest_size=KEY_BYTES).digest().rstrip(b"\0")


def encoded(caption: str) -> bytes:
    """A caption as it is kept: UTF-8, and a lone surrogate as UTF-8 would have it, so that no two are the same."""
    return caption.encode("utf-8", errors="surrogatepass")


HEADER = struct.Struct("<IIB")  # bytes of the caption, its tokens, whether it was cut


def pack_row(caption: str, cut: bool, values: np.ndarray, scales: np.ndarray) -> bytes:
    """A row. values: [n, D], scales: float32 [n] or [0] as DTYPES says."""
    text = encoded(caption)
    return HEADER.pack(len(text), len(values), cut) + text + scales.tobytes() + values.tobytes()


class Row(NamedTuple):
    """A row: what was embedded, whether it was cut, embeddings bfloat16 [n, D]."""

    text: bytes
    cut: bool
    embeddings: np.ndarray


def _unpack_row(data: bytes, plan: CachePlan) -> Row:
    """The row that was packed. Raises ValueError if it cannot be one of the plan's."""
    dtype, scale_bytes = STORAGE_DTYPES[plan.dtype]
    text_bytes, count, cut = HEADER.unpack_from(data)
    scales_at = HEADER.size + text_bytes
    values_at = scales_at + count * scale_bytes
    if count > plan.length or len(data) != values_at + count * plan.width * dtype.itemsize:
        raise ValueError(f"a row of {len(data)} bytes cannot have {count} tokens")
    values = np.frombuffer(data, dtype, offset=values_at).reshape(count, plan.width)
    if scale_bytes:
        scales = np.frombuffer(data, np.float32, count, offset=scales_at)
        values = (values * scales[:, None]).astype(BFLOAT16)
    return Row(data[HEADER.size : scales_at], bool(cut), values)


class EmbeddingCache:
    """A cache that is open: captions to embeddings, in the place of a tokenizer. Threads may share it.

    Memory: 16 bytes for each of its captions.
    Raises UsageError when it is not whole, as far as that shows without reading the shards.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.plan, shards = read_manifest(folder)
        self._keys = read_keys(folder, self.plan)
        for place, shard in enumerate(shards):
            path = folder / self.plan.shard_name(place)
            found = path.stat().st_size if path.is_file() else None
            if found != shard.bytes:
                said = "is missing" if found is None else f"has {found} bytes, not {shard.bytes}"
                raise ConfigError(f"{path} {said}: {AGAIN}")
        instead = ", or write it with more --shard_rows"
        runtime.raise_open_file_limit(len(shards) + OTHER_FILES, repr(str(folder)), instead)
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def length(self) -> int:
        """L."""
        return self.plan.length

    @property
    def empty_caption(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings bfloat16 [L, D] and mask bool [L] of the end of sequence alone: the row of the empty caption."""
        return self._padded(self._row("").embeddings)

    def __contains__(self, caption: str) -> bool:
        return not caption.strip() or self._place(caption) is not None

    def __call__(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings bfloat16 [B, L, D], zero behind the last token, and mask bool [B, L]; of blank ones no token.

        Raises UsageError for a caption that it does not have, and for a row that is damaged.
        """
        embeddings, masks = zip(*map(self.encode_one, captions), strict=True)
        return np.stack(embeddings), np.stack(masks)

    def encode_one(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings bfloat16 [L, D] and mask bool [L] of one caption. Raises UsageError as for many."""
        no_tokens = np.zeros((0, self.plan.width), BFLOAT16)
        return self._padded(self._row(caption).embeddings if caption.strip() else no_tokens)

    def as_features(self, caption: str) -> dict[str, np.ndarray]:
        """What stands for a caption in a training example: embeddings ``tokens`` [L, D] and ``mask`` bool [L]."""
        embeddings, mask = self.encode_one(caption)
        return {"tokens": embeddings, "mask": mask}

    def count_truncated(self, captions: Sequence[str]) -> int:
        """How many of these captions had more than L tokens, and were cut."""
        return sum(self._row(caption).cut for caption in captions if caption.strip())

    def check_captions(self, captions: Iterable[str]) -> None:
        """Raises UsageError for the first of these captions that the cache does not have."""
        for caption in captions:
            if caption not in self:
                raise self._lacks(caption)

    def _lacks(self, caption: str) -> ConfigError:
        return ConfigError(
            f"embedding cache {str(self._folder)!r} lacks the caption {caption[:200]!r}: "
            "embed the captions of this config into a new folder"
        )

    def _place(self, caption: str) -> int | None:
        key = caption_key(caption)
        place = int(np.searchsorted(self._keys, key))
        return place if place < len(self._keys) and self._keys[place] == key else None

    def _row(self, caption: str) -> Row:
        place = self._place(caption)
        if place is None:
            raise self._lacks(caption)
        shard, index = divmod(place, self.plan.shard_rows)
        try:
            row = _unpack_row(self._reader(shard).read([index])[0], self.plan)
            if row.text != encoded(caption):
                raise ValueError(f"row {index} is of another caption")
        except (RuntimeError, ValueError, IndexError, struct.error) as error:
            path = self._folder / self.plan.shard_name(shard)
            raise ConfigError(f"{path} is damaged ({str(error).splitlines()[0]}): {AGAIN}") from error
        return row

    def _reader(self, shard: int) -> Any:
        if shard not in self._readers:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = open_shard(self._folder / self.plan.shard_name(shard))
        return self._readers[shard]

    def _padded(self, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.zeros((self.plan.length, self.plan.width), BFLOAT16)
        padded[: len(embeddings)] = embeddings
        return padded, np.arange(self.plan.length) < len(embeddings)


def open_shard(path: Path) -> Any:
    """A reader of a shard's rows, in any order and by many threads at once."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15)


def read_keys(folder: Path, plan: CachePlan) -> np.ndarray:
    """The keys of a cache's captions, sorted. Raises UsageError if they are not those of the plan."""
    path = folder / KEYS
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != plan.captions_hash or len(data) != plan.captions * KEY_BYTES:
        raise ConfigError(f"{path} is damaged: {AGAIN}")
    return np.frombuffer(data, f"S{KEY_BYTES}")


def cached_encoder(cache: EmbeddingCache, dtype: Any) -> TextEncoder:
    """A text encoder without weights, which knows the captions of a cache alone: its tokens are their embeddings."""
    return TextEncoder(
        shapes={},
        read=in_memory_reader({}),
        width=cache.plan.width,
        length=cache.plan.length,
        tokenize=cache,
        encode=lambda params, embeddings, mask: embeddings.astype(dtype),
        fingerprint=lambda: cache.plan.fingerprint,
    )
