"""Score a cascade: ``python -m imagen_jax.evaluate --stages=DIR,DIR --config=configs/shapes_eval.py --out=DIR``.

Draws the config's captions and judges whether each picture shows what its caption says. Writes ``OUT/scores.json`` (for
each row: right, total, rate and its 95% interval), and ``OUT/right.png`` and ``OUT/wrong.png``, some pictures of each;
``OUT/diagnostics.json`` and ``OUT/diagnostics.png``: of each stage the losses on real pictures of the split by noise
level, the consistency with the stage before, the drift of colours and the share of saturated values.
"""

from __future__ import annotations

import numpy as np
from absl import flags
from ml_collections import config_flags

from imagen_jax import commands, processes, sampling_flags
from imagen_jax.cascade import load_cascade
from imagen_jax.data.examples import first_caption
from imagen_jax.data.sources import make_source
from imagen_jax.errors import UsageError
from imagen_jax.evaluation.alignment import make_judge, scores_table
from imagen_jax.evaluation.diagnostics import diagnose, diagnostics_table, write_diagnostics
from imagen_jax.files import write_json
from imagen_jax.grids import draw_grid, save_png

STAGES = flags.DEFINE_string("stages", None, "Stage folders, the base first, separated by commas.")
CONFIG = config_flags.DEFINE_config_file("config", None, "What to score, such as configs/shapes_eval.py.")
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
flags.adopt_module_key_flags(sampling_flags)
SHOWN = 32


def main() -> None:
    """Scores the cascade of the flags."""
    config = commands.required_config(CONFIG.value)
    if config.count < 1 or config.batch_size < 1:
        raise UsageError(f"config.count {config.count} and config.batch_size {config.batch_size} must be at least 1")
    judge = make_judge(config.judge)
    folders = commands.stage_folders(STAGES.value)
    mesh = sampling_flags.sampling_mesh()
    cascade = load_cascade(folders, mesh, sampling_flags.stage_changes(len(folders)))
    source = make_source(config.data, config.data.split, cascade.image_size)
    captions = [first_caption(source.captions(i % len(source))) for i in range(config.count)]
    out = commands.writable_folder(OUT.value, "out", "runs/scores")

    drawn = cascade.draw_all(captions, config.seed, config.batch_size)
    measured = diagnose(cascade.stages, drawn, config.data, config.batch_size, mesh)
    if not processes.writes():
        return
    images = drawn[-1]
    scores, right = judge(images, captions)
    write_json(out / "scores.json", scores)
    for name, chosen in (("right", np.flatnonzero(right)[:SHOWN]), ("wrong", np.flatnonzero(~right)[:SHOWN])):
        if len(chosen):
            save_png(draw_grid(images[chosen], [captions[i] for i in chosen], columns=8), out / f"{name}.png")
    write_diagnostics(out, cascade.stages, measured)
    print(diagnostics_table(cascade.stages, measured))
    print(scores_table(scores))
    print(f"{config.count} captions of the {config.data.split} split; {out / 'scores.json'} has these figures")


if __name__ == "__main__":
    commands.run(main, several_processes=True)
