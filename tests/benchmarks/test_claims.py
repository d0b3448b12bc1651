"""The measurements of the paper's claims: metrics, texts and the document, and two measurements end to end."""

import io
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.claims import augmentation, document, experiment, guidance, networks, objectives
from benchmarks.claims.claims import CLAIMS
from benchmarks.claims.experiment import BATCH, Examples, Workspace, examples
from benchmarks.claims.measures import (
    NOISE_LEVELS,
    clipped_fraction,
    denoising_errors,
    evaluate_images,
    mean_error,
    psnr,
)
from benchmarks.claims.report import format_changes, format_rate, format_table
from imagen_jax.datasets.shapes.judge import success_rate
from imagen_jax.diffusion import schedules
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.planning.cost import stage_cost
from imagen_jax.stages import stage as stages
from tests.helpers.configs import ROOT, STEPS, base_config, fresh_params

pytest_plugins = ("tests.helpers.fixtures",)

DOCS = ROOT / "docs"
GRAY = np.full((2, 4, 4, 3), 128, np.uint8)


def test_psnr():
    off = GRAY.copy()
    off[0] += 4
    assert psnr(off, GRAY) == pytest.approx(10 * np.log10(255**2 / 8))
    assert psnr(GRAY, GRAY) == float("inf")


def test_clipped_fraction_ignores_clipped_truth():
    truth = GRAY.copy()
    truth[0] = 255
    samples = truth.copy()
    assert clipped_fraction(samples, truth) == 0
    samples[1, :2] = 255
    samples[1, 2, :2] = 0
    assert clipped_fraction(samples, truth) == pytest.approx(10 / 16)


def test_dark_background_does_not_lower_clipped_fraction():
    truth = np.full((1, 4, 4, 3), 255, np.uint8)
    truth[0, 0] = 100
    assert clipped_fraction(truth - 20, truth) == 0


def test_denoising_errors_of_fresh_network():
    """A fresh network predicts x = 0, a gray image, at every noise level."""
    stage = stages.build(base_config(**{"diffusion.prediction_type": "x"}))
    validation = examples("validation", 8, 4)
    trained = TrainedStage(stage, fresh_params(stage), 0)
    errors = denoising_errors(trained, validation)
    square = np.mean((validation.images.astype(np.float32) / 127.5 - 1) ** 2)
    assert errors == pytest.approx([float(square)] * len(NOISE_LEVELS), rel=1e-5)


def test_mean_error_is_geometric():
    assert mean_error([1e-4, 1.0]) == pytest.approx(1e-2)
    assert mean_error([5e-4, 1.0]) == pytest.approx(mean_error([1e-4, 5.0]))


def test_true_images_are_correct():
    held_out = examples("held_out", 32, 8)
    figures = evaluate_images(held_out.images, held_out)
    assert {row["rate"] for row in figures["scores"].values()} == {1.0}
    assert (
        evaluate_images(held_out.images, Examples(held_out.captions[::-1], held_out.images))["scores"]["all"]["rate"]
        < 1
    )


def test_noisy_scales_the_same_noise():
    images = np.full((8, 32, 32, 3), 128, np.uint8)
    weak, strong = (augmentation.noisy(images, deviation).astype(float) - 128 for deviation in (8, 16))
    assert np.std(weak) == pytest.approx(8, rel=0.05)
    assert np.abs(strong - 2 * weak).max() <= 1.5


def test_blur_does_not_mix_images_or_channels():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    images[1, :, :, 0] = 200
    assert (augmentation.blurred(images, 1.2) == images).all()
    images[0, 8, 8] = 255
    blurred = augmentation.blurred(images, 1.2)
    assert (blurred[1] == images[1]).all()
    assert 0 < blurred[0, 8, 8, 0] < 100


def test_augmentation_without_noise(sr_stage):
    settings = sr_stage.config.diffusion
    shift = augmentation.TRAINED["without"]["diffusion.aug_schedule_shift"]
    schedule = schedules.get_schedule(settings.aug_schedule, shift)
    assert float(schedule.sigma(jnp.linspace(0, 1, 11)).max()) < 1e-4


