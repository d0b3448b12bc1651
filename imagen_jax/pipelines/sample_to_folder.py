"""Sampling prompts into a folder, image by image, resumable after a kill."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np

from imagen_jax.images.grid import image_grid, read_png, save_png
from imagen_jax.parallel import devices, multihost
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.image_record import Recorder
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import Callback, SampleRequest

MAX_GRID = 100  # images of the grid: it has to fit into memory, and into a viewer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FolderResult:
    """What `sample_to_folder` has written: `total` images, of which `existing` were there before.

    `flagged` are the numbers of those that the safety checker has made black in this call.
    """

    out: Path
    total: int
    existing: int
    flagged: tuple[int, ...] = ()

    def summary(self) -> str:
        """Returns the result as lines of text."""
        shown = "all of them" if self.total <= MAX_GRID else f"the first {MAX_GRID}"
        sheet, images = self.out / output_dir.SHEET, self.out / output_dir.IMAGES
        lines = [f"{self.existing} of {self.total} images existed already"] if self.existing else []
        lines.append(f"{self.total} images: {sheet} shows {shown}, {images} has each")
        return "\n".join([*lines, *output_dir.flagged_lines(self.flagged)])


def sample_to_folder(
    pipeline: ImagenPipeline,
    request: SampleRequest,
    out: Path,
    *,
    columns: int = 0,
    overwrite: bool = False,
    callback: Callback | None = None,
    layout: output_dir.Layout = output_dir.FLAT,
) -> FolderResult | None:
    """Samples prompts into a folder; images that are complete from an earlier call with the same request are kept.

    Args:
        pipeline: the cascade.
        request: what to sample.
        out: the folder.
        columns: of the grid; 0 for about as many as rows.
        overwrite: whether images of another request are removed.
        callback: called every few steps of a stage; an exception that it raises ends the call.
        layout: where the images are; in another one than the flat one, there is no grid of all.

    Returns:
        What was written, in the main process; None in the others.

    Raises:
        ConfigError: the folder holds images of another request.
    """
    devices.log_devices("sampling")
    positions = np.array(request.positions)
    pending = np.zeros(len(request.texts.prompts), bool)
    draft = pipeline.draft
    if multihost.is_main_process():
        manifest = output_dir.run_manifest(pipeline.stages, request, pipeline.safety_checker, layout, draft)
        output_dir.prepare(out, manifest, overwrite, layout)
        numbers = [request.number(i) for i in request.positions]
        pending[positions] = output_dir.missing_images(out, numbers, layout)
        recorder = Recorder(pipeline, request, manifest["stages"])
    # as the main process sees it: the folder may be on its machine alone
    pending = multihost.broadcast_from_main(pending)
    flagged: list[int] = []
    for first, by_stage in pipeline.iter_batches(request, pending, callback):
        rows = np.flatnonzero(pending[first : first + len(by_stage[-1])])
        output = pipeline.checked([by_stage[-1][rows]], request.batch_size)
        is_flagged = np.zeros(len(rows), bool) if output.safety is None else output.safety.flagged
        if multihost.is_main_process():
            indices = [request.number(first + int(row)) for row in rows]
            texts = {
                index: recorder.texts(first, int(row), image.shape, flagged=bool(black))
                for index, row, image, black in zip(indices, rows, output.images, is_flagged, strict=True)
            }
            output_dir.save(out, dict(zip(indices, output.images, strict=True)), texts, layout)
            flagged += [index for index, black in zip(indices, is_flagged, strict=True) if black]
    if not multihost.is_main_process():
        return None
    if layout is output_dir.FLAT:
        _save_sheet(out, request, positions[:MAX_GRID], columns)
    return FolderResult(out, len(positions), int(np.sum(~pending[positions])), tuple(flagged))


def _save_sheet(out: Path, request: SampleRequest, positions: np.ndarray, columns: int) -> None:
    """Writes the grid of some images."""
    images = np.stack([read_png(output_dir.image_path(out, request.number(int(i)))) for i in positions])
    prompts = [request.texts.prompts[i] for i in positions]
    save_png(image_grid(images, prompts, columns or math.ceil(math.sqrt(len(prompts)))), out / output_dir.SHEET)
