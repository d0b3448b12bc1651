"""The embedding cache of the captions that training a stage reads: who writes what of it, and what is told of it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import jax
import ml_collections
from tqdm import tqdm

from imagen_jax import processes, sharding
from imagen_jax.data.captions import training_captions
from imagen_jax.stage import check_fingerprint, make_encoder
from imagen_jax.text.cache import Manifest, Plan
from imagen_jax.text.cache_writer import Embedder, Survey, begin, captions_of, finish, is_whole, survey, write_shard
from imagen_jax.text.encoder import TextEncoder

EMBEDDING_MESH = {"data": 1, "fsdp": -1}  # of a process's own devices: together they hold one encoder


def embed(config: ml_collections.ConfigDict, out: Path, dtype: str, batch_size: int, shard_rows: int) -> None:
    """Writes the cache of a config's captions, or what is missing of it. Raises UsageError at the start.

    Args:
        config: of a stage.
        out: the folder.
        dtype: of what is kept, of ``cache.DTYPES``.
        batch_size: captions to embed at once.
        shard_rows: captions in a shard.
    """
    encoder = make_encoder(config.text)
    check_fingerprint(encoder, config.text)
    captions = training_captions(config)
    found = survey(captions, hidden=not processes.writes())
    plan = make_plan(encoder, found, dtype, shard_rows)
    begin(out, plan, found.keys, processes.writes())
    processes.wait("the plan is written")

    own = range(jax.process_index(), plan.shards, jax.process_count())
    to_write = [shard for shard in own if not is_whole(out, plan, shard)]
    mesh = sharding.make_mesh(EMBEDDING_MESH, jax.local_devices())
    embedder = Embedder(encoder, mesh, batch_size, dtype)
    total = sum(len(plan.rows(shard)) for shard in to_write)
    start = time.perf_counter()
    with tqdm(total=total, desc="embedding", unit=" captions", disable=not processes.writes()) as bar:
        for shard in to_write:
            write_shard(out, plan, shard, captions_of(shard, plan, found, captions), embedder, bar.update)
    seconds = time.perf_counter() - start
    processes.wait("all shards are written")

    if processes.writes():
        print(f"{out}: {report(finish(out, plan))}")
        if total:
            print(f"{total:,} captions embedded by this process just now, {total / seconds:,.1f} captions/s")
        print(f"to train from it: --config.text.cache={out} --config.text.fingerprint={plan.fingerprint}")


def make_plan(encoder: TextEncoder, found: Survey, dtype: str, shard_rows: int) -> Plan:
    """What the cache of these captions will be; reads all of the encoder's weights for their fingerprint."""
    return Plan(
        fingerprint=encoder.fingerprint(),
        length=encoder.length,
        width=encoder.width,
        dtype=dtype,
        captions=len(found.keys),
        given=found.given,
        shard_rows=shard_rows,
        captions_hash=hashlib.sha256(found.keys.tobytes()).hexdigest(),
    )


def report(manifest: Manifest) -> str:
    """What a cache is, as lines for people."""
    plan, shards = manifest
    tokens, size, cut = (sum(getattr(shard, name) for shard in shards) for name in ("tokens", "bytes", "cut"))
    error, worst = sum(shard.cosine_error for shard in shards) / tokens, max(s.worst_cosine_error for s in shards)
    return (
        f"{plan.captions - 1:,} distinct of {plan.given:,} captions and the empty one, in {plan.shards:,} shard(s) of "
        f"{size / 1e6:,.1f} MB\n"
        f"a caption has {tokens / plan.captions:.1f} tokens and {size / plan.captions:,.0f} bytes\n"
        f"{cut:,} captions have more than {plan.length} tokens: their ends are not read\n"
        f"1 - cosine of what the encoder said and {plan.dtype} keeps: {error:.1e}, of the worst token {worst:.1e}"
    )
