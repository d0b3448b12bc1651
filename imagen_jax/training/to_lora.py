"""Writes adapters that runs have trained as files of their own, see `stages/lora_files.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from imagen_jax.errors import ConfigError
from imagen_jax.io.atomic import commit_folder
from imagen_jax.io.bucket import is_bucket
from imagen_jax.io.paths import as_path, file_sizes
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.stages.base import AdaptedWeights
from imagen_jax.stages.cascade_folder import check_new, new_folder
from imagen_jax.stages.lora import split_lora
from imagen_jax.stages.lora_files import lora_paths, write_lora
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.weights import WeightsChoice


@dataclasses.dataclass(frozen=True)
class WrittenAdapters:
    """What `to_lora` has written: the folder, its files, and their size in bytes."""

    out: Path
    files: list[Path]
    size: int

    def summary(self) -> str:
        """Returns the result as a line of text."""
        return f"{self.out}: {len(self.files)} adapter(s), {self.size:,} bytes, for --lora={self.out}"


def to_lora(
    stages: str | Path | Sequence[str | Path],
    out: str | Path,
    overwrite: bool = False,
    weights: Sequence[WeightsChoice] | None = None,
) -> WrittenAdapters:
    """Writes the adapters of some runs: of one as OUT/FILE, of several as OUT/stage_N/FILE in their order.

    Args:
        stages: the folders of the runs, see `find_stages`.
        out: the folder, on a disk.
        overwrite: whether adapters in it are replaced.
        weights: which ones of each run; None for their EMA.

    Raises:
        ConfigError: a folder is not that of a run with an adapter, or the folder cannot be written.
        TrainingError: every checkpoint of a run is damaged.
        OSError: a file cannot be written.
    """
    if is_bucket(str(out)):
        raise ConfigError(f"--out {str(out)!r} is in a bucket: give a folder on this machine, and copy it there then")
    folder = as_path(out)
    found = find_stages(stages)
    _check_out(folder, overwrite, found)
    choices = weights or [WeightsChoice()] * len(found)
    opened = [(path, _open(path, choice)) for path, choice in zip(found, choices, strict=True)]
    with new_folder(folder) as temporary:
        for index, (path, adapted) in enumerate(opened):
            config = read_config(path)
            adapter = adapted.load(_on_one_device(split_lora(adapted.shapes)[0]), partial=True)
            part = temporary / f"stage_{index}" if len(opened) > 1 else temporary
            write_lora(part, adapter, config, adapted.base.checksum, adapted.step)
        sizes = file_sizes(temporary)
        commit_folder(temporary, folder.absolute())
    return WrittenAdapters(folder, [folder / name for name in sizes], sum(sizes.values()))


def _check_out(folder: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    """Raises ConfigError if adapters cannot be written to a folder."""
    if not check_new(folder, sources):
        return
    what = f"--out {str(folder)!r}"
    if not set(file_sizes(folder)) <= {str(path.relative_to(folder)) for path in lora_paths(folder)}:
        raise ConfigError(f"{what} has files that imagen convert has not written: give a new folder")
    if not overwrite:
        raise ConfigError(f"{what} has adapters already: give a new folder, or --overwrite to replace them")


def _open(folder: Path, choice: WeightsChoice) -> AdaptedWeights:
    """Returns the weights of a run with an adapter. Raises ConfigError for another folder."""
    weights = open_weights(folder, choice)
    if not isinstance(weights, AdaptedWeights):
        raise ConfigError(
            f"{folder} has no adapter: give the --workdir of a run with adapter.kind='lora'; imagen publish writes "
            "the weights of others"
        )
    return weights


def _on_one_device(shapes: Any) -> Any:
    """Returns abstract arrays on this process's first device."""
    return with_shardings(
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes),
        make_mesh({"data": 1, "fsdp": 1}, jax.local_devices()[:1]),
    )
