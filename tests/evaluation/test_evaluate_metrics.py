"""Metrics of a cascade's samples: images are sampled once, whatever is measured, and a kill changes nothing."""

import json
import shutil

import pytest

from imagen_jax import ImagenPipeline, evaluate, load_config
from imagen_jax.config.metrics_schema import MetricsConfig
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.evaluate_images import evaluate_images
from imagen_jax.evaluation.progress import MANIFEST, RECORDS, SAMPLES, EvaluationFolder
from imagen_jax.evaluation.references import SaveClock
from imagen_jax.evaluation.sample_metrics import STATES
from imagen_jax.publishing.card import _metrics
from imagen_jax.publishing.evaluation import find_evaluation
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT

pytest_plugins = ("tests.helpers.fixtures",)
pytestmark = pytest.mark.usefixtures("small_weights")
COUNT, BATCH = 14, 4
NAMES = ("fd_lite0", "kid_lite0", "precision_recall_lite0")


@pytest.fixture(scope="module")
def pipeline(base_folder, sr_folder):
    pipeline = ImagenPipeline.from_pretrained([str(base_folder), str(sr_folder)])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.with_settings([{"num_inference_steps": 1}] * 2)


@pytest.fixture(scope="module")
def config_of(small_weights):
    def config_of(**changes):
        settings = {"num_samples": COUNT, "batch_size": BATCH, "metrics.names": NAMES, "metrics.lite0": small_weights}
        return load_config(f"{ROOT}/configs/shapes_eval.py", settings | changes, schema=EvaluationConfig)

    return config_of


