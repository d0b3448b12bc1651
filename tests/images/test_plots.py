import numpy as np
import pytest
from PIL import Image

from imagen_jax.images import plots
from imagen_jax.images.plots import draw_cascade_diagnostics, draw_loss, draw_run_diagnostics, named, series

CURVE = {"validation_loss_at_noise/0.25": 0.5, "validation_loss_at_noise/0.75": 0.1}
LARGER = {"consistency_db": 30.0, "color_drift/red": 1.0, "color_drift/rms": 2.0}
SATURATIONS = {"saturation": 0.1, "saturation_real": 0.2}
STAGES = {"8×8": SATURATIONS | CURVE, "16×16": SATURATIONS | CURVE | LARGER}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a figure; the lines and bars of its panels, and the picture that was saved."""
    seen = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: seen.append(figure) or save(figure, path))

    def drawn(draw, *arguments):
        draw(*arguments, tmp_path / "figure.png")
        with Image.open(tmp_path / "figure.png") as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture))) > 10
        assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
        return [
            ([line.get_xydata().tolist() for line in axes.lines], [bar.get_height() for bar in axes.patches])
            for axes in seen[-1].axes
        ]

    return drawn


def test_a_series_is_of_the_lines_that_have_it():
    steps, values = series([{"step": 1, "loss": 5.0}, {"step": 1, "other": 7.0}, {"step": 2, "loss": 4.0}], "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 2], [5.0, 4.0])
    assert named({"a/b": 1, "a/c": 2, "d": 3}, "a/") == {"b": 1, "c": 2}


def test_the_loss_is_drawn_as_measured_and_smoothed(drawn):
    metrics = [{"step": step, "loss": float(step % 2 + 1)} for step in range(1, 61)]
    (((measured, smooth), _),) = drawn(draw_loss, [*metrics, {"step": 60, **SATURATIONS}], "base")
    assert measured == [[line["step"], line["loss"]] for line in metrics]
    # the mean of two
    assert smooth == [[step, 1.5] for step in range(2, 61)]


def test_a_run_shows_its_measures_over_its_steps(drawn):
    metrics = [{"step": step, "loss": 1.0} for step in range(20)]
    metrics += [{"step": step, **SATURATIONS, **CURVE, "saturation": step / 100} for step in range(20)]
    by_noise, saturation = drawn(draw_run_diagnostics, metrics, "base")
    assert len(by_noise[0]) == plots.CURVES
    assert all(curve == [[0.25, 0.5], [0.75, 0.1]] for curve in by_noise[0])
    assert saturation[0][0] == [[step, step / 100] for step in range(20)]
    assert saturation[0][1] == [[step, 0.2] for step in range(20)]


def test_a_run_of_super_resolution_shows_more(drawn):
    *_, consistency, drift = drawn(draw_run_diagnostics, [{"step": 3, **SATURATIONS, **CURVE, **LARGER}], "sr")
    assert consistency[0] == [[[3, 30.0]]]
    assert drift[0] == [[[3, 1.0]], [[3, 2.0]]]


def test_a_cascade_shows_each_of_its_stages(drawn):
    by_noise, saturation, consistency, drift = drawn(draw_cascade_diagnostics, STAGES)
    assert len(by_noise[0]) == 2
    assert saturation[1] == [0.1, 0.1, 0.2, 0.2]
    assert consistency[1] == [30.0]
    assert drift[1] == [1.0, 2.0]


def test_a_cascade_of_one_stage_has_nothing_to_be_consistent_with(drawn):
    assert len(drawn(draw_cascade_diagnostics, {"8×8": STAGES["8×8"]})) == 2
