"""Writes an embedding cache, shard by shard: after a crash only the shards in progress are lost.

While the cache is incomplete, OUT/plan.json describes the full cache, and OUT/shard-….json, written after a shard,
describes that shard. Files are written atomically. A shard depends only on the plan, the captions and the encoder, so a
resumed run writes the same bytes as an uninterrupted one.

Shapes: B batch, L text length, D embedding width, n tokens of a caption.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import atomic_write, commit, read_json, sha256_file, temp_path
from imagen_jax.io.changes import changes
from imagen_jax.parallel.axes import TOKENS
from imagen_jax.parallel.batching import batch_sharding, pad_batch, padded_size
from imagen_jax.parallel.sharding import device_put_global
from imagen_jax.text.embedding_cache import (
    BFLOAT16,
    KEY_BYTES,
    KEYS,
    MANIFEST,
    STORAGE_DTYPES,
    CachePlan,
    Manifest,
    ShardInfo,
    caption_key,
    manifest_json,
    pack_row,
    parse_dataclass,
    read_manifest,
)
from imagen_jax.text.encoder import TextEncoder

_PLAN = "plan.json"
_CHUNK = 2**20  # captions to collect before they are sorted
# stored values [B, L, D], scales [B, L], 1 - cosine of the stored and the exact embedding [B, L]
_Quantized = tuple[jax.Array, jax.Array, jax.Array]


class CaptionSequence(Protocol):
    """Random access to the captions of examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[str, ...]: ...


class CaptionIndex(NamedTuple):
    """The distinct captions of a sequence of examples. It includes the empty caption and no other blank one.

    Attributes:
        keys: sorted keys, bytes [N].
        positions: first occurrence, int64 [N, 2] (example, index among its captions); example -1 for the empty caption.
        given: number of captions of the examples, duplicates included.
    """

    keys: np.ndarray
    positions: np.ndarray
    given: int


def index_captions(captions: CaptionSequence, hidden: bool = False) -> CaptionIndex:
    """Collects the distinct captions of all examples.

    It takes 32 bytes of memory per distinct caption, and four times as much while they are sorted.

    Args:
        captions: the captions of each example.
        hidden: whether to hide the progress bar.
    """
    merged = np.array([caption_key("")], f"S{KEY_BYTES}"), np.array([(-1, 0)])
    chunks: list[tuple[np.ndarray, np.ndarray]] = []
    keys: list[bytes] = []
    positions: list[tuple[int, int]] = []
    given = pending = 0
    for example in tqdm(range(len(captions)), desc="captions", unit=" examples", unit_scale=True, disable=hidden):
        for i, caption in enumerate(captions[example]):
            given += 1
            if caption.strip():
                keys.append(caption_key(caption))
                positions.append((example, i))
        if len(keys) >= _CHUNK:
            chunks.append(_unique(np.array(keys, f"S{KEY_BYTES}"), np.array(positions)))
            pending += len(chunks[-1][0])
            keys, positions = [], []
            # merge once the pending ones are as many as the merged ones: each is sorted a logarithmic number of times
            if pending >= len(merged[0]):
                merged, chunks, pending = _merge([merged, *chunks]), [], 0
    last = np.array(keys, f"S{KEY_BYTES}"), np.array(positions, np.int64).reshape(-1, 2)
    return CaptionIndex(*_merge([merged, *chunks, last]), given)


