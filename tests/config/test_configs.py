"""What must hold of every stage in configs/: mistakes that others shipped as defaults."""

import ast
from pathlib import Path

import pytest
from PIL import Image

from imagen_jax.config.load import load_config
from imagen_jax.config.schema import StageConfig
from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.io.changes import flatten
from imagen_jax.pipelines.loading import check_chain
from tests.helpers.configs import ROOT, as_written
from tests.helpers.fashion import write_files
from tests.helpers.font import prepare_emoji

KINDS = {
    "shapes_base": ("wide", "transparent"),
    "shapes_sr": ("wide", "transparent"),
    "digits": ("sixteen_bit",),
}
CONFIGS = {
    path.stem: as_written(path.name, "")
    for path in sorted((ROOT / "configs").glob("*.py"))
    if not path.stem.endswith("_eval") and path.stem != "__init__"
}
STAGES = {name: config for name, config in CONFIGS.items() if isinstance(config, StageConfig)}
STAGES |= {f"{name}:{kind}": as_written(f"{name}.py", kind) for name, kinds in KINDS.items() for kind in kinds}

each_stage = pytest.mark.parametrize("config", STAGES.values(), ids=STAGES)


def test_there_are_stages():
    assert {"shapes_base", "shapes_sr", "digits"} <= set(STAGES)


@each_stage
def test_configs_are_valid_and_complete(config):
    assert load_config(config.to_dict()) == config
    groups = ("data", "model", "diffusion", "optimizer", "training", "evaluation", "mesh", "sampling")
    for group in groups:
        assert len(config.to_dict()[group])
    keys = {"model", "length", "padding", "cleaning", "dtype", "cache", "learned", "fingerprint"}
    assert keys == set(config.text.to_dict())


def test_there_are_configs_of_every_kind_of_image():
    of_size = {len(set(config.image_hw)) for config in STAGES.values()}
    assert of_size == {1, 2}  # squares and others
    assert {config.channels for config in STAGES.values()} == {1, 3, 4}
    assert {(config.data.bits, config.sampling.bits) for config in STAGES.values()} == {(8, 8), (16, 16)}


@each_stage
def test_the_data_are_what_the_stage_draws(config, tmp_path):
    data = config.data
    if data.source == "folder":
        Image.new("RGB", (320, 280)).save(tmp_path / "a.png")
        data = data.with_changes(path=str(tmp_path), validation_fraction=0.0)
    if data.source == "tfds":
        data = data.with_changes(path=str(prepare_emoji(tmp_path, kind=Path(data.path).name)))
    if data.source == "fashion_mnist":
        data = data.with_changes(path=str(write_files(tmp_path)))
    images, _ = first_examples(make_examples(data, data.split, config.image_size, config.channels), 1)
    assert images.shape[1:] == (*config.image_hw, config.channels)
    assert images.dtype.itemsize * 8 == config.data.bits == config.sampling.bits


@pytest.mark.parametrize("name, kind", [(name, kind) for name, kinds in KINDS.items() for kind in kinds])
def test_a_kind_of_image_is_no_other_recipe(name, kind):
    usual, other = (flatten(config.to_dict()) for config in (STAGES[name], STAGES[f"{name}:{kind}"]))
    assert other.keys() == usual.keys()
    allowed = {"image_size", "low_res_size", "channels", "data.transparent", "data.bits", "sampling.bits"}
    assert {key for key in usual if other[key] != usual[key]} <= allowed


@pytest.mark.parametrize("kind", ["", ":wide", ":transparent"])
def test_the_stages_of_shapes_chain(kind):
    check_chain([STAGES[f"shapes_base{kind}"], STAGES[f"shapes_sr{kind}"]])


@pytest.mark.parametrize("file", [f"{name}.py" for name in KINDS])
def test_unknown_kinds_are_refused_with_those_there_are(file):
    with pytest.raises(ValueError, match="has no variant 'huge': give none, .*:"):
        as_written(file, "huge")


@each_stage
@pytest.mark.trap("half of the captions dropped")
def test_captions_are_dropped_often_enough_to_guide_and_seldom_enough_to_matter(config):
    """Of half of them dropped prompts would be ignored at low weights; the paper has a tenth."""
    assert 0 < config.diffusion.cond_drop_prob <= 0.2


@each_stage
@pytest.mark.trap("percentile as a fraction")
def test_a_percentile_is_in_per_cent(config):
    assert 90 <= config.sampling.dynamic_threshold_percentile <= 100


def test_the_stages_of_a_folder_chain():
    check_chain([STAGES["folder_base"], STAGES["folder_sr"]])
    check_chain([as_written("folder_base.py"), as_written("folder_sr.py")])


@pytest.mark.parametrize("variant", ["", "tiny"])
def test_the_stages_of_emoji_chain(variant):
    check_chain([as_written(f"emoji_{stage}.py", variant) for stage in ("base", "sr")])


@pytest.mark.trap("color tint")
def test_super_resolution_does_not_predict_the_noise():
    """It tints pictures (arXiv:2210.02303, Section 2.4)."""
    assert STAGES["shapes_sr"].diffusion.prediction_type != "eps"


@pytest.mark.trap("augmentation level 0")
def test_super_resolution_adds_the_noise_at_sampling_that_it_learned_to_see_through():
    assert STAGES["shapes_sr"].sampling.aug_level > 0


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("[a-z]*.py")))
def test_configs_are_short(file):
    code = ast.parse((ROOT / "configs" / file).read_text())
    first = code.body[1].lineno  # after the docstring
    last = len((ROOT / "configs" / file).read_text().splitlines())
    assert last - first + 1 <= 40
