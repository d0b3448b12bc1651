"""Writes what runs have trained beside a network as files of their own: adapters, and words of the text encoder.

See `stages/lora_files.py` and `text/learned_tokens.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from imagen_jax.config.schema import StageConfig
from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import commit_folder
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.paths import as_path, file_sizes
from imagen_jax.io.text import printable
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.adapter import LEARNED as LEARNED_TOKEN
from imagen_jax.stages.adapter import learned_rows, split_adapter
from imagen_jax.stages.base import AdaptedWeights
from imagen_jax.stages.cascade_folder import check_new, new_folder
from imagen_jax.stages.lora_files import find_loras, write_lora
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.text import make_encoder
from imagen_jax.stages.weights import WeightsChoice
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.text.learned_tokens import write_learned


@dataclasses.dataclass(frozen=True)
class WrittenAdapters:
    """What `to_lora` has written: the folder, its files, and their size in bytes."""

    out: Path
    files: list[Path]
    size: int

    def summary(self) -> str:
        """Returns the result as a line of text."""
        words = [file for file in self.files if file.name == LEARNED]
        what = [f"{len(self.files) - len(words)} adapter(s)"] if len(words) < len(self.files) else []
        flags = ["--lora"] if what else ["--embedding"]
        what += ["learned tokens"] if words else []
        return f"{self.out}: {' and '.join(what)}, {self.size:,} bytes, for {flags[0]}={self.out}"


def to_lora(
    stages: str | Path | Sequence[str | Path],
    out: str | Path,
    overwrite: bool = False,
    weights: Sequence[WeightsChoice] | None = None,
    kind: Literal["lora", "embedding"] = "lora",
) -> WrittenAdapters:
    """Writes the adapters of some runs: of one as OUT/FILE, of several as OUT/stage_N/FILE in their order.

    The words that they have learned, and those that they were trained with, are in OUT/learned_embeds.safetensors.

    Args:
        stages: the folders of the runs, see `find_stages`.
        out: the folder, on a disk.
        overwrite: whether adapters in it are replaced.
        weights: which ones of each run; None for their EMA.
        kind: "lora" for adapters and words, "embedding" for words alone.

    Raises:
        ConfigError: a folder is not that of a run with an adapter, two runs have different rows of a word, or the
            folder cannot be written.
        TrainingError: every checkpoint of a run is damaged.
        OSError: a file cannot be written.
    """
    if is_bucket(str(out)):
        raise ConfigError(f"--out {str(out)!r} is in a bucket: give a folder on this machine, and copy it there then")
    folder = as_path(out)
    found = find_stages(stages)
    _check_out(folder, overwrite, found)
    choices = weights or [WeightsChoice()] * len(found)
    opened = [(read_config(path), _open(path, choice)) for path, choice in zip(found, choices, strict=True)]
    with new_folder(folder) as temporary:
        words: dict[str, np.ndarray] = {}
        for index, (config, adapted) in enumerate(opened):
            adapter = adapted.load(_on_one_device(split_adapter(adapted.shapes)[0]), partial=True)
            part = temporary / f"stage_{index}" if len(opened) > 1 else temporary
            factors = {name: value for name, value in adapter.items() if name != LEARNED_TOKEN}
            if kind == "lora" and not factors:
                raise ConfigError(f"{adapted.workdir} has trained no adapter, but a word: write it by --to=embedding")
            if kind == "lora":
                write_lora(part, factors, config, adapted.base.checksum, adapted.step)
            _add_words(words, config, adapter)
        if kind == "embedding" and not words:
            raise ConfigError(f"{found[0]} has no learned token: train one with adapter.token, or write --to=lora")
        if words:
            text = opened[0][0].text
            write_learned(temporary / LEARNED, words, text.fingerprint or make_encoder(text).fingerprint())
        sizes = file_sizes(temporary)
        commit_folder(temporary, folder.absolute())
    return WrittenAdapters(folder, [folder / name for name in sizes], sum(sizes.values()))


def _add_words(words: dict[str, np.ndarray], config: StageConfig, adapter: Any) -> None:
    """Adds the words of a run, and those that it was trained with. Raises ConfigError for a word with other rows."""
    own = {config.adapter.token: learned_rows(adapter)} if config.adapter.token else {}
    for word, rows in {**make_encoder(config.text).learned, **own}.items():
        if word in words and not np.array_equal(words[word], rows):
            raise ConfigError(
                f"the word {printable(word)!r} has other rows in another run: learn it in one stage, and set "
                "text.learned to its file in the others"
            )
        words[word] = rows


def _check_out(folder: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises ConfigError if adapters cannot be written to a folder."""
    if not check_new(folder, sources):
        return
    what = f"--out {str(folder)!r}"
    known = {str(path.relative_to(folder)) for path in [*find_loras(folder), folder / LEARNED]}
    if not set(file_sizes(folder)) <= known:
        raise ConfigError(f"{what} has files that imagen convert has not written: give a new folder")
    if not overwrite:
        raise ConfigError(f"{what} has adapters already: give a new folder, or --overwrite to replace them")


def _open(folder: Path, choice: WeightsChoice) -> AdaptedWeights:
    """Returns the weights of a run with an adapter. Raises ConfigError for another folder."""
    weights = open_weights(folder, choice)
    if not isinstance(weights, AdaptedWeights):
        raise ConfigError(
            f"{folder} has no adapter: give the --workdir of a run with adapter.kind='lora' or 'textual_inversion'; "
            "imagen publish writes the weights of others"
        )
    return weights


def _on_one_device(shapes: Any) -> Any:
    """Returns abstract arrays on this process's first device."""
    return with_shardings(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes),
        make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]),
    )
