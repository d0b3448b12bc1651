import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import plots
from imagen_jax.images.plots import _by_suffix, _series, plot_cascade_diagnostics, plot_loss, plot_run_diagnostics

CURVE = {"validation_loss_at_noise/0.25": 0.5, "validation_loss_at_noise/0.75": 0.1}
SR_METRICS = {"consistency_db": 30.0, "color_drift/red": 1.0, "color_drift/rms": 2.0}
SATURATIONS = {"saturation": 0.1, "saturation_real": 0.2}
VAE_METRICS = {
    **{"validation_bound_bits": 3.0, "validation_iwae_bits": 2.5, "active_groups": 1.0, "active_units": 0.25},
    **{"validation_kl_bits/group_00": 0.5, "validation_kl_bits/group_01": 0.0},
}
STAGES = {"8×8": SATURATIONS | CURVE, "16×16": SATURATIONS | CURVE | SR_METRICS}


@pytest.fixture
def plotted(monkeypatch, tmp_path):
    """Returns a function that plots a figure, and returns the lines and bars of each panel."""
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))

    def plotted(plot, *arguments):
        plot(*arguments, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image))) > 10
        assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
        return [
            ([line.get_xydata().tolist() for line in axes.lines], [bar.get_height() for bar in axes.patches])
            for axes in figures[-1].axes
        ]

    return plotted


def test_series():
    steps, values = _series([{"step": 1, "loss": 5.0}, {"step": 1, "other": 7.0}, {"step": 2, "loss": 4.0}], "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [5.0, 4.0])
    assert _by_suffix({"a/b": 1, "a/c": 2, "d": 3}, "a/") == {"b": 1, "c": 2}


def test_loss_is_plotted_raw_and_smoothed(plotted):
    metrics = [{"step": step, "loss": float(step % 2 + 1)} for step in range(1, 61)]
    (((measured, smooth), _),) = plotted(plot_loss, [*metrics, {"step": 60, **SATURATIONS}], "base")
    assert measured == [[line["step"], line["loss"]] for line in metrics]
    # the mean of two
    assert smooth == [[step, 1.5] for step in range(2, 61)]


def test_titles_in_any_script(plotted):
    """Nor is a dollar sign a formula."""
    plotted(plot_loss, [{"step": step, "loss": 1.0} for step in range(3)], "Löwe שלום 狐 $\\frac$ \x1b")


def test_run_diagnostics(plotted):
    metrics = [{"step": step, "loss": 1.0} for step in range(20)]
    metrics += [{"step": step, **SATURATIONS, **CURVE, "saturation": step / 100} for step in range(20)]
    by_noise, saturation = plotted(plot_run_diagnostics, metrics, "base")
    assert len(by_noise[0]) == plots._MAX_CURVES
    assert all(curve == [[0.25, 0.5], [0.75, 0.1]] for curve in by_noise[0])
    assert saturation[0][0] == [[step, step / 100] for step in range(20)]
    assert saturation[0][1] == [[step, 0.2] for step in range(20)]


def test_run_diagnostics_of_super_resolution(plotted):
    *_, consistency, drift = plotted(plot_run_diagnostics, [{"step": 3, **SATURATIONS, **CURVE, **SR_METRICS}], "sr")
    assert consistency[0] == [[[3, 30.0]]]
    assert drift[0] == [[[3, 1.0]], [[3, 2.0]]]


def test_cascade_diagnostics(plotted):
    by_noise, saturation, consistency, drift = plotted(plot_cascade_diagnostics, STAGES)
    assert len(by_noise[0]) == 2
    assert saturation[1] == [0.1, 0.1, 0.2, 0.2]
    assert consistency[1] == [30.0]
    assert drift[1] == [1.0, 2.0]


def test_cascade_diagnostics_of_one_stage(plotted):
    assert len(plotted(plot_cascade_diagnostics, {"8×8": STAGES["8×8"]})) == 2


def test_run_diagnostics_of_a_vae(plotted):
    lines = [{"step": step, **SATURATIONS, **VAE_METRICS} for step in (1, 2)]
    bound, _, groups, active = plotted(plot_run_diagnostics, lines, "vae")
    assert bound[0] == [[[1, 3.0], [2, 3.0]], [[1, 2.5], [2, 2.5]]]
    assert groups[0] == [[[0, 0.5], [1, 0.0]]] * 2
    assert active[0] == [[[1, 0.5], [2, 0.5]], [[1, 0.25], [2, 0.25]]]


def test_cascade_diagnostics_with_a_vae(plotted):
    by_noise, _, _, _, bound, groups = plotted(
        plot_cascade_diagnostics, {"8×8": SATURATIONS | VAE_METRICS, "16×16": STAGES["16×16"]}
    )
    assert len(by_noise[0]) == 1
    assert bound[1] == [3.0, 2.5]
    assert groups[0] == [[[0, 0.5], [1, 0.0]]]
