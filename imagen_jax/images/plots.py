"""Plots: loss curves, and diagnostics of a training run or a cascade."""

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
from imagen_jax.images.labels import displayable, font_families

_PANEL_SIZE = (5.5, 3.6)  # inches
_DPI = 110
_LOSS_PREFIX = "validation_loss_at_noise/"
_COLOR_DRIFT_PREFIX = "color_drift/"
_BOUNDS = {"validation_bound_bits": "negative ELBO", "validation_iwae_bits": "importance-weighted"}
_GROUP_PREFIX = "validation_kl_bits/group_"
# prefixes of metrics written before version 1
_OLD_PREFIXES = {"held_out_loss_at_noise/": _LOSS_PREFIX, "colour_drift/": _COLOR_DRIFT_PREFIX}
_COLORS = {"red": "tab:red", "green": "tab:green", "blue": "tab:blue", "gray": "tab:gray", "rms": "black"}
# Loss-by-noise curves per plot, as many as can be told apart.
_MAX_CURVES = 6


def make_figure(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its axes: one panel, or rows of two."""
    rows, columns = -(-count // 2), min(count, 2)
    # without pyplot, which looks for a display and keeps figures
    figure = Figure(figsize=(columns * _PANEL_SIZE[0], rows * _PANEL_SIZE[1]), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    title = displayable(title)
    # names of runs may be in any script; a dollar sign begins no formula
    figure.suptitle(title, fontfamily=font_families(title), parse_math=False)
    return figure, list(axes.flat)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    save_png(np.asarray(canvas.buffer_rgba())[..., :3], path)


def finish_axes(axes: Axes, **labels: Any) -> None:
    """Adds labels, a grid, and a legend if any curve has a label."""
    axes.set(**labels)
    axes.grid(alpha=0.3, which="both")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")


def _series(metrics: Sequence[Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, values) of a metric, from the lines that contain it."""
    points = [(line["step"], line[name]) for line in metrics if name in line]
    return np.array([step for step, _ in points]), np.array([value for _, value in points])


def _by_suffix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values whose name starts with a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def plot_loss(metrics: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Plots the training loss over steps, raw and smoothed, to a PNG file.

    Args:
        metrics: lines of metrics with `step` and, some, `loss`.
        title: title of the figure.
        path: the file to write.
    """
    steps, losses = _series(metrics, "loss")
    window = max(1, len(losses) // 30)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, (axes,) = make_figure(1, f"{title}: training loss")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, label="loss")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window}")
    finish_axes(axes, xlabel="step", ylabel="loss", yscale="log")
    save_figure(figure, path)


def _rename_old_metrics(line: Mapping[str, float]) -> dict[str, float]:
    """Returns a line of metrics with the current names."""
    for old, new in _OLD_PREFIXES.items():
        line = {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in line.items()}
    return dict(line)


def plot_run_diagnostics(metrics: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Plots the metrics of a stage's previews to a PNG file: validation loss by noise level, and image statistics.

    Args:
        metrics: lines of metrics; those with `saturation` are previews.
        title: title of the figure.
        path: the file to write.
    """
    metrics = [_rename_old_metrics(line) for line in metrics]
    lines = [line for line in metrics if "saturation" in line]
    is_super_resolution = any("consistency_db" in line for line in lines)
    is_vae = any(name in line for line in lines for name in _BOUNDS)
    count = (4 if is_super_resolution else 2) + 2 * is_vae
    figure, axes = make_figure(count, f"{title}: diagnostics of the EMA weights")
    selected = [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, _MAX_CURVES).round().astype(int))]
    colors = colormaps["viridis"](np.linspace(0.9, 0, len(selected)))
    if is_vae:
        *axes, groups_axes, active_axes = axes
        for name, label in _BOUNDS.items():
            axes[0].plot(*_series(lines, name), ".-", label=label)
        finish_axes(axes[0], title="validation bound", xlabel="step", ylabel="bits per dimension")
        _plot_active(active_axes, lines)
    for line, color in zip(selected, colors, strict=True):
        if is_vae:
            _plot_groups(groups_axes, line, f"step {line['step']}", color=color)
        else:
            _plot_loss_by_noise(axes[0], line, f"step {line['step']}", color=color)
    if not is_vae:
        finish_axes(axes[0], title="validation loss by noise level", xlabel="noise level", ylabel="loss", yscale="log")
    else:
        _finish_groups(groups_axes)
    for name, label in (("saturation", "samples"), ("saturation_real", "real images")):
        axes[1].plot(*_series(lines, name), "--" if "real" in name else ".-", label=label)
    finish_axes(axes[1], title="saturation", xlabel="step", ylabel="fraction of values at 0 or 255")
    if is_super_resolution:
        axes[2].plot(*_series(lines, "consistency_db"), ".-")
        finish_axes(axes[2], title="consistency with the low-resolution input", xlabel="step", ylabel="PSNR in dB")
        for channel in _by_suffix(lines[-1], _COLOR_DRIFT_PREFIX):
            axes[3].plot(
                *_series(lines, _COLOR_DRIFT_PREFIX + channel), ".-", color=_COLORS.get(channel), label=channel
            )
        finish_axes(axes[3], title="drift of the mean color", xlabel="step", ylabel="steps of 1/255")
    save_figure(figure, path)


