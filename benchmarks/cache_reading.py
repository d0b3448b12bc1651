"""Reading of an embedding cache: ``python -m benchmarks.cache_reading``. Prints the table of docs/data.md.

Embeddings are random, of the widths of T5 v1.1 large and XXL, and lie in a temporary folder that is removed again; they
are read as training reads them, in random order. Seconds are those that cores were at work, as `time.process_time`
counts them, so that whatever else the machine does is not counted. The files are in the memory of the system: a disk
or a network has to deliver as many bytes.
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

from imagen_jax import commands
from imagen_jax.text.embedding_cache import DTYPES, EmbeddingCache, Plan, pack
from imagen_jax.text.embedding_cache_writer import Packed, begin, captions_of, finish, quantise, survey, write_shard

ROWS = flags.DEFINE_integer("rows", 1000, "Captions in each cache.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", 30, "Tokens of each.", lower_bound=1, upper_bound=128)
SECONDS = flags.DEFINE_float("seconds", 3.0, "How long to read each.", lower_bound=0.1)
WIDTHS = (1024, 4096)
LENGTH = 128
SHARD_ROWS = 128
HEADER = (
    "| width | kept as | bytes a caption | captions a second and core | MB a second and core |",
    "|---|---|---|---|---|",
)


def main() -> None:
    """Writes, reads, prints."""
    print("\n".join(HEADER))
    for width in WIDTHS:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as name:
                captions = write(Path(name), width, dtype)
                cache = EmbeddingCache(Path(name))
                size = sum(path.stat().st_size for path in Path(name).glob("shard-*")) / len(captions)
                rate = read(cache, captions)
            print(f"| {width} | {dtype} | {size:,.0f} | {rate:,.0f} | {rate * size / 1e6:,.0f} |", flush=True)


def write(folder: Path, width: int, dtype: str) -> list[str]:
    """A cache of random embeddings; its captions."""
    captions = [f"caption {i}" for i in range(ROWS.value)]
    found = survey([tuple(captions)], hidden=True)
    plan = Plan(
        fingerprint="random",
        length=LENGTH,
        width=width,
        dtype=dtype,
        captions=len(found.keys),
        given=found.given,
        shard_rows=SHARD_ROWS,
        captions_hash=hashlib.sha256(found.keys.tobytes()).hexdigest(),
    )
    rng = np.random.default_rng(0)

    def embed(captions: Sequence[str]) -> Iterator[list[Packed]]:
        drawn = jnp.asarray(rng.standard_normal((len(captions), TOKENS.value, width), np.float32))
        values, scales, errors = map(np.asarray, quantise(drawn, dtype))
        kept = scales[:, : TOKENS.value if DTYPES[dtype][1] else 0]
        for row, caption in enumerate(captions):
            yield [Packed(pack(caption, False, values[row], kept[row]), False, errors[row])]

    begin(folder, plan, found.keys, writes=True)
    for shard in range(plan.shards):
        write_shard(folder, plan, shard, captions_of(shard, plan, found, [tuple(captions)]), embed, lambda count: None)
    finish(folder, plan)
    return captions


def read(cache: EmbeddingCache, captions: Sequence[str]) -> float:
    """Captions a second of one core."""
    order = np.random.default_rng(1).permutation(len(captions))
    for row in order[:100]:  # opens the shards
        cache.arrays(captions[row])
    count, start = 0, time.process_time()
    while time.process_time() - start < SECONDS.value:
        cache.arrays(captions[order[count % len(order)]])
        count += 1
    return count / (time.process_time() - start)


if __name__ == "__main__":
    commands.run(main)
