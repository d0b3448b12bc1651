"""Draw pictures: ``python -m imagen_jax.sample --stages=DIR,DIR --prompts='a red circle; two blue squares' --out=DIR``.

Writes ``OUT/samples.png``, a grid with the prompts under the pictures, and ``OUT/images/NNNN.png``, one a prompt. The
same seed, prompt and place in the list give the same picture, at any batch size and on any mesh.
"""

from __future__ import annotations

import math
from pathlib import Path

from absl import flags

from imagen_jax import commands, processes, sampling_flags, sharding
from imagen_jax.cascade import SAMPLING_MESH, load_cascade
from imagen_jax.errors import UsageError
from imagen_jax.grids import draw_grid, save_png

STAGES = flags.DEFINE_string("stages", None, "Stage folders, the base first, separated by commas.")
PROMPTS = flags.DEFINE_string("prompts", None, "What to draw, separated by semicolons.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "A text file with a prompt on each line, instead of --prompts."
)
OUT = flags.DEFINE_string("out", None, "The folder to write to.")
SEED = flags.DEFINE_integer("seed", 0, "Another seed gives other pictures.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Pictures to draw at once.", lower_bound=1)
COLUMNS = flags.DEFINE_integer("columns", 0, "Columns of the grid; 0: about as many as rows.", lower_bound=0)
flags.adopt_module_key_flags(sampling_flags)


def main() -> None:
    """Draws the prompts of the flags."""
    prompts = read_prompts(PROMPTS.value, PROMPTS_FILE.value)
    folders = commands.stage_folders(STAGES.value)
    weights = sampling_flags.prompt_weights(len(folders), len(prompts))
    changes = sampling_flags.stage_changes(len(folders), with_guidance=weights is None)
    cascade = load_cascade(folders, sharding.make_mesh(SAMPLING_MESH), changes)
    out = commands.writable_folder(OUT.value, "out", "runs/samples")

    images = cascade.draw_all(prompts, SEED.value, BATCH_SIZE.value, weights)[-1]
    if not processes.writes():
        return
    for index, image in enumerate(images):
        save_png(image, out / "images" / f"{index:04d}.png")
    columns = COLUMNS.value or math.ceil(math.sqrt(len(prompts)))
    save_png(draw_grid(images, prompts, columns), out / "samples.png")
    print(f"{len(prompts)} pictures: {out / 'samples.png'} shows them all, {out / 'images'} has each")


def read_prompts(text: str | None, file: str | None) -> list[str]:
    """The prompts of the flags. Raises UsageError if there is none, or the file cannot be read."""
    if file is not None:
        try:
            lines = Path(file).read_text().splitlines()
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