def _plot_groups(axes: Axes, values: Mapping[str, float], label: str, **style: Any) -> None:
    """Plots the divergences of a VAE's groups, from the coarsest to the finest."""
    groups = _by_suffix(values, _GROUP_PREFIX)
    axes.plot(range(len(groups)), list(groups.values()), ".-", label=label, **style)


def _finish_groups(axes: Axes) -> None:
    finish_axes(axes, title="KL divergence of groups, from coarse to fine", xlabel="group", ylabel="bits per dimension")


def _plot_active(axes: Axes, lines: Sequence[Mapping[str, float]]) -> None:
    """Plots how many of a VAE's groups, and which share of its latents, are active."""
    count = len(_by_suffix(lines[-1], _GROUP_PREFIX))
    steps, groups = _series(lines, "active_groups")
    axes.plot(steps, groups / max(count, 1), ".-", label=f"groups, of {count}")
    axes.plot(*_series(lines, "active_units"), ".-", label="latents")
    finish_axes(axes, title="active groups and latents", xlabel="step", ylabel="share", ylim=(-0.05, 1.05))


def _plot_loss_by_noise(axes: Axes, values: Mapping[str, float], label: str, **style: Any) -> None:
    """Plots validation losses over the noise level."""
    losses = {level: loss for level, loss in _by_suffix(values, _LOSS_PREFIX).items() if _is_float(level)}
    axes.plot([float(level) for level in losses], list(losses.values()), ".-", label=label, **style)


def _is_float(text: str) -> bool:
    """Returns whether a noise level is one: metrics are read from a file, where a bit may have flipped."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], title: str, ylabel: str, path: Path, xlabel: str = "level"
) -> None:
    """Plots curves to a PNG file, each with a panel of its own, on a common vertical axis.

    Args:
        curves: points (x, y) by the name of the panel.
        title: title of the figure.
        ylabel: what is plotted.
        path: the file to write.
        xlabel: of the horizontal axes.
    """
    figure, axes = make_figure(len(curves), title)
    highest = max(y for points in curves.values() for _, y in points)
    for panel, (name, points) in zip(axes, curves.items(), strict=True):
        x, y = zip(*points, strict=True)
        panel.plot(x, y, marker="o", color="tab:blue")
        finish_axes(panel, title=name, xlabel=xlabel, ylabel=ylabel, ylim=(0, 1.05 * highest))
    save_figure(figure, path)


def plot_cascade_diagnostics(stages: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Plots the metrics of each stage of a cascade to a PNG file.

    Args:
        stages: metrics by name of the stage, base first.
        path: the file to write.
    """
    sr_stages = {name: values for name, values in stages.items() if "consistency_db" in values}
    vaes = {name: values for name, values in stages.items() if "active_groups" in values}
    figure, axes = make_figure((4 if sr_stages else 2) + 2 * bool(vaes), "diagnostics of the cascade")
    if vaes:
        *axes, bound_axes, groups_axes = axes
        bounds = {name: {label: values[key] for key, label in _BOUNDS.items()} for name, values in vaes.items()}
        _grouped_bars(bound_axes, bounds)
        finish_axes(bound_axes, title="validation bound of VAEs", ylabel="bits per dimension")
        for name, values in vaes.items():
            _plot_groups(groups_axes, values, f"{name}: {values['active_groups']:.0f} groups are active")
        _finish_groups(groups_axes)
    for name, values in stages.items():
        if name not in vaes:
            _plot_loss_by_noise(axes[0], values, name)
    finish_axes(axes[0], title="validation loss by noise level", xlabel="noise level", ylabel="loss", yscale="log")
    saturations = {"samples": "saturation", "real images": "saturation_real"}
    _grouped_bars(axes[1], {name: {label: v[key] for label, key in saturations.items()} for name, v in stages.items()})
    finish_axes(axes[1], title="saturation", ylabel="fraction of values at 0 or 255")
    if sr_stages:
        _grouped_bars(axes[2], {name: {"": values["consistency_db"]} for name, values in sr_stages.items()})
        finish_axes(axes[2], title="consistency with the low-resolution input", ylabel="PSNR in dB")
        _grouped_bars(
            axes[3], {name: _by_suffix(values, _COLOR_DRIFT_PREFIX) for name, values in sr_stages.items()}, _COLORS
        )
        axes[3].axhline(0, color="black", linewidth=0.8)
        finish_axes(axes[3], title="drift of the mean color", ylabel="steps of 1/255")
    save_figure(figure, path)


def _grouped_bars(
    axes: Axes, groups: Mapping[str, Mapping[str, float]], colors: Mapping[str, str] | None = None
) -> None:
    """Plots a group of bars for each name, labeled with their values."""
    labels = list(next(iter(groups.values())))
    width = 0.8 / len(labels)
    for index, label in enumerate(labels):
        left = np.arange(len(groups)) + (index - (len(labels) - 1) / 2) * width
        heights = [group[label] for group in groups.values()]
        container = axes.bar(left, heights, width, label=label or None, color=colors and colors.get(label))
        axes.bar_label(container, fmt="%.3g", fontsize="small", padding=2)
    axes.margins(x=0.3 / len(groups), y=0.15)
    axes.set_xticks(np.arange(len(groups)), list(groups))
