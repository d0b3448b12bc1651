"""Text embeddings of a data set, computed once and written to a cache that training reads."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path

import jax
from tqdm import tqdm

from imagen_jax.config.schema import StageConfig
from imagen_jax.datasets.captions import check_captions, training_captions, warn_unreadable
from imagen_jax.parallel import devices, multihost
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages.text import check_fingerprint, make_encoder
from imagen_jax.text.embedding_cache import CachePlan, Manifest
from imagen_jax.text.embedding_cache_writer import (
    CaptionIndex,
    Embedder,
    finalize,
    index_captions,
    is_shard_complete,
    prepare_folder,
    shard_captions,
    write_shard,
)
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.text.null_text import write_null_text

EMBEDDING_MESH = {"data": 1, "fsdp": -1}  # the devices of one process share an encoder


def embed(
    config: StageConfig, out: Path, dtype: str = "bfloat16", batch_size: int = 64, shard_rows: int = 8192
) -> EmbeddingResult | None:
    """Writes the text embeddings of a config's captions to a folder, or what is missing of them.

    Args:
        config: a stage.
        out: the folder.
        dtype: storage type, one of `embedding_cache.DTYPES`.
        batch_size: captions to embed at once.
        shard_rows: captions in a shard.

    Returns:
        What was written, in the main process; None in the others.

    Raises:
        ConfigError: the encoder or the data cannot be opened, the data have no caption, or the folder holds another
            cache.
    """
    encoder = make_encoder(config.text)
    check_fingerprint(encoder, config.text)
    captions = training_captions(config)
    check_captions(config.data, captions.sources[:1])
    found = index_captions(captions, hidden=not multihost.is_main_process())
    warn_unreadable(captions)
    plan = _make_plan(encoder, found, dtype, shard_rows)
    null_text = encoder.null_text() if config.diffusion.null_text == "stored" else None
    prepare_folder(out, plan, found.keys, multihost.is_main_process())
    if null_text is not None and multihost.is_main_process():
        write_null_text(out, null_text)
    multihost.barrier("the plan is written")

    own = range(jax.process_index(), plan.shards, jax.process_count())
    to_write = [shard for shard in own if not is_shard_complete(out, plan, shard)]
    mesh = make_mesh(EMBEDDING_MESH, jax.local_devices())
    devices.log_devices("embedding")
    embedder = Embedder(encoder, mesh, batch_size, dtype)
    total = sum(len(plan.rows(shard)) for shard in to_write)
    start = time.perf_counter()
    with tqdm(total=total, desc="embedding", unit=" captions", disable=not multihost.is_main_process()) as bar:
        for shard in to_write:
            write_shard(out, plan, shard, shard_captions(shard, plan, found, captions), embedder, bar.update)
    seconds = time.perf_counter() - start
    multihost.barrier("all shards are written")

    if not multihost.is_main_process():
        return None
    return EmbeddingResult(out, plan.fingerprint, _report(finalize(out, plan)), total, seconds)


@dataclasses.dataclass(frozen=True)
class EmbeddingResult:
    """What `embed` has written.

    Attributes:
        out: the cache's folder.
        fingerprint: of the text encoder.
        report: the cache's content as lines of text.
        embedded: captions embedded by this process in this call.
        seconds: time that this took.
    """

    out: Path
    fingerprint: str
    report: str
    embedded: int
    seconds: float

    def summary(self) -> str:
        """Returns the result as lines of text."""
        lines = [f"{self.out}: {self.report}"]
        if self.embedded:
            rate = self.embedded / self.seconds
            lines.append(f"{self.embedded:,} captions embedded by this process just now, {rate:,.1f} captions/s")
        lines.append(f"to train from it: --config.text.cache={self.out} --config.text.fingerprint={self.fingerprint}")
        return "\n".join(lines)


def _make_plan(encoder: TextEncoder, index: CaptionIndex, dtype: str, shard_rows: int) -> CachePlan:
    """Returns what the cache of these captions will hold; reads all weights of the encoder for its fingerprint."""
    return CachePlan(
        fingerprint=encoder.fingerprint(),
        length=encoder.length,
        width=encoder.width,
        dtype=dtype,
        captions=len(index.keys),
        given=index.given,
        shard_rows=shard_rows,
        captions_hash=hashlib.sha256(index.keys.tobytes()).hexdigest(),
        padding=encoder.tokenize.padding,
        cleaning=encoder.tokenize.cleaning,
    )


def _report(manifest: Manifest) -> str:
    """Returns a description of a cache, as lines of text."""
    plan, shards = manifest
    tokens, size, truncated = (sum(getattr(shard, name) for shard in shards) for name in ("tokens", "bytes", "cut"))
    error, worst = sum(shard.cosine_error for shard in shards) / tokens, max(s.worst_cosine_error for s in shards)
    return (
        f"{plan.captions - 1:,} distinct of {plan.given:,} captions and the empty one, in {plan.shards:,} shard(s) of "
        f"{size / 1e6:,.1f} MB\n"
        f"a caption has {tokens / plan.captions:.1f} tokens and {size / plan.captions:,.0f} bytes\n"
        f"{truncated:,} captions have more than {plan.length} tokens: their ends are not read\n"
        f"1 - cosine between embeddings and their {plan.dtype} copies: {error:.1e} on average, {worst:.1e} at worst"
    )