def test_networks_have_equal_parameters(tmp_path):
    work = Workspace(tmp_path)
    parameters = [
        stage_cost(networks.network_config(work, network, networks.STEPS), 64).num_params
        for network in networks.NETWORKS
    ]
    assert max(parameters) < 1.03 * min(parameters)


def test_format_changes():
    outcomes = {correct: success_rate([True] * correct + [False] * (100 - correct)) for correct in (50, 55, 90)}
    text = format_changes(
        {
            "rises": (outcomes[50], outcomes[90]),
            "falls": (outcomes[90], outcomes[55]),
            "stays": (outcomes[50], outcomes[55]),
        }
    )
    assert text == (
        "clearly better: rises (50.0% to 90.0%); clearly worse: falls (90.0% to 55.0%); "
        "no clear difference: stays (50.0% to 55.0%)"
    )
    assert format_rate(outcomes[50]) == "50.0% (40%–60%)"


def test_format_table():
    assert format_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_document_is_current():
    figures = document.read_figures(DOCS / "claims")
    assert document.format_document(figures) == (DOCS / "claims.md").read_text()


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_a_plot(name):
    figure = CLAIMS[name].plot(document.read_figures(DOCS / "claims")[name])
    png = io.BytesIO()
    figure.savefig(png, dpi=20)
    assert png.getvalue().startswith(b"\x89PNG")
    assert (DOCS / "images" / f"claims_{name}.png").exists()


def test_missing_figures_raise(tmp_path):
    with pytest.raises(ConfigError, match="--claim=guidance"):
        document.read_figures(tmp_path)


def test_measure_guidance(tmp_path, base_folder, monkeypatch):
    """End to end, and again from the cached figures."""
    monkeypatch.setattr(guidance, "THRESHOLDS", ("static",))
    monkeypatch.setattr(guidance, "BASES", {"trained": "A base"})
    work = Workspace(tmp_path, [base_folder], quick=True)
    figures = guidance.measure(work)
    by_scale = figures["bases"]["trained"]["static"]
    assert list(by_scale) == [str(scale) for scale in guidance.SCALES[:2]]
    assert by_scale["1.0"]["scores"]["all"]["total"] == BATCH
    assert "| static | 1.5 |" in guidance.describe(figures)
    monkeypatch.setattr(guidance, "sample_images", None)
    assert guidance.measure(work) == json.loads(json.dumps(figures))


def test_measure_objective_trains_once(tmp_path, base_folder, monkeypatch):
    """Training is replaced by a copy of a trained stage."""
    configs = []

    def copy_trained(config, folder):
        configs.append(config)
        shutil.copytree(base_folder, folder)

    monkeypatch.setitem(experiment.CONFIGS, "base", lambda variant: base_config())
    monkeypatch.setattr(experiment, "QUICK_STEPS", STEPS)
    monkeypatch.setattr(experiment, "train", copy_trained)
    work = Workspace(tmp_path, quick=True)
    figures = objectives.measure_one(work, "base", "v", "min_snr")
    assert (figures["prediction"], figures["weight"], len(figures["errors"])) == ("v", "min_snr", len(NOISE_LEVELS))
    assert all(0 < error < 4 for error in figures["errors"])
    (config,) = configs
    assert (config.diffusion.prediction_type, config.diffusion.loss_weighting) == ("v", "min_snr")
    assert config.training.steps == STEPS
    work.train("objectives/base_v_min_snr", config)
    assert len(configs) == 1


def test_figures_of_other_stages_raise(tmp_path):
    Workspace(tmp_path, [Path("old")]).check_same_settings()
    Workspace(tmp_path, [Path("old")]).check_same_settings()
    with pytest.raises(ConfigError, match="old"):
        Workspace(tmp_path, [Path("new")]).check_same_settings()
