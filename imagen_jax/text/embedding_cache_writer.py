"""Writing an embedding cache, so that a kill at any point costs at most the shards that were being written.

While it is unfinished, OUT/plan.json says what it will be, and OUT/shard-….json, written after a shard, what that is.
A file gets its name by a rename, once it is whole on the disk. What a shard is follows from its captions and the
encoder alone, and which they are, from the plan: so a run that goes on ends with the bytes of an unbroken one.

B batch, L text length, D width of an embedding, n tokens of a caption.
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
from imagen_jax.io.atomic import file_hash, put_in_place, read_json, unfinished_of, write_whole
from imagen_jax.io.changes import changes
from imagen_jax.parallel.batching import batch_sharding
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

PLAN = "plan.json"
CHUNK = 2**20  # captions that are looked at before they are sorted
# embeddings [B, L, D] → values [B, L, D] as they are kept, scales [B, L], 1 - cosine of both [B, L]
Quantised = tuple[jax.Array, jax.Array, jax.Array]


class OfExamples(Protocol):
    """The captions of examples, by random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[str, ...]: ...


class CaptionIndex(NamedTuple):
    """The distinct captions of some examples, the empty one and no other blank one among them.

    keys: bytes, sorted [N]
    places: where each is first: number of the example, place among its captions, int64 [N, 2]; -1 of the empty one
    given: how many captions the examples have
    """

    keys: np.ndarray
    places: np.ndarray
    given: int


def index_captions(captions: OfExamples, hidden: bool = False) -> CaptionIndex:
    """Looks at the captions of all examples, with a bar unless ``hidden``.

    Memory: 32 bytes a distinct caption, and four times as much while they are sorted.
    """
    kept = np.array([caption_key("")], f"S{KEY_BYTES}"), np.array([(-1, 0)])
    chunks: list[tuple[np.ndarray, np.ndarray]] = []
    keys: list[bytes] = []
    places: list[tuple[int, int]] = []
    given = waiting = 0
    for example in tqdm(range(len(captions)), desc="captions", unit=" examples", unit_scale=True, disable=hidden):
        for place, caption in enumerate(captions[example]):
            given += 1
            if caption.strip():
                keys.append(caption_key(caption))
                places.append((example, place))
        if len(keys) >= CHUNK:
            chunks.append(distinct(np.array(keys, f"S{KEY_BYTES}"), np.array(places)))
            waiting += len(chunks[-1][0])
            keys, places = [], []
            # as many as are kept already: so each is sorted a few times, however many there are
            if waiting >= len(kept[0]):
                kept, chunks, waiting = merged([kept, *chunks]), [], 0
    last = np.array(keys, f"S{KEY_BYTES}"), np.array(places, np.int64).reshape(-1, 2)
    return CaptionIndex(*merged([kept, *chunks, last]), given)


