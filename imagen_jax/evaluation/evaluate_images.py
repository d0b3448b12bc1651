"""Evaluates images on a disk, without a cascade: metrics of a folder against another, or against statistics.

OUT/scores.json              the figures
OUT/metrics.npz              the states of the metrics after some batch, from which a call continues
OUT/reference-DIGEST.npz     those of the reference
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.datasets.caption_lists import read_caption_list
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.figures import CaptionsOrigin, Figure, format_figures
from imagen_jax.evaluation.image_sets import FolderImages
from imagen_jax.evaluation.metric_set import METRICS, MetricSet, Reference
from imagen_jax.evaluation.progress import MANIFEST
from imagen_jax.evaluation.references import is_statistics, measure, measure_reference, read_reference
from imagen_jax.evaluation.sample_metrics import STATES, scores_json
from imagen_jax.evaluation.statistics_files import write_statistics
from imagen_jax.io.atomic import write_json
from imagen_jax.io.paths import as_path
from imagen_jax.parallel import devices, multihost


@dataclasses.dataclass(frozen=True)
class ImagesResult:
    """The result of `evaluate_images`.

    Attributes:
        metrics: figures by name, each with what it depends on.
        files: that were written.
    """

    metrics: dict[str, Figure]
    files: tuple[Path, ...]

    def summary(self) -> str:
        """Returns the figures as a table, and the files."""
        table = [format_figures(self.metrics)] if self.metrics else []
        return "\n".join([*table, *(f"written: {file}" for file in self.files)])


def evaluate_images(
    images: str | Path,
    config: MetricsConfig,
    out: str | Path | None = None,
    *,
    captions: str | Path = "",
    num_images: int = 0,
    statistics: str | Path = "",
    overwrite: bool = False,
) -> ImagesResult | None:
    """Measures the images of a folder, read batch by batch: any number fits into memory.

    With `out`, states are written every now and then, and the same call continues after a kill.

    Args:
        images: the folder.
        config: the metrics, their networks and the reference: a folder or a .npz file of statistics.
        out: the folder to write `scores.json` to; None for none.
        captions: a file of captions of the images, for clip, see `caption_lists`; empty for those beside the images.
        num_images: the first ones are measured; 0 for all.
        statistics: a .npz file to write the images' statistics to, which may be a reference later; empty for none.
        overwrite: whether results of other images in `out` are removed.

    Returns:
        The figures, in the main process; None in the others.

    Raises:
        ConfigError: the images, the captions, the weights or the reference cannot be used, or `out` has results of
            other images.
    """
    if not config.names:
        raise ConfigError(f"there are no metrics: give some, such as --metrics=fid; there are {', '.join(METRICS)}")
    folder, captions_origin = _open_images(str(images), config, captions, num_images)
    metrics = MetricSet.load(config)
    if statistics:
        _check_statistics(metrics)
    stream, is_main = metrics.stream(len(folder)), multihost.is_main_process()
    if metrics.needs_texts and not captions:
        _check_texts(folder)
    out = None if out is None else as_path(out)
    if out is not None and is_main:
        _prepare(out, overwrite)
    devices.log_devices("measuring")
    reference = _open_reference(metrics, config, out, is_needed=not statistics)
    measure(stream, folder, out and out / STATES)
    if not is_main:
        return None
    files: list[Path] = []
    if statistics:
        (network,) = _networks_of_statistics(metrics)
        write_statistics(statistics, stream.parts[network].statistics())
        files.append(as_path(statistics))
    figures = {}
    if reference is not None or not metrics.needs_reference:
        figures = metrics.result(stream, reference, captions_origin)
    if out is not None and figures:
        write_json(out / "scores.json", scores_json(None, figures))
        files.append(out / "scores.json")
    return ImagesResult(figures, tuple(files))


def _open_images(
    path: str, config: MetricsConfig, captions: str | Path, num_images: int
) -> tuple[FolderImages, CaptionsOrigin | None]:
    """Returns the images of a folder, with the captions of a file if one is given. Raises ConfigError."""
    folder = FolderImages(path, num_images, config.size_hw)
    if not captions:
        return folder, None
    given = read_caption_list(captions)
    texts = given.of_files(folder.files)
    return FolderImages(path, num_images, config.size_hw, texts), CaptionsOrigin(given.name, given.checksum)


def _open_reference(metrics: MetricSet, config: MetricsConfig, out: Path | None, is_needed: bool) -> Reference | None:
    """Returns the reference, None if none is given and none is needed. Raises ConfigError."""
    if not metrics.needs_reference or (not config.reference and not is_needed):
        return None
    if not config.reference:
        names = ", ".join(name for name in metrics.names if METRICS[name].is_compared)
        raise ConfigError(
            f"{names} is compared with real images: give --reference=DIR, a folder of them, or --reference=FILE.npz, "
            "statistics of them"
        )
    if is_statistics(config.reference):
        return read_reference(metrics, config.reference)
    images = FolderImages(config.reference, config.num_reference, config.size_hw, flag="--reference")
    return measure_reference(metrics, images, out)


def _check_texts(folder: FolderImages) -> None:
    """Raises ConfigError if the first image has no text."""
    if not folder.text(0):
        raise ConfigError(
            f"clip reads the text of each image, and {folder.files[0]} has none: give --captions=FILE, one a line in "
            "the order of the images' names"
        )


def _networks_of_statistics(metrics: MetricSet) -> Sequence[str]:
    return [METRICS[name].network for name in metrics.names if METRICS[name].name == "fid"]


def _check_statistics(metrics: MetricSet) -> None:
    """Raises ConfigError unless exactly one of the metrics is a Frechet distance, whose statistics are written."""
    if len(_networks_of_statistics(metrics)) != 1:
        raise ConfigError(
            f"--write_statistics writes those of one network, and the metrics are {', '.join(metrics.names)}: give "
            "exactly one of fid and fd_lite0"
        )


def _prepare(out: Path, overwrite: bool) -> None:
    """Removes earlier results of a folder if asked to. Raises ConfigError if it has an evaluation of a cascade."""
    if (out / MANIFEST).exists():
        raise ConfigError(f"--out {str(out)!r} has an evaluation of a cascade: give another folder")
    if overwrite:
        for name in (STATES, "scores.json"):
            (out / name).unlink(missing_ok=True)
