"""What must hold of every stage in configs/: mistakes that others shipped as defaults."""

import runpy

import pytest

from imagen_jax import stage as stages
from tests.tiny import ROOT

CONFIGS = {path.stem: runpy.run_path(str(path))["get_config"]() for path in sorted((ROOT / "configs").glob("*.py"))}
STAGES = {name: config for name, config in CONFIGS.items() if "diffusion" in config}

each_stage = pytest.mark.parametrize("config", STAGES.values(), ids=STAGES)


def test_there_are_stages():
    assert {"shapes_base", "shapes_sr", "digits"} <= set(STAGES)


@each_stage
def test_every_default_stands_in_the_config(config):
    stages.check(config)
    for group in ("data", "model", "diffusion", "optimizer", "training", "mesh", "sampling"):
        assert len(config[group])


@each_stage
def test_captions_are_dropped_often_enough_to_guide_and_seldom_enough_to_matter(config):
    """Of half of them dropped prompts would be ignored at low weights; the paper has a tenth."""
    assert 0 < config.diffusion.caption_dropout <= 0.2


@each_stage
def test_a_percentile_is_in_per_cent(config):
    assert 90 <= config.sampling.percentile <= 100


def test_super_resolution_does_not_predict_the_noise():
    """It tints pictures (arXiv:2210.02303, Section 2.4)."""
    assert STAGES["shapes_sr"].diffusion.prediction != "eps"


def test_super_resolution_adds_the_noise_at_sampling_that_it_learned_to_see_through():
    assert STAGES["shapes_sr"].sampling.aug_level > 0