def _merge(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Merges chunks of keys and positions, sorted and without duplicates."""
    keys, positions = zip(*chunks, strict=True)
    return _unique(np.concatenate(keys), np.concatenate(positions))


def _unique(keys: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sorted distinct keys with the positions of their first occurrences."""
    keys, first = np.unique(keys, return_index=True)
    return keys, positions[first]


class PackedRow(NamedTuple):
    """A packed row, whether its caption was truncated, and the cosine errors [n] of its tokens."""

    data: bytes
    cut: bool
    errors: np.ndarray


class Embedder:
    """An encoder on a mesh, compiled for one batch shape. Its weights are loaded at the first batch.

    Args:
        encoder: the text encoder.
        mesh: the devices.
        batch_size: captions per batch, rounded up to a multiple of the number of devices.
        dtype: dtype of stored embeddings, one of STORAGE_DTYPES.
    """

    def __init__(self, encoder: TextEncoder, mesh: Mesh, batch_size: int, dtype: str) -> None:
        self._encoder, self._mesh = encoder, mesh
        self._batch_size = padded_size(batch_size, mesh.size)
        self._has_scales = STORAGE_DTYPES[dtype][1] > 0

        def program(params: dict, tokens: jax.Array, mask: jax.Array) -> _Quantized:
            return quantize(encoder.encode(params, tokens, mask), dtype)

        self._program = jax.jit(program)

    @functools.cached_property
    def _params(self) -> dict:
        return self._encoder.load(self._mesh)

    def __call__(self, captions: Sequence[str]) -> Iterator[list[PackedRow]]:
        """Yields the rows of the captions, batch by batch."""
        pending = None
        for start in range(0, len(captions), self._batch_size):
            batch = captions[start : start + self._batch_size]
            mask, outputs = self._dispatch(batch)
            # the devices compute a batch while the rows of the previous one are packed
            if pending is not None:
                yield self._pack_rows(*pending)
            pending = batch, mask, outputs
        if pending is not None:
            yield self._pack_rows(*pending)

    def _dispatch(self, captions: Sequence[str]) -> tuple[np.ndarray, _Quantized]:
        tokens, mask = self._encoder.tokenize(pad_batch(captions, self._batch_size, ""))
        for row, caption in enumerate(captions):
            if not caption:
                tokens[row], mask[row] = self._encoder.tokenize.empty_caption
        placed = (device_put_global(array, batch_sharding(self._mesh, TOKENS)) for array in (tokens, mask))
        return mask, self._program(self._params, *placed)

    def _pack_rows(self, captions: Sequence[str], mask: np.ndarray, outputs: _Quantized) -> list[PackedRow]:
        values, scales, errors = map(np.asarray, outputs)
        rows = []
        for row, caption in enumerate(captions):
            tokens = int(mask[row].sum())
            stored = self._encoder.length if self._encoder.tokenize.padding == "encoded" else tokens
            cut = bool(mask[row, -1]) and self._encoder.tokenize.count_truncated([caption]) > 0
            row_scales = scales[row, : stored if self._has_scales else 0]
            packed = pack_row(caption, tokens, cut, values[row, :stored], row_scales)
            rows.append(PackedRow(packed, cut, errors[row, :tokens]))
        return rows


def quantize(embeddings: jax.Array, dtype: str) -> _Quantized:
    """Quantizes embeddings.

    Args:
        embeddings: [B, L, D].
        dtype: one of STORAGE_DTYPES.

    Returns:
        (values [B, L, D] in the stored dtype, scales [B, L], 1 - cosine of exact and stored embeddings [B, L]).
    """
    embeddings = embeddings.astype(jnp.float32)
    if dtype == "int8":
        largest = jnp.max(jnp.abs(embeddings), axis=-1)
        scales = jnp.where(largest > 0, largest, 1.0) / 127
        values = jnp.round(embeddings / scales[..., None]).astype(jnp.int8)
        restored = (values * scales[..., None]).astype(BFLOAT16)
    else:
        values = restored = embeddings.astype(BFLOAT16)
        scales = jnp.ones(embeddings.shape[:-1])
    return values, scales, _cosine_error(embeddings, restored.astype(jnp.float32))


def _cosine_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns 1 - cosine of vectors [..., D]; 0 where one of them is zero."""
    product = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    unit_product = jnp.sum(x * y, axis=-1) / jnp.where(product > 0, product, 1.0)
    return jnp.where(product > 0, jnp.maximum(1.0 - unit_product, 0.0), 0.0)


def prepare_folder(folder: Path, plan: CachePlan, keys: np.ndarray, writes: bool) -> None:
    """Checks that a folder holds no other cache, and writes the plan and the keys to it.

    Args:
        folder: the folder of the cache.
        plan: its plan.
        keys: its keys, see `CaptionIndex`.
        writes: whether this process writes.

    Raises:
        ConfigError: the folder holds another cache.
    """
    existing = _read_plan(folder)
    if existing is not None:
        changed = list(changes(dataclasses.asdict(existing), dataclasses.asdict(plan)).values())
        if changed:
            raise ConfigError(
                f"{str(folder)!r} holds another embedding cache: {'; '.join(changed)}: give another --out"
            )
    if writes:
        atomic_write(folder / KEYS, keys.tobytes())
        if not (folder / MANIFEST).exists():
            atomic_write(folder / _PLAN, json.dumps(dataclasses.asdict(plan)).encode())


def _read_plan(folder: Path) -> CachePlan | None:
    """Returns the plan of the cache in a folder, complete or not; None if there is no cache."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder).plan
    path = folder / _PLAN
    if not path.exists():
        return None
    try:
        return parse_dataclass(CachePlan, read_json(path))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and run the command again") from error


def is_shard_complete(folder: Path, plan: CachePlan, shard: int) -> bool:
    """Returns whether a shard is written and has the recorded hash."""
    info, path = _read_shard_info(folder, plan, shard), folder / plan.shard_name(shard)
    return info is not None and path.is_file() and sha256_file(path) == info.sha256


def _read_shard_info(folder: Path, plan: CachePlan, shard: int) -> ShardInfo | None:
    """Reads the description of a shard from its own file or the manifest; None if it is not written yet."""
    path = _shard_info_path(folder, plan, shard)
    if path.exists():
        with contextlib.suppress(ValueError, TypeError):  # ignore a damaged description
            return parse_dataclass(ShardInfo, read_json(path))
    return read_manifest(folder).shards[shard] if (folder / MANIFEST).exists() else None


def _shard_info_path(folder: Path, plan: CachePlan, shard: int) -> Path:
    """Returns the path of a shard's description."""
    return (folder / plan.shard_name(shard)).with_suffix(".json")


def write_shard(
    folder: Path,
    plan: CachePlan,
    shard: int,
    captions: Sequence[str],
    embed: Callable[[Sequence[str]], Iterator[list[PackedRow]]],
    on_rows: Callable[[int], Any],
) -> None:
    """Embeds the captions of a shard, and writes the shard and its description.

    Args:
        folder: the folder of the cache.
        plan: its plan.
        shard: number of the shard.
        captions: captions of the shard, see `shard_captions`.
        embed: an `Embedder`.
        on_rows: called after each batch with the number of rows written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / plan.shard_name(shard)
    unfinished = temp_path(path)
    # one row per group for random access; embeddings hardly compress
    file = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
    tokens, cut, worst, total = 0, 0, 0.0, 0.0
    for rows in embed(captions):
        for row in rows:
            file.write(row.data)
            tokens += len(row.errors)
            cut += row.cut
            total += float(row.errors.sum(dtype=np.float64))
            worst = max(worst, float(row.errors.max(initial=0.0)))  # a caption may be cleaned away
        on_rows(len(rows))
    file.close()
    info = ShardInfo(unfinished.stat().st_size, sha256_file(unfinished), tokens, cut, total, worst)
    commit(unfinished, path)
    atomic_write(_shard_info_path(folder, plan, shard), json.dumps(dataclasses.asdict(info)).encode())


def finalize(folder: Path, plan: CachePlan) -> Manifest:
    """Writes the manifest of a cache whose shards are complete, and removes the files that were needed until then.

    Raises:
        ConfigError: a shard is missing.
    """
    infos = [_read_shard_info(folder, plan, shard) for shard in range(plan.shards)]
    missing = [plan.shard_name(shard) for shard, info in enumerate(infos) if info is None]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} lacks {len(missing)} of {plan.shards} shards, such as {missing[0]}: "
            "all processes must write to the same folder"
        )
    shards = [info for info in infos if info is not None]
    atomic_write(folder / MANIFEST, manifest_json(plan, shards))
    for path in (folder / _PLAN, *(_shard_info_path(folder, plan, shard) for shard in range(plan.shards))):
        path.unlink(missing_ok=True)
    return Manifest(plan, shards)


def shard_captions(shard: int, plan: CachePlan, index: CaptionIndex, captions: CaptionSequence) -> list[str]:
    """Returns the captions of a shard.

    Args:
        shard: number of the shard.
        plan: the plan of the cache.
        index: the captions of the cache.
        captions: the captions of each example.

    Raises:
        ConfigError: the captions of an example have changed since they were indexed.
    """
    selected = []
    for row in plan.rows(shard):
        example, i = map(int, index.positions[row])
        of_example = ("",) if example < 0 else captions[example]
        if i >= len(of_example) or caption_key(of_example[i]) != index.keys[row]:
            raise ConfigError(f"the captions of example {example} have changed since this command began: run it again")
        selected.append(of_example[i])
    return selected
