"""Draw pictures: ``python -m imagen_jax.sample --stages=DIR,DIR --prompts='a red circle; two blue squares' --out=DIR``.

Writes ``OUT/images/NNNN.png``, a picture for each prompt, batch by batch; ``OUT/samples.png``, a grid of the first ones
with the prompts under them; and ``OUT/samples.json``, what was asked for. Run again with the same prompts, seed and
settings after a break, it goes on: what is there is kept. The same seed, prompt and place in the list give the same
picture, at any batch size and on any mesh.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from absl import flags

from imagen_jax import commands, mesh_flags, pictures, processes, sampling_flags
from imagen_jax.cascade import load_cascade
from imagen_jax.errors import UsageError
from imagen_jax.grids import draw_grid, read_png, save_png

STAGES = flags.DEFINE_string("stages", None, "Stage folders, the base first, separated by commas.")
PROMPTS = flags.DEFINE_string("prompts", None, "What to draw, separated by semicolons.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "A text file with a prompt on each line, instead of --prompts."
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other pictures.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures to draw at once.", lower_bound=1)
COLUMNS = flags.DEFINE_integer("columns", 0, "Columns of the grid; 0: about as many as rows.", lower_bound=0)
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Pictures of another run that OUT has are removed.")
flags.adopt_module_key_flags(mesh_flags)
flags.adopt_module_key_flags(sampling_flags)
SHOWN = 100  # pictures of the grid at most: it has to fit into memory, and into a viewer


def main() -> None:
    """Draws the prompts of the flags."""
    prompts = read_prompts(PROMPTS.value, PROMPTS_FILE.value)
    folders = commands.stage_folders(STAGES.value)
    weights = sampling_flags.prompt_weights(len(folders), len(prompts))
    changes = sampling_flags.stage_changes(len(folders), with_guidance=weights is None)
    cascade = load_cascade(folders, mesh_flags.sampling_mesh(), changes)
    out = commands.writable_folder(OUT.value, "out", "runs/samples")

    wanted = np.ones(len(prompts), bool)
    if processes.writes():
        asked = pictures.asked_for(cascade.stages, folders, prompts, SEED.value, weights)
        pictures.begin(out, asked, OVERWRITE.value)
        wanted = pictures.missing(out, len(prompts))
    # by what one process sees: the folder may be on its machine alone
    wanted = processes.of_the_writer(wanted)
    if not wanted.all():
        print(f"{np.sum(~wanted)} of {len(prompts)} pictures are there already")
    for first, drawn in cascade.draw_batches(prompts, SEED.value, BATCH_SIZE.value, weights, wanted):
        if processes.writes():
            pictures.save(out, drawn[-1], first, wanted)
    if not processes.writes():
        return

    shown = prompts[:SHOWN]
    images = np.stack([read_png(pictures.picture_path(out, index)) for index in range(len(shown))])
    save_png(draw_grid(images, shown, COLUMNS.value or math.ceil(math.sqrt(len(shown)))), out / pictures.SHEET)
    shows = "them all" if len(shown) == len(prompts) else f"the first {SHOWN}"
    print(f"{len(prompts)} pictures: {out / pictures.SHEET} shows {shows}, {out / pictures.IMAGES} has each")


def read_prompts(text: str | None, file: str | None) -> list[str]:
    """The prompts of the flags. Raises UsageError if there is none, or the file cannot be read."""
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts_file {file!r} cannot be read as text: {error}") from error
    else:
        lines = (text or "").split(";")
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError("there is no prompt to draw: give for example --prompts='a red circle; two blue squares'")
    return prompts


if __name__ == "__main__":
    commands.run(main, several_processes=True)
