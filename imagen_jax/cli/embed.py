"""Compute text embeddings once: `imagen embed --config=configs/shapes_base.py --out=DIR`.

Writes the embeddings of every distinct caption of both splits of the config's data, and of the empty caption. `train`
reads them with `--config.text.cache=DIR` and needs no encoder then. Run again after a break, it continues; run again
when complete, it verifies the files and rewrites what is damaged.

Several processes, each with an encoder on its own devices, share the work and a folder.
"""

from __future__ import annotations

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_path

SEVERAL_PROCESSES = True


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    from imagen_jax.text.embedding_cache import STORAGE_DTYPES

    define_config(values, "The stage whose captions to embed.")
    define_path(values, "out", None, "The folder to write to; the same for all processes.")
    flags.DEFINE_enum(
        "dtype", "bfloat16", list(STORAGE_DTYPES), "Storage type; int8 has a scale for each token.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size", 64, "Captions to embed at once, in a process.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "shard_rows", 8192, "Captions in a shard; a kill costs at most one shard.", lower_bound=1, flag_values=values
    )


def run(args: CommandFlags) -> None:
    """Embeds the captions of the config's data set."""
    from imagen_jax.stages.precompute_text import embed

    config = args.load_config()
    out = args.output_folder("runs/embeddings")
    result = embed(config, out, args.dtype, args.batch_size, args.shard_rows)
    if result is not None:
        print(result.summary())
