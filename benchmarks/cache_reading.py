"""Measure the read speed of embedding caches, as in docs/text_encoders.md: `python -m benchmarks.cache_reading`.

The embeddings are random, have the widths of T5 v1.1 large and XXL, and are written to a temporary folder. They are
read in random order, as in training. Times are CPU times (`time.process_time`), so that the load of the machine does
not matter. The files are in the page cache: a disk or a network has to deliver the same number of bytes.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import app
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.text.embedding_cache import STORAGE_DTYPES, CachePlan, EmbeddingCache, pack_row
from imagen_jax.text.embedding_cache_writer import (
    PackedRow,
    finalize,
    index_captions,
    prepare_folder,
    quantize,
    shard_captions,
    write_shard,
)

WIDTHS = (1024, 4096)
LENGTH = 128
SHARD_ROWS = 128
HEADER = (
    "| width | dtype | bytes per caption | captions per second and core | MB per second and core |",
    "|---|---|---|---|---|",
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    flags.DEFINE_integer("rows", 1000, "Captions in each cache.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("tokens", 30, "Tokens per caption.", lower_bound=1, upper_bound=LENGTH, flag_values=values)
    flags.DEFINE_float("seconds", 3.0, "How long to read each cache.", lower_bound=0.1, flag_values=values)


def run(args: CommandFlags) -> None:
    """Writes and reads the caches, and prints the table."""
    print("\n".join(HEADER))
    for width in WIDTHS:
        for dtype in STORAGE_DTYPES:
            with tempfile.TemporaryDirectory() as name:
                captions = _write(Path(name), width, dtype, args.rows, args.tokens)
                cache = EmbeddingCache(Path(name))
                size = sum(path.stat().st_size for path in Path(name).glob("shard-*")) / len(captions)
                rate = _read(cache, captions, args.seconds)
            print(f"| {width} | {dtype} | {size:,.0f} | {rate:,.0f} | {rate * size / 1e6:,.0f} |", flush=True)


def _write(folder: Path, width: int, dtype: str, rows: int, num_tokens: int) -> list[str]:
    """Writes a cache of random embeddings; returns its captions."""
    captions = [f"caption {i}" for i in range(rows)]
    distinct = index_captions([tuple(captions)], hidden=True)
    plan = CachePlan(
        fingerprint="random",
        length=LENGTH,
        width=width,
        dtype=dtype,
        captions=len(distinct.keys),
        given=distinct.given,
        shard_rows=SHARD_ROWS,
        captions_hash=hashlib.sha256(distinct.keys.tobytes()).hexdigest(),
    )
    rng = np.random.default_rng(0)

    def embed(captions: Sequence[str]) -> Iterator[list[PackedRow]]:
        embeddings = jnp.asarray(rng.standard_normal((len(captions), num_tokens, width), np.float32))
        values, scales, errors = map(np.asarray, quantize(embeddings, dtype))
        kept = scales[:, : num_tokens if STORAGE_DTYPES[dtype][1] else 0]
        for row, caption in enumerate(captions):
            yield [PackedRow(pack_row(caption, num_tokens, False, values[row], kept[row]), False, errors[row])]

    prepare_folder(folder, plan, distinct.keys, writes=True)
    for shard in range(plan.shards):
        write_shard(
            folder, plan, shard, shard_captions(shard, plan, distinct, [tuple(captions)]), embed, lambda count: None
        )
    finalize(folder, plan)
    return captions


def _read(cache: EmbeddingCache, captions: Sequence[str], seconds: float) -> float:
    """Returns the captions that one core reads per second."""
    order = np.random.default_rng(1).permutation(len(captions))
    for row in order[:100]:  # open the shards first
        cache.as_features(captions[row])
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        cache.as_features(captions[order[count % len(order)]])
        count += 1
    return count / (time.process_time() - start)


if __name__ == "__main__":
    app.main(__name__)
