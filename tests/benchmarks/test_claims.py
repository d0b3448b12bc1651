"""The paper's claims, small: measures, words and the document, and two measurements end to end."""

import io
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.claims import augmentation, document, experiment, guidance, networks, objectives
from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import BATCH, Examples, Workplace, examples
from benchmarks.claims.measures import NOISE_LEVELS, burnt_share, denoising_errors, judged, mean_error, psnr
from benchmarks.claims.report import changes, interval, table
from imagen_jax.datasets.shapes.judge import success_rate
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.planning.cost import stage_cost
from imagen_jax.stages import stage as stages
from imagen_jax.stages.stage import load_encoder_params
from tests.helpers.configs import ROOT, STEPS, base_config, fresh_params, one_device

pytest_plugins = ("tests.helpers.fixtures",)

DOCS = ROOT / "docs"
GRAY = np.full((2, 4, 4, 3), 128, np.uint8)


def test_psnr_is_that_of_the_error_of_all_pictures_together():
    off = GRAY.copy()
    off[0] += 4
    assert psnr(off, GRAY) == pytest.approx(10 * np.log10(255**2 / 8))
    assert psnr(GRAY, GRAY) == float("inf")


def test_what_is_burnt_out_in_the_true_picture_does_not_count():
    truth = GRAY.copy()
    truth[0] = 255
    drawn = truth.copy()
    assert burnt_share(drawn, truth) == 0
    drawn[1, :2] = 255
    drawn[1, 2, :2] = 0
    assert burnt_share(drawn, truth) == pytest.approx(10 / 16)


def test_a_background_drawn_too_dark_is_no_gain():
    truth = np.full((1, 4, 4, 3), 255, np.uint8)
    truth[0, 0] = 100
    assert burnt_share(truth - 20, truth) == 0


def test_the_error_of_a_network_that_says_nothing_is_that_of_a_gray_picture():
    """At every noise level: a fresh network predicts an x of zero."""
    stage = stages.build(base_config(**{"diffusion.prediction_type": "x"}))
    seen = examples("validation", 8, 4)
    trained = TrainedStage(stage, fresh_params(stage), load_encoder_params(stage, one_device()), 0)
    errors = denoising_errors(trained, seen)
    square = np.mean((seen.images.astype(np.float32) / 127.5 - 1) ** 2)
    assert errors == pytest.approx([float(square)] * len(NOISE_LEVELS), rel=1e-5)


def test_every_noise_level_counts_by_the_ratio_of_its_errors():
    assert mean_error([1e-4, 1.0]) == pytest.approx(1e-2)
    assert mean_error([5e-4, 1.0]) == pytest.approx(mean_error([1e-4, 5.0]))


def test_true_pictures_obey_their_captions():
    asked = examples("held_out", 32, 8)
    found = judged(asked.images, asked)
    assert {row["rate"] for row in found["scores"].values()} == {1.0}
    assert judged(asked.images, Examples(asked.captions[::-1], asked.images))["scores"]["all"]["rate"] < 1


def test_noise_is_as_strong_as_said_and_the_same_at_every_strength():
    pictures = np.full((8, 32, 32, 3), 128, np.uint8)
    weak, strong = (augmentation.noisy(pictures, deviation).astype(float) - 128 for deviation in (8, 16))
    assert np.std(weak) == pytest.approx(8, rel=0.05)
    assert np.abs(strong - 2 * weak).max() <= 1.5


def test_blur_stays_within_a_picture_and_its_channels():
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    pictures[1, :, :, 0] = 200
    assert (augmentation.blurred(pictures, 1.2) == pictures).all()
    pictures[0, 8, 8] = 255
    blurred = augmentation.blurred(pictures, 1.2)
    assert (blurred[1] == pictures[1]).all()
    assert 0 < blurred[0, 8, 8, 0] < 100


def test_augmentation_can_be_turned_off_by_its_schedule(sr_stage):
    settings = sr_stage.config.diffusion
    shift = augmentation.TRAINED["without"]["diffusion.aug_schedule_shift"]
    schedule = stages.schedules.by_name(settings.aug_schedule, shift)
    assert float(schedule.sigma(jnp.linspace(0, 1, 11)).max()) < 1e-4