def merged(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of keys and places as one, without duplicates, sorted."""
    keys, places = zip(*chunks, strict=True)
    return distinct(np.concatenate(keys), np.concatenate(places))


def distinct(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys, sorted, each once, with the place of the first of those that are alike."""
    keys, first = np.unique(keys, return_index=True)
    return keys, places[first]


class PackedRow(NamedTuple):
    """A row as it is kept, whether its caption was cut, and the cosine errors [n] of its tokens."""

    data: bytes
    cut: bool
    errors: np.ndarray


class Embedder:
    """An encoder on a mesh, compiled for batches of one shape. Its weights are read when they are first needed.

    batch_size: captions at once; rounded up to what all devices share alike
    dtype: of what is kept, of DTYPES
    """

    def __init__(self, encoder: TextEncoder, mesh: Mesh, batch_size: int, dtype: str) -> None:
        self._encoder, self._mesh = encoder, mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._has_scales = STORAGE_DTYPES[dtype][1] > 0

        def program(params: dict, tokens: jax.Array, mask: jax.Array) -> Quantised:
            return quantize(encoder.encode(params, tokens, mask), dtype)

        self._program = jax.jit(program)

    @functools.cached_property
    def _params(self) -> dict:
        return self._encoder.load(self._mesh)

    def __call__(self, captions: Sequence[str]) -> Iterator[list[PackedRow]]:
        """The rows of the captions, batch by batch."""
        waiting = None
        for start in range(0, len(captions), self._batch_size):
            batch = captions[start : start + self._batch_size]
            mask, found = self._begin(batch)
            # the devices are at work on a batch while the rows of the one before are packed
            if waiting is not None:
                yield self._rows(*waiting)
            waiting = batch, mask, found
        if waiting is not None:
            yield self._rows(*waiting)

    def _begin(self, captions: Sequence[str]) -> tuple[np.ndarray, Quantised]:
        surplus = self._batch_size - len(captions)
        tokens, mask = self._encoder.tokenize([*captions, *[""] * surplus])
        for row, caption in enumerate(captions):
            if not caption:
                tokens[row], mask[row] = self._encoder.tokenize.empty_caption
        placed = (device_put_global(array, batch_sharding(self._mesh)) for array in (tokens, mask))
        return mask, self._program(self._params, *placed)

    def _rows(self, captions: Sequence[str], mask: np.ndarray, found: Quantised) -> list[PackedRow]:
        values, scales, errors = map(np.asarray, found)
        rows = []
        for row, caption in enumerate(captions):
            count = int(mask[row].sum())
            cut = bool(mask[row, -1]) and self._encoder.tokenize.count_truncated([caption]) > 0
            kept = scales[row, : count if self._has_scales else 0]
            rows.append(PackedRow(pack_row(caption, cut, values[row, :count], kept), cut, errors[row, :count]))
        return rows


def quantize(embeddings: jax.Array, dtype: str) -> Quantised:
    """Embeddings [B, L, D] as they are kept, and what that costs."""
    embeddings = embeddings.astype(jnp.float32)
    if dtype == "int8":
        largest = jnp.max(jnp.abs(embeddings), axis=-1)
        scales = jnp.where(largest > 0, largest, 1.0) / 127
        values = jnp.round(embeddings / scales[..., None]).astype(jnp.int8)
        restored = (values * scales[..., None]).astype(BFLOAT16)
    else:
        values = restored = embeddings.astype(BFLOAT16)
        scales = jnp.ones(embeddings.shape[:-1])
    return values, scales, cosine_error(embeddings, restored.astype(jnp.float32))


def cosine_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 - cosine of vectors [..., D]; 0 where one of them is zero."""
    product = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    unit_product = jnp.sum(x * y, axis=-1) / jnp.where(product > 0, product, 1.0)
    return jnp.where(product > 0, jnp.maximum(1.0 - unit_product, 0.0), 0.0)


def prepare_folder(folder: Path, plan: CachePlan, keys: np.ndarray, writes: bool) -> None:
    """Puts the plan and the keys into the folder, if ``writes``. Raises UsageError if another cache is there."""
    existing = existing_plan(folder)
    if existing is not None:
        changed = list(changes(dataclasses.asdict(existing), dataclasses.asdict(plan)).values())
        if changed:
            raise ConfigError(
                f"{str(folder)!r} holds another embedding cache: {'; '.join(changed)}: give another --out"
            )
    if writes:
        write_whole(folder / KEYS, keys.tobytes())
        if not (folder / MANIFEST).exists():
            write_whole(folder / PLAN, json.dumps(dataclasses.asdict(plan)).encode())


def existing_plan(folder: Path) -> CachePlan | None:
    """The plan of the cache in a folder, finished or not. Raises UsageError if it is damaged."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder).plan
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        return parse_dataclass(CachePlan, read_json(path))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and run the command again") from error


def is_shard_complete(folder: Path, plan: CachePlan, shard: int) -> bool:
    """Whether a shard is written, and has the bytes that were written."""
    recorded, path = recorded_shard(folder, plan, shard), folder / plan.shard_name(shard)
    return recorded is not None and path.is_file() and file_hash(path) == recorded.sha256


def recorded_shard(folder: Path, plan: CachePlan, shard: int) -> ShardInfo | None:
    """What was written down of a shard: in its own file, or in the manifest; None if nothing was."""
    path = record_path(folder, plan, shard)
    if path.exists():
        with contextlib.suppress(ValueError, TypeError):  # what is damaged says nothing
            return parse_dataclass(ShardInfo, read_json(path))
    return read_manifest(folder).shards[shard] if (folder / MANIFEST).exists() else None


def record_path(folder: Path, plan: CachePlan, shard: int) -> Path:
    """Where it is written down what a shard is."""
    return (folder / plan.shard_name(shard)).with_suffix(".json")


def write_shard(
    folder: Path,
    plan: CachePlan,
    shard: int,
    captions: Sequence[str],
    embed: Callable[[Sequence[str]], Iterator[list[PackedRow]]],
    wrote: Callable[[int], Any],
) -> None:
    """Embeds the captions of a shard, writes it, and writes down what it is.

    embed: as an ``Embedder``
    wrote: is told, batch by batch, how many rows were written
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / plan.shard_name(shard)
    unfinished = unfinished_of(path)
    # a row at a time can be read; embeddings hardly become smaller by compression
    file = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
    tokens, cut, worst, total = 0, 0, 0.0, 0.0
    for rows in embed(captions):
        for row in rows:
            file.write(row.data)
            tokens += len(row.errors)
            cut += row.cut
            total += float(row.errors.sum(dtype=np.float64))
            worst = max(worst, float(row.errors.max()))
        wrote(len(rows))
    file.close()
    put_in_place(unfinished, path)
    found = ShardInfo(path.stat().st_size, file_hash(path), tokens, cut, total, worst)
    write_whole(record_path(folder, plan, shard), json.dumps(dataclasses.asdict(found)).encode())


def finalize(folder: Path, plan: CachePlan) -> Manifest:
    """Writes the manifest of a cache whose shards are all written, and removes what was only needed until then.

    Raises UsageError if a shard is missing: of several processes, each writes some.
    """
    found = [recorded_shard(folder, plan, shard) for shard in range(plan.shards)]
    missing = [plan.shard_name(shard) for shard, recorded in enumerate(found) if recorded is None]
    if missing:
        raise ConfigError(
            f"{str(folder)!r} lacks {len(missing)} of {plan.shards} shards, such as {missing[0]}: "
            "all processes must write to one and the same folder"
        )
    shards = [recorded for recorded in found if recorded is not None]
    write_whole(folder / MANIFEST, manifest_json(plan, shards))
    for path in (folder / PLAN, *(record_path(folder, plan, shard) for shard in range(plan.shards))):
        path.unlink(missing_ok=True)
    return Manifest(plan, shards)


def shard_captions(shard: int, plan: CachePlan, found: CaptionIndex, captions: OfExamples) -> list[str]:
    """The captions of a shard. Raises UsageError if the examples no longer have those that the survey found."""
    chosen = []
    for row in plan.rows(shard):
        example, place = map(int, found.places[row])
        of_example = ("",) if example < 0 else captions[example]
        if place >= len(of_example) or caption_key(of_example[place]) != found.keys[row]:
            raise ConfigError(f"the captions of example {example} have changed since this command began: run it again")
        chosen.append(of_example[place])
    return chosen
