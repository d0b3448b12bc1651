"""Every figure of numbers that the project draws: curves of a training run, diagnostics of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from imagen_jax.images.grid import save_png

PANEL = (5.5, 3.6)  # inches
DPI = 110
NOISE = "validation_loss_at_noise/"
DRIFT = "color_drift/"
_OLD_PREFIXES = {"held_out_loss_at_noise/": NOISE, "colour_drift/": DRIFT}  # of metrics written before version 1
COLOURS = {"red": "tab:red", "green": "tab:green", "blue": "tab:blue", "gray": "tab:gray", "rms": "black"}
# Of a run's curves of losses by noise, as many are drawn as can be told apart.
CURVES = 6


def panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of 1 panel, or of rows of two."""
    rows, columns = max(count // 2, 1), min(count, 2)
    # without pyplot, which looks for a screen and keeps figures
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1]), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title)
    return figure, list(axes.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """The figure as a PNG."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(np.asarray(canvas.buffer_rgba())[..., :3], path)


def finish(axes: Axes, **labels: Any) -> None:
    """Labels, a grid, and a legend if anything has a name."""
    axes.set(**labels)
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def series(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a metric, of the lines that have it."""
    found = [(line["step"], line[name]) for line in metrics if name in line]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def named(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values whose name begins with a prefix, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def draw_loss(metrics: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """The training loss over the steps: as measured, and smoothed."""
    steps, losses = series(metrics, "loss")
    window = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, (axes,) = panels(1, f"{title}: training loss")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window}")
    finish(axes, xlabel="step", ylabel="loss", yscale="log")
    save_figure(figure, path)


def _rename_old_metrics(line: Mapping[str, float]) -> dict[str, float]:
    """Returns a line of metrics with the current names."""
    for old, new in _OLD_PREFIXES.items():
        line = {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in line.items()}
    return dict(line)


def draw_run_diagnostics(metrics: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """What was measured at the previews of a stage: held-out losses by noise, and how its pictures changed."""
    metrics = [_rename_old_metrics(line) for line in metrics]
    lines = [line for line in metrics if "saturation" in line]
    is_super_resolution = any("consistency_db" in line for line in lines)
    figure, axes = panels(4 if is_super_resolution else 2, f"{title}: diagnostics of the EMA weights")
    shown = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, CURVES).round().astype(int))]
    colours = colormaps["viridis"](np.linspace(0.9, 0, len(shown)))
    for line, colour in zip(shown, colours, strict=True):
        plot_by_noise(axes[0], line, f"step {line['step']}", color=colour)
    finish(axes[0], title="held-out loss by noise level", xlabel="noise level", ylabel="loss", yscale="log")
    for name, label in (("saturation", "drawn"), ("saturation_real", "real pictures")):
        axes[1].plot(*series(lines, name), "--" if "real" in name else ".-", label=label)
    finish(axes[1], title="saturation", xlabel="step", ylabel="share of values at 0 or 255")
    if is_super_resolution:
        axes[2].plot(*series(lines, "consistency_db"), ".-")
        finish(axes[2], title="consistency with the low-resolution input", xlabel="step", ylabel="PSNR in dB")
        for channel in named(lines[-1], DRIFT):
            axes[3].plot(*series(lines, DRIFT + channel), ".-", color=COLOURS.get(channel), label=channel)
        finish(axes[3], title="drift of the mean colour", xlabel="step", ylabel="steps of 1/255")
    save_figure(figure, path)


def plot_by_noise(axes: Axes, values: Mapping[str, float], label: str, **style: Any) -> None:
    """Held-out losses over the noise level."""
    losses = named(values, NOISE)
    axes.plot([float(level) for level in losses], list(losses.values()), ".-", label=label, **style)


def draw_cascade_diagnostics(stages: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """What was measured of each stage of a cascade, by its name, base first."""
    larger = {name: values for name, values in stages.items() if "consistency_db" in values}
    figure, axes = panels(4 if larger else 2, "diagnostics of the cascade")
    for name, values in stages.items():
        plot_by_noise(axes[0], values, name)
    finish(axes[0], title="held-out loss by noise level", xlabel="noise level", ylabel="loss", yscale="log")
    saturations = {"drawn": "saturation", "real pictures": "saturation_real"}
    bars(axes[1], {name: {label: v[key] for label, key in saturations.items()} for name, v in stages.items()})
    finish(axes[1], title="saturation", ylabel="share of values at 0 or 255")
    if larger:
        bars(axes[2], {name: {"": values["consistency_db"]} for name, values in larger.items()})
        finish(axes[2], title="consistency with the low-resolution input", ylabel="PSNR in dB")
        bars(axes[3], {name: named(values, DRIFT) for name, values in larger.items()}, COLOURS)
        axes[3].axhline(0, color="black", linewidth=0.8)
        finish(axes[3], title="drift of the mean colour", ylabel="steps of 1/255")
    save_figure(figure, path)


def bars(axes: Axes, groups: Mapping[str, Mapping[str, float]], colours: Mapping[str, str] | None = None) -> None:
    """A group of bars side by side for each name, with their values written on them."""
    labels = list(next(iter(groups.values())))
    width = 0.8 / len(labels)
    for place, label in enumerate(labels):
        left = np.arange(len(groups)) + (place - (len(labels) - 1) / 2) * width
        heights = [group[label] for group in groups.values()]
        drawn = axes.bar(left, heights, width, label=label or None, color=colours and colours.get(label))
        axes.bar_label(drawn, fmt="%.3g", fontsize="small", padding=2)
    axes.margins(x=0.3 / len(groups), y=0.15)
    axes.set_xticks(np.arange(len(groups)), list(groups))