def test_the_networks_have_equal_parameters(tmp_path):
    work = Workplace(tmp_path)
    parameters = [stage_cost(networks.network_config(work, network, 1), 64).num_params for network in networks.NETWORKS]
    assert max(parameters) < 1.03 * min(parameters)


def test_a_clear_change_is_one_whose_intervals_do_not_overlap():
    outcomes = {right: success_rate([True] * right + [False] * (100 - right)) for right in (50, 55, 90)}
    words = changes(
        {
            "rises": (outcomes[50], outcomes[90]),
            "falls": (outcomes[90], outcomes[55]),
            "stays": (outcomes[50], outcomes[55]),
        }
    )
    assert words == (
        "clearly better: rises (50.0% to 90.0%); clearly worse: falls (90.0% to 55.0%); "
        "no clear difference: stays (50.0% to 55.0%)"
    )
    assert interval(outcomes[50]) == "50.0% (40%–60%)"


def test_a_table_is_one_in_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_document_is_what_its_command_makes_of_the_figures_beside_it():
    figures = document.read_figures(DOCS / "claims")
    assert document.document(figures) == (DOCS / "claims.md").read_text()


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_plotted(name):
    figure = CLAIMS[name].plot(document.read_figures(DOCS / "claims")[name])
    picture = io.BytesIO()
    figure.savefig(picture, dpi=20)
    assert picture.getvalue().startswith(b"\x89PNG")
    assert (DOCS / "images" / f"claims_{name}.png").exists()


def test_a_document_of_missing_figures_is_refused_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(ConfigError, match="has no figures of guidance, .*--claim=guidance"):
        document.read_figures(tmp_path)


def test_guidance_is_measured_once(tmp_path, base_folder, monkeypatch):
    """End to end, and again from what is remembered."""
    monkeypatch.setattr(guidance, "THRESHOLDS", ("static",))
    monkeypatch.setattr(guidance, "BASES", {"trained": "A base"})
    work = Workplace(tmp_path, [base_folder], quick=True)
    figures = guidance.measure(work)
    found = figures["bases"]["trained"]["static"]
    assert list(found) == [str(weight) for weight in guidance.WEIGHTS[:2]]
    assert found["1.0"]["scores"]["all"]["total"] == BATCH
    assert "| static | 1.5 |" in guidance.tell(figures)
    monkeypatch.setattr(guidance, "draw", None)
    assert guidance.measure(work) == json.loads(json.dumps(figures))


def test_an_objective_is_trained_once_and_measured(tmp_path, base_folder, monkeypatch):
    """What is trained is a stage that is trained already."""
    configs = []

    def copy_trained(config, folder):
        configs.append(config)
        shutil.copytree(base_folder, folder)

    monkeypatch.setitem(experiment.CONFIGS, "base", lambda variant: base_config())
    monkeypatch.setattr(experiment, "QUICK_STEPS", STEPS)
    monkeypatch.setattr(experiment, "train", copy_trained)
    work = Workplace(tmp_path, quick=True)
    found = objectives.measure_one(work, "base", "v", "min_snr")
    assert (found["prediction"], found["weight"], len(found["errors"])) == ("v", "min_snr", len(NOISE_LEVELS))
    assert all(0 < error < 4 for error in found["errors"])
    (config,) = configs
    assert (config.diffusion.prediction_type, config.diffusion.loss_weighting) == ("v", "min_snr")
    assert config.training.steps == config.optimizer.decay_steps == STEPS
    work.train("objectives/base_v_min_snr", config)
    assert len(configs) == 1


def test_a_folder_of_figures_of_other_stages_is_refused(tmp_path):
    Workplace(tmp_path, [Path("old")]).check_begun_alike()
    Workplace(tmp_path, [Path("old")]).check_begun_alike()
    with pytest.raises(ConfigError, match="begun with .*'old'.*: give another folder"):
        Workplace(tmp_path, [Path("new")]).check_begun_alike()
