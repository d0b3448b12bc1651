"""Prepare a data set that comes with the package: ``python -m imagen_jax.prepare --dataset=emoji/white --out=DIR``.

Writes ``OUT/emoji/white/1.0.0``, a data set of TensorFlow Datasets in array_record files, without TensorFlow. A config
reads it with ``data.source = "tfds"`` and ``data.path = "OUT/emoji/white"``. One that is there already is left so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from imagen_jax import commands

OUT = flags.DEFINE_string("out", None, "The folder to write to; data sets are folders in it.")
FONT = flags.DEFINE_string("font", None, "For emoji: the file of Noto Color Emoji, by default where Debian has it.")


def _emoji(kind: str, **settings: Any) -> Any:
    from imagen_jax.data.builders import emoji

    return emoji.Emoji(font=Path(FONT.value or emoji.FONT), config=kind, **settings)


def _digits(**settings: Any) -> Any:
    from imagen_jax.data.builders.digits import Digits

    return Digits(**settings)


# TFDS takes seconds to import: only those who prepare wait for it
DATASETS: dict[str, Callable[..., Any]] = {
    "emoji/white": lambda **settings: _emoji("white", **settings),
    "emoji/colours": lambda **settings: _emoji("colours", **settings),
    "digits": _digits,
}
DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "Which to prepare.")


def main() -> None:
    """Prepares the data set of the flags."""
    name = commands.required(DATASET.value, "dataset", "emoji/white")
    out = commands.writable_folder(OUT.value, "out", "runs/data")
    builder = DATASETS[name](data_dir=out, file_format="array_record")
    said = "is there already" if builder.is_prepared() else "is prepared"
    builder.download_and_prepare()
    splits = ", ".join(f"{split} {part.num_examples}" for split, part in builder.info.splits.items())
    print(f"{builder.data_dir} {said}: {splits} examples. In a config: data.path = '{Path(builder.data_dir).parent}'")


if __name__ == "__main__":
    commands.run(main)
