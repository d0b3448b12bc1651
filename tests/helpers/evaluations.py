"""Folders of evaluations, written as the commands write them, without a cascade that samples."""

import json

import numpy as np

from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import Scene, SceneObject
from imagen_jax.evaluation.blind.votes import Key, RaterVotes, count_votes
from imagen_jax.evaluation.fairness.groups import parse_groups
from imagen_jax.evaluation.fairness.judges import shapes_judge
from imagen_jax.evaluation.fairness.measure import measure
from imagen_jax.evaluation.figures import CaptionsOrigin, Figure, ImagesOrigin, ReferenceOrigin
from imagen_jax.evaluation.judges import get_judge
from imagen_jax.evaluation.prompts.benchmark import read_benchmark, score_benchmark
from imagen_jax.evaluation.sample_metrics import scores_json
from imagen_jax.evaluation.sweep_points import make_points
from imagen_jax.evaluation.sweep_results import SweepResults
from imagen_jax.images.grid import image_grid, save_png
from imagen_jax.io.atomic import write_json

COLORS = ("red", "blue", "green", "red")
AXES = {"guidance_scale": [1.0, 2.0, 4.0], "sampler": ["ddim", "ddpm"]}


def circle(color, size=32):
    """Returns an image of a large circle in the middle."""
    return render(Scene((SceneObject("circle", color, "large", 0.5, 0.5, 0.21),), "white"), size)


def figure(value, images=64, reference="5e1234ffdb62", resizing="clean", **spreads):
    """Returns a figure of FD-lite0 or the like."""
    details = {
        "network": "efficientnet-lite0",
        "weights": "dc78347bfef2",
        "resizing": resizing,
        "images": ImagesOrigin(images, f"{value:032.3f}")._asdict(),
        "reference": ReferenceOrigin("real_100%", reference, 64)._asdict(),
        "captions": CaptionsOrigin("captions.csv", "0f343b09")._asdict(),
    }
    return Figure(value, spreads, details)


def write_scores(folder, wrong=0, figures=None, captions="968247ce210a30ee"):
    """Writes what `imagen evaluate` does with the judge of shapes; the first images of `wrong` have another color."""
    drawn = [circle("pink" if index < wrong else color) for index, color in enumerate(COLORS)]
    texts = [f"a {color} circle" for color in COLORS]
    scores, correct = get_judge("shapes")(np.stack(drawn), texts)
    write_json(folder / "scores.json", scores_json(scores, figures or {}))
    write_json(folder / "evaluation.json", {"config": {"judge": "shapes"}, "captions": captions})
    for name, chosen in (("correct", correct), ("incorrect", ~correct)):
        indices = np.flatnonzero(chosen)
        if len(indices):
            grid = image_grid(np.stack(drawn)[indices], [texts[index] for index in indices], columns=4)
            save_png(grid, folder / f"{name}.png")
    return folder


def write_prompts(folder, colors=COLORS):
    """Writes images of circles of some colors in GenEval's layout; all are to be red."""
    question = {
        "tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle",
    }  # fmt: skip
    for index, part in enumerate((colors[:2], colors[2:])):
        for number, color in enumerate(part):
            save_png(circle(color), folder / f"{index:05d}" / "samples" / f"{number:04d}.png")
        images = np.stack([circle(color) for color in part])
        save_png(image_grid(images, [""] * len(part), 2), folder / f"{index:05d}" / "grid.png")
        (folder / f"{index:05d}" / "metadata.jsonl").write_text(json.dumps(question))
    return read_benchmark(folder, "red_circles")


def write_benchmark(folder, colors=COLORS):
    """Writes what `imagen benchmark_prompts` does."""
    score_benchmark(write_prompts(folder, colors), judge="shapes")
    return folder


def write_fairness(folder, colors=COLORS):
    """Writes what `imagen fairness` does."""
    groups = parse_groups("red,blue")
    measure(write_prompts(folder, colors), groups, shapes_judge(groups), "shapes", {"red": 0.5, "blue": 0.5})
    return folder


def write_votes(path, choices="aab"):
    """Writes what `imagen votes --out` does."""
    items = {f"{index:04d}": {"left": "a", "prompt": "a circle", "category": "colors"} for index in range(len(choices))}
    key = Key(format="imagen_jax blind key 1", page="f", a="runs/a_1", b="runs/b", items=items)
    sides = {"a": "left", "b": "right", "t": "tie"}
    cast = {item: {"fidelity": sides[choice]} for item, choice in zip(items, choices, strict=True)}
    raters = [RaterVotes(format="imagen_jax votes 1", page="f", rater=name, votes=cast) for name in ("Ann", "Ben")]
    write_json(path, count_votes(key, raters))
    return path


def write_sweep(folder, shift=0.0, reference="5e1234ffdb62"):
    """Writes what `imagen sweep` does."""
    points = make_points(AXES)
    rows = []
    for index, point in enumerate(points):
        rate = 0.5 + 0.05 * index
        alignment = {"value": rate, "low": rate - 0.1, "high": rate + 0.1, "total": 64}
        row = {
            "alignment": alignment,
            "fd_lite0": figure(80.0 + shift + (index - 2) ** 2, reference=reference).to_json(),
        }
        rows.append(row)
        save_png(circle(COLORS[index % 4]), folder / "points" / point.name / "images" / "00.png")
    results = SweepResults(points, rows, "guidance_scale").to_json()
    captions = CaptionsOrigin("captions.csv", "0f343b09")._asdict()
    write_json(folder / "sweep.json", {"stage": 0, "axes": AXES, "captions": captions, **results})
    return folder
