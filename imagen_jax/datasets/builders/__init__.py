"""Builders of the data sets that the package can write in TFDS format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.io.paths import expand_user

DATASETS = ("emoji/white", "emoji/colours", "digits")


class Prepared(NamedTuple):
    """A data set on disk: its folder, whether it existed before, and the number of examples by split."""

    folder: Path
    existed: bool
    examples: dict[str, int]


def prepare(name: str, out: Path, font: str | None = None) -> Prepared:
    """Writes a data set of DATASETS below `out`, unless it exists.

    Args:
        name: one of DATASETS.
        out: the folder of data sets.
        font: for emoji, the file of Noto Color Emoji; None for where Debian has it.

    Raises:
        ConfigError: the font is missing or is another one.
    """
    builder = _builder(name, font, data_dir=out, file_format="array_record")
    existed = builder.is_prepared()
    builder.download_and_prepare()
    counts = {split: part.num_examples for split, part in builder.info.splits.items()}
    return Prepared(Path(builder.data_dir), existed, counts)


def _builder(name: str, font: str | None, **settings: Any) -> Any:
    # TFDS takes seconds to import: only preparing waits for it
    if name == "digits":
        from imagen_jax.datasets.builders.digits import Digits

        return Digits(**settings)
    from imagen_jax.datasets.builders import emoji

    return emoji.Emoji(font=Path(expand_user(font or emoji.FONT)), config=name.removeprefix("emoji/"), **settings)
