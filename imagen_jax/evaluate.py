"""Score a cascade: ``python -m imagen_jax.evaluate --stages=DIR,DIR --config=configs/shapes_eval.py --out=DIR``.

Draws the config's captions and judges whether each picture shows what its caption says. Writes ``OUT/scores.json`` (for
each row: right, total, rate and its 95% interval), and ``OUT/right.png`` and ``OUT/wrong.png``, some pictures of each;
without a judge (``judge = ""``), as of photographs, ``OUT/drawn.png``, some pictures. In any case
``OUT/diagnostics.json`` and ``OUT/diagnostics.png``: of each stage the losses on real pictures of the split by noise
level, the consistency with the stage before, the drift of colours and the share of saturated values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands, mesh_flags, processes, sampling_flags
from imagen_jax.cascade import load_cascade
from imagen_jax.data.captions import Captions
from imagen_jax.data.examples import first_caption
from imagen_jax.data.sources import make_source
from imagen_jax.errors import UsageError
from imagen_jax.evaluation.alignment import check_captions, make_judge, scores_table
from imagen_jax.evaluation.diagnostics import diagnose, diagnostics_table, write_diagnostics
from imagen_jax.files import write_json
from imagen_jax.grids import draw_grid, save_png

STAGES = flags.DEFINE_string("stages", None, "Stage folders, the base first, separated by commas.")
CONFIG = config_flags.DEFINE_config_file("config", None, "What to score, such as configs/shapes_eval.py.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
flags.adopt_module_key_flags(mesh_flags)
flags.adopt_module_key_flags(sampling_flags)
SHOWN = 32


def main() -> None:
    """Scores the cascade of the flags."""
    config = commands.required_config(CONFIG.value)
    if config.count < 1 or config.batch_size < 1:
        raise UsageError(f"config.count {config.count} and config.batch_size {config.batch_size} must be at least 1")
    judge = make_judge(config.judge) if config.judge else None
    folders = commands.stage_folders(STAGES.value)
    mesh = mesh_flags.sampling_mesh()
    cascade = load_cascade(folders, mesh, sampling_flags.stage_changes(len(folders)))
    found = Captions([make_source(config.data, config.data.split, cascade.image_size)])
    captions = [first_caption(found[i % len(found)]) for i in range(config.count)]
    if judge:
        check_captions(config.judge, captions)
    out = commands.writable_folder(OUT.value, "out", "runs/scores")

    drawn = cascade.draw_all(captions, config.seed, config.batch_size)
    measured = diagnose(cascade.stages, drawn, config.data, config.batch_size, mesh)
    if not processes.writes():
        return
    write_diagnostics(out, cascade.stages, measured)
    print(diagnostics_table(cascade.stages, measured))
    said = f"{config.count} captions of the {config.data.split} split"
    if judge is None:
        write_some(drawn[-1], captions, range(config.count), out / "drawn.png")
        print(f"{said}; {out / 'drawn.png'} shows some, {out / 'diagnostics.json'} has these figures")
        return
    scores, right = judge(drawn[-1], captions)
    write_json(out / "scores.json", scores)
    write_some(drawn[-1], captions, np.flatnonzero(right), out / "right.png")
    write_some(drawn[-1], captions, np.flatnonzero(~right), out / "wrong.png")
    print(scores_table(scores))
    print(f"{said}; {out / 'scores.json'} has these figures")


def write_some(images: np.ndarray, captions: Sequence[str], chosen: Sequence[int] | np.ndarray, path: Path) -> None:
    """Writes a grid of the first of the chosen pictures, if there are any, with their captions."""
    some = list(chosen[:SHOWN])
    if some:
        save_png(draw_grid(images[some], [captions[i] for i in some], columns=8), path)


if __name__ == "__main__":
    commands.run(main, several_processes=True)
