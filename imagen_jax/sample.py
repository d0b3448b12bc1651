"""Draw pictures: ``python -m imagen_jax.sample --stages=DIR,DIR --prompts='a red circle; two blue squares' --out=DIR``.

Writes ``OUT/samples.png``, a grid with the prompts under the pictures, and ``OUT/images/NNNN.png``, one a prompt. The
same seed, prompt and place in the list give the same picture, at any batch size and on any mesh.
"""

from __future__ import annotations

import math
from pathlib import Path

from absl import flags

from imagen_jax import commands, sharding
from imagen_jax.cascade import load_cascade
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
SAMPLER = flags.DEFINE_list(
    "sampler", [], "ddpm, ddim, dpm_solver or heun; one for each stage, or one for all; the config's by default."
)
STEPS = flags.DEFINE_list("steps", [], "Steps, likewise.")
GRID = flags.DEFINE_list("grid", [], "Times of the steps, likewise: uniform, quadratic or karras.")
VARIANCE = flags.DEFINE_list("variance", [], "Variance of ddpm's noise, likewise: small, large or learned.")
ETA = flags.DEFINE_list("eta", [], "Noise of ddim in [0, 1], likewise; 0 is none.")
CHURN = flags.DEFINE_list("churn", [], "Noise that heun adds on its way, likewise; 0 is none.")
GUIDANCE = flags.DEFINE_list("guidance", [], "Guidance weight, likewise; 1 is none.")
AUG_LEVEL = flags.DEFINE_list("aug_level", [], "Noise in [0, 1] added to a low-resolution image, likewise.")
TILE_SIZE = flags.DEFINE_list("tile_size", [], "Side of the tiles that images are drawn in, likewise; 0: whole.")
TILE_OVERLAP = flags.DEFINE_list("tile_overlap", [], "Pixels that neighbouring tiles share, likewise.")
BITS = flags.DEFINE_list("bits", [], "Bits a channel of the pictures, likewise: 8 or 16.")


def main() -> None:
    """Draws the prompts of the flags."""
    prompts = read_prompts(PROMPTS.value, PROMPTS_FILE.value)
    folders = commands.stage_folders(STAGES.value)
    changes = stage_changes(len(folders))
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1})
    cascade = load_cascade(folders, mesh, changes)
    out = commands.writable_folder(OUT.value, "out", "runs/samples")

    images = cascade.draw_all(prompts, SEED.value, BATCH_SIZE.value)[-1]
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


def stage_changes(stages: int) -> list[dict[str, object]]:
    """What the flags change in the sampling settings of each stage. Raises UsageError for wrong counts or numbers."""
    changes: list[dict[str, object]] = [{} for _ in range(stages)]
    for name, values, kind in (
        ("sampler", SAMPLER.value, str),
        ("steps", STEPS.value, int),
        ("grid", GRID.value, str),
        ("variance", VARIANCE.value, str),
        ("eta", ETA.value, float),
        ("churn", CHURN.value, float),
        ("guidance", GUIDANCE.value, float),
        ("aug_level", AUG_LEVEL.value, float),
        ("tile_size", TILE_SIZE.value, int),
        ("tile_overlap", TILE_OVERLAP.value, int),
        ("bits", BITS.value, int),
    ):
        if len(values) not in (0, 1, stages):
            raise UsageError(
                f"--{name} has {len(values)} values for {stages} stages: give one for all, or one for each"
            )
        for stage, value in zip(changes, values * stages if len(values) == 1 else values, strict=False):
            try:
                stage[name] = kind(value)
            except ValueError as error:
                raise UsageError(f"--{name} {value!r} is not a number") from error
    return changes


if __name__ == "__main__":
    commands.run(main)