@pytest.fixture(scope="module")
def unbroken(pipeline, config_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    return out, evaluate(pipeline, config_of(), out, save_images=True)


def rows_of(out):
    return json.loads((out / "scores.json").read_text())["metrics"]


def assert_same(rows, expected):
    assert rows.keys() == expected.keys()
    for name, row in rows.items():
        assert row["value"] == pytest.approx(expected[name]["value"], rel=1e-9)
        assert row | {"value": 0, "std": 0} == expected[name] | {"value": 0, "std": 0}


def test_metrics_are_beside_the_scores_of_the_judge(unbroken, pipeline):
    out, result = unbroken
    scores = json.loads((out / "scores.json").read_text())
    assert scores["all"]["total"] == COUNT and list(scores["metrics"]) == list(result.metrics)
    row = scores["metrics"]["fd_lite0"]
    assert row["reference"]["num_images"] == COUNT
    assert row["reference"]["name"] == "shapes, split held_out, 16×16"
    assert row["captions"]["name"] == "shapes, split held_out"
    evaluation = find_evaluation(pipeline.stages, out)
    assert evaluation.scores["all"]["total"] == COUNT and evaluation.metrics == scores["metrics"]
    table = _metrics(evaluation)
    assert "| precision\\_lite0 |" in table
    assert f"`shapes, split held_out, 16×16` ({row['reference']['checksum'][:12]})" in table


def test_damaged_figures_are_not_published(pipeline, copied):
    scores = json.loads((copied / "scores.json").read_text())
    damaged = {"fd_lite0": scores["metrics"]["fd_lite0"] | {"value": float("nan")}}
    for metrics, match in ((damaged, "its metric 'fd_lite0' is not a figure"), ({}, "has not the metrics")):
        (copied / "scores.json").write_text(json.dumps(scores | {"metrics": metrics}))
        with pytest.raises(ConfigError, match=match):
            find_evaluation(pipeline.stages, copied)


def test_kept_images_have_the_same_figures(unbroken, small_weights, tmp_path):
    out, result = unbroken
    names = sorted(path.name for path in (out / SAMPLES).iterdir())
    assert names == [*(f"{index:06d}.png" for index in range(COUNT)), "metadata.jsonl"]
    config = MetricsConfig(names=("fd_lite0",), lite0=small_weights, reference=str(out / SAMPLES))
    again = evaluate_images(out / SAMPLES, config).metrics["fd_lite0"]
    assert again.value == pytest.approx(0, abs=1e-9)
    assert again.details["images"] == result.metrics["fd_lite0"].details["images"]


class Kill(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "killed_in",
    [pytest.param("record", marks=pytest.mark.slow), "states", pytest.param("reference", marks=pytest.mark.slow)],
)
def test_a_kill_at_any_place_changes_nothing(pipeline, config_of, unbroken, tmp_path, monkeypatch, killed_in):
    firsts = []
    with monkeypatch.context() as patch:
        save, clock = EvaluationFolder.save, SaveClock.save

        def save_record(self, state, first, images):
            save(self, state, first, images)
            firsts.append(first)
            if killed_in == "record" and first == 2 * BATCH:
                raise Kill

        def save_states(self, write, now=False):
            saved = clock(self, write, now)
            if killed_in == "states" and firsts[-1:] == [BATCH] or killed_in == "reference" and not firsts:
                raise Kill
            return saved

        patch.setattr(EvaluationFolder, "save", save_record)
        patch.setattr(SaveClock, "save", save_states)
        with pytest.raises(Kill):
            evaluate(pipeline, config_of(), tmp_path, save_images=True)
    assert not (tmp_path / "scores.json").exists()
    resumed = evaluate(pipeline, config_of(), tmp_path, save_images=True)
    assert_same(rows_of(tmp_path), rows_of(unbroken[0]))
    assert resumed.scores == unbroken[1].scores
    assert (tmp_path / "diagnostics.json").read_bytes() == (unbroken[0] / "diagnostics.json").read_bytes()


@pytest.fixture
def copied(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "out")
    return tmp_path / "out"


def test_finished_is_neither_sampled_nor_measured_again(pipeline, config_of, copied, monkeypatch):
    before = (copied / "scores.json").read_bytes()
    for place in ("image_sets.DataImages.read", "progress.EvaluationFolder.save"):
        monkeypatch.setattr(f"imagen_jax.evaluation.{place}", lambda *arguments: pytest.fail("again"))
    evaluate(pipeline, config_of(), copied, save_images=True)
    assert (copied / "scores.json").read_bytes() == before


@pytest.mark.parametrize("lost", ["states", pytest.param("records", marks=pytest.mark.slow)])
def test_states_without_their_records_begin_again(pipeline, config_of, unbroken, copied, lost):
    """A judge's counts of some images and a distance of others would be scores of neither."""
    if lost == "states":
        (copied / STATES).write_bytes(b"damaged")
    else:
        (copied / RECORDS).write_text("")
    evaluate(pipeline, config_of(), copied, save_images=True)
    assert_same(rows_of(copied), rows_of(unbroken[0]))


def test_another_reference_needs_no_new_samples(pipeline, config_of, unbroken, copied, monkeypatch):
    monkeypatch.setattr(EvaluationFolder, "save", lambda *arguments: pytest.fail("sampled again"))
    real = {"metrics.reference": str(unbroken[0] / SAMPLES)}
    result = evaluate(pipeline, config_of(**real), copied, save_images=True)
    assert result.metrics["fd_lite0"].value == pytest.approx(0, abs=1e-9)


def test_other_metrics_are_another_evaluation(pipeline, config_of, copied):
    with pytest.raises(ConfigError, match=r"metrics\.names was .*--overwrite"):
        evaluate(pipeline, config_of(**{"metrics.names": ("fd_lite0",)}), copied, save_images=True)
    with pytest.raises(ConfigError, match=r"metrics\.networks\.efficientnet-lite0\.resizing was"):
        evaluate(pipeline, config_of(**{"metrics.resizing": "legacy_pytorch"}), copied, save_images=True)


def test_folders_without_metrics_are_those_of_earlier_versions(pipeline, config_of, tmp_path):
    evaluate(pipeline, config_of(**{"metrics.names": ()}), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest.keys() == {"stages", "config", "captions"}
    assert manifest["config"].keys() == {"judge", "num_samples", "batch_size", "seed", "data"}
    assert "metrics" not in json.loads((tmp_path / "scores.json").read_text())


def test_captions_of_a_file_are_sampled(pipeline, config_of, tmp_path):
    file = tmp_path / "captions.csv"
    file.write_text("id,text\n" + "".join(f"{index},a red circle\n" for index in range(COUNT)))
    result = evaluate(pipeline, config_of(captions=str(file)), tmp_path / "out")
    assert result.scores["single object"]["total"] == COUNT
    assert result.metrics["fd_lite0"].details["captions"]["name"] == str(file)


def test_wrong_flags_are_refused_in_one_sentence(base_folder, small_weights, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("a red circle\n")
    common = [
        "evaluate",
        f"--config={ROOT}/configs/shapes_eval.py",
        f"--lite0={small_weights}",
        f"--out={tmp_path / 'out'}",
    ]
    stages = [f"--stages={base_folder}", "--metrics=fd_lite0"]
    for flags, message in (
        ([*stages, f"--captions={tmp_path / 'short.txt'}"], "short.txt has 1 captions, and 512 images are asked for"),
        ([*stages, f"--reference={small_weights}"], "is not a folder"),
        ([*stages, "--metrics=fd"], "metric 'fd' is not known"),
        ([*stages, "--config.num_samples=1"], "1 image has no covariance"),
        ([*stages, "--config.metrics.resizing=best"], "metrics.resizing 'best'"),
        ([*stages, "--num_images=3"], "--num_images has no effect with --stages"),
        ([*stages, "--write_statistics=a.npz"], "--write_statistics has no effect with --stages"),
        ([], "--stages and --images are missing"),
    ):
        assert run_command(*common, *flags) == 2
        error = capsys.readouterr().err
        (sentence,) = (line for line in error.split("\n") if "error: " in line)
        assert message in sentence and "Traceback" not in error
        assert not (tmp_path / "out" / MANIFEST).exists()
