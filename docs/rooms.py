"""Draw the rooms of the package and the rows they stand in: `python docs/rooms.py` writes docs/images/rooms.svg.

The rows are those of the layers contract in .importlinter.
"""

import configparser
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).parent
PICTURE = DOCS / "images" / "rooms.svg"

CONTENTS = {
    "cli": "the imagen commands: flags, print, exit codes",
    "serving": "imagen serve: queue, HTTP API, page",
    "planning": "compiles for absent TPUs",
    "publishing": "cascades for others",
    "conversion": "to and from diffusers",
    "training": "the loop, optimizers, fault handling",
    "evaluation": "judges, scores, diagnostics, previews",
    "pipelines": "ImagenPipeline: prompts to images",
    "inspection": "what is in a data set",
    "stages": "a stage: network, sampler, loss, checkpoints",
    "datasets": "folder, tar shards, TFDS, mixtures, shapes, figures, digits",
    "config": "schema of all keys, loading, migrations",
    "data": "records to batches",
    "text": "tokenizers, T5, CLIP, embedding cache",
    "diffusion": "schedules, samplers, guidance",
    "variational": "likelihoods, KL, bounds",
    "models": "U-Nets, T5 and CLIP in Flax",
    "images": "arrays, grids, PNG, plots",
    "parallel": "meshes, sharding, processes",
    "io": "atomic files, checksums",
    "errors": "ConfigError, TrainingError",
}


def read_rows() -> list[list[str]]:
    """Returns the rooms of each row of the layers contract, the highest row first."""
    contract = configparser.ConfigParser()
    contract.read(DOCS.parent / ".importlinter")
    layers = contract["importlinter:contract:layers"]["layers"]
    return [[room.strip() for room in row.split("|")] for row in layers.split("\n") if row.strip()]


def draw_rooms(rows: list[list[str]]) -> Figure:
    """Returns a figure with a box for each room; raises KeyError for a room that `CONTENTS` does not describe."""
    figure = Figure(figsize=(9, 0.52 * len(rows) + 0.2))
    axes = figure.add_axes((0.02, 0.01, 0.96, 0.98))
    axes.set(xlim=(0, 10), ylim=(len(rows), 0))
    axes.axis("off")
    for index, rooms in enumerate(rows):
        width = 9.6 / len(rooms)
        for number, room in enumerate(rooms):
            left = number * width
            box = FancyBboxPatch(
                (left + 0.05, index + 0.12), width - 0.1, 0.74, boxstyle="round,pad=0,rounding_size=0.08"
            )
            box.set(facecolor="#eaf1fb", edgecolor="#5b7fb5", linewidth=0.8)
            axes.add_patch(box)
            axes.text(left + 0.15, index + 0.5, room, fontsize=9.5, weight="bold", va="center", color="#1d3557")
            axes.text(left + 1.4, index + 0.5, CONTENTS[room], fontsize=8.5, va="center", color="#333333")
    arrow = {"arrowstyle": "-|>", "color": "#5b7fb5", "linewidth": 1.2}
    axes.annotate("", xy=(9.8, len(rows) - 0.15), xytext=(9.8, 0.15), arrowprops=arrow)
    axes.text(9.93, len(rows) / 2, "imports", fontsize=8, rotation=270, va="center", ha="center", color="#5b7fb5")
    return figure


def main() -> None:
    """Writes the picture."""
    # text as text, and no date or random ids: the same file each time
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "rooms"}):
        draw_rooms(read_rows()).savefig(PICTURE, metadata={"Date": None, "Creator": None}, facecolor="white")


if __name__ == "__main__":
    main()
