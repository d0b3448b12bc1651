"""Embed captions once: ``python -m imagen_jax.embed --config=configs/shapes_base.py --out=DIR``.

Writes what the config's text encoder makes of every caption of both splits of the config's data, each once, with the
empty one. ``train`` reads it back, and needs no encoder, with ``--config.text.cache=DIR``. Run again after a break, it
goes on; run again when all is done, it checks what it wrote, and writes what is damaged anew.

Several processes, each with an encoder of its own on its own devices, share the work and a folder.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from imagen_jax import commands
from imagen_jax.embedding import embed
from imagen_jax.text.cache import DTYPES

CONFIG = config_flags.DEFINE_config_file("config", None, "The stage whose captions to embed.")
OUT = flags.DEFINE_string("out", None, "The folder to write to; the same one for all processes.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", list(DTYPES), "Of what is kept; int8 with a scale for each token.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Captions to embed at once, in a process.", lower_bound=1)
SHARD_ROWS = flags.DEFINE_integer("shard_rows", 8192, "Captions in a shard; a kill costs at most one.", lower_bound=1)


def main() -> None:
    """Embeds the captions of the flags' config."""
    config = commands.required_config(CONFIG.value)
    out = commands.writable_folder(OUT.value, "out", "runs/embeddings")
    embed(config, out, DTYPE.value, BATCH_SIZE.value, SHARD_ROWS.value)


if __name__ == "__main__":
    commands.run(main, several_processes=True)
