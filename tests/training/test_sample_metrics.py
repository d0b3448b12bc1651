"""Metrics of samples during training: on any mesh, over a stop, and as the rule for the best checkpoint."""

import json

import jax
import pytest

from imagen_jax import train
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.training_metrics import check_best, make_training_metrics, score_of
from imagen_jax.io.json_lines import read_json_lines
from imagen_jax.parallel.sharding import param_shardings
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.training.objective import SampleFigures
from imagen_jax.training.preemption import StopRequest
from tests.helpers.configs import base_config, one_device, split_devices, sr_config
from tests.helpers.denoising import DenoisingTask

pytest_plugins = ("tests.helpers.fixtures",)
pytestmark = pytest.mark.usefixtures("small_weights")
COUNT, NAMES = 10, ("fd_lite0", "kid_lite0")


@pytest.fixture(scope="module")
def settings(small_weights):
    return {
        "evaluation.every": 3,
        "evaluation.num_samples": COUNT,
        "evaluation.batch_size": 8,
        "evaluation.metrics.names": NAMES,
        "evaluation.metrics.lite0": small_weights,
    }


@pytest.mark.parametrize("make", [base_config, pytest.param(sr_config, marks=pytest.mark.slow)])
def test_devices_agree(settings, tmp_path, make):
    config, rows = make(**settings), []
    stage = stages.build(config)
    for mesh in (one_device(), split_devices()):
        encoder = PromptEncoder(make_encoder(config.text), mesh, config.text)
        measure = make_training_metrics(stage, mesh, tmp_path / str(mesh.size))
        params = stage.init(jax.random.key(0))
        rows.append(measure(jax.device_put(params, param_shardings(params, mesh)), encoder))
    one, many = rows
    assert set(one) == set(many) == set(NAMES)
    for name in NAMES:
        # pixels are rounded to 8 bits, some of them the other way
        assert one[name]["value"] == pytest.approx(many[name]["value"], rel=1e-3, abs=1e-6)
        assert one[name]["reference"] == many[name]["reference"]
        assert one[name]["reference"]["num_images"] == COUNT


def metrics_of(folder):
    return [
        (line["step"], line["fd_lite0"]) for line in read_json_lines(folder / "metrics.jsonl") if "fd_lite0" in line
    ]


@pytest.mark.slow
def test_a_run_that_stops_has_the_figures_of_one_that_does_not(settings, tmp_path):
    config = base_config(**settings)
    train(config, tmp_path / "unbroken")
    expected = metrics_of(tmp_path / "unbroken")
    assert [step for step, _ in expected] == [3, 6]
    stop = StopRequest()
    stop.ask("a test")
    assert train(config, tmp_path / "stopped", stop=stop).step == 1
    train(config, tmp_path / "stopped")
    assert metrics_of(tmp_path / "stopped") == expected
    row = json.loads((tmp_path / "unbroken" / "evaluations" / "00000006.json").read_text())["metrics"]["fd_lite0"]
    assert (6, row["value"]) == expected[1] and row["images"]["num_images"] == COUNT
    references = [path.name for path in (tmp_path / "unbroken" / "evaluations").glob("reference-*.npz")]
    assert len(references) == 1


def test_the_best_checkpoint_is_that_of_the_metric(tmp_path):
    """Whatever the previews of other steps have as their score."""
    figures = iter([0.2, 0.9, 0.5])

    class ScoredTask(DenoisingTask):
        def make_preview(self):
            preview = super().make_preview()
            return lambda params: preview(params)._replace(score=-100.0)

        def make_evaluation(self, workdir):
            def evaluation(params):
                rows = {"clip_score": {"value": next(figures)}}
                return SampleFigures(rows, score_of(rows, "clip_score"))

            return evaluation

    config = base_config(
        **{"training.keep_checkpoints": 1, "training.keep_best": True, "training.preview_every": 1},
        **{"training.save_every": 1, "evaluation.every": 2, "evaluation.best": "clip_score"},
        **{"evaluation.metrics.names": ("clip",)},
    )
    train(config, tmp_path, task=ScoredTask)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    written = json.loads((tmp_path / "evaluations" / "00000004.json").read_text())
    assert written == {"metrics": {"clip_score": {"value": 0.9}}}


def test_less_or_more_is_better():
    rows = {"fd_lite0": {"value": 3.0}, "clip_score": {"value": 0.3}}
    assert score_of(rows, "fd_lite0") == 3.0 and score_of(rows, "clip_score") == -0.3
    check_best("precision_lite0", ("fid", "precision_recall_lite0"))
    for call, match in (
        (lambda: check_best("clip", ("clip",)), "evaluation.best 'clip' is not known: choose one of clip_score"),
        (lambda: score_of(rows, "fid"), "has not been measured"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_keys_that_do_not_go_together_are_refused(settings, tmp_path):
    for changes, match in (
        ({"evaluation.every": 3}, "evaluation.metrics.names .* go together"),
        ({"evaluation.metrics.names": NAMES}, "evaluation.every 0"),
        (settings | {"evaluation.best": "fd_lite0"}, "has no effect with training.keep_best False"),
        (
            settings | {"evaluation.best": "fd_lite0", "training.keep_best": True, "training.save_every": 2},
            "evaluation.every 3 is not a multiple of training.save_every 2",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            base_config(**changes)
    for changes, match in (
        ({"evaluation.metrics.lite0": "none.safetensors"}, "not a file"),
        ({"evaluation.num_samples": 1}, "1 image has no covariance"),
        ({"evaluation.metrics.reference": "nowhere"}, "--reference 'nowhere' is not a folder"),
        ({"evaluation.metrics.names": ("fd",)}, "metric 'fd'"),
    ):
        with pytest.raises(ConfigError, match=match):
            train(base_config(**settings | changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()
