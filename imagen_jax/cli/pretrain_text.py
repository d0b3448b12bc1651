"""Train the text encoder of shapes or figures: `imagen pretrain_text --config=configs/pretrain_text.py --out=DIR`.

DIR becomes a Hugging Face T5 folder. The figures printed at the end are accuracies of linear probes on the embeddings.
"""

from __future__ import annotations

import json

from absl import flags

from imagen_jax.cli.flags import CommandFlags, define_config, define_path
from imagen_jax.config.schema import PretrainTextConfig
from imagen_jax.io.paths import as_path


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_config(values, "What to train: configs/pretrain_text.py.")
    define_path(values, "out", None, "The folder to write: config.json, model.safetensors, probe.json.")


def run(args: CommandFlags) -> None:
    """Trains the encoder, writes it and probes it."""
    from imagen_jax.datasets.pretrain_encoder import pretrain

    config = args.load_config(PretrainTextConfig)
    out = as_path(args.required("out", "runs/text"))
    figures = pretrain(config, out)
    print(f"{out}: accuracy of linear probes\n{json.dumps(figures, indent=2)}")
