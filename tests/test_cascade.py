"""A picture is a function of (seed, its number), its prompt and the weights: of nothing else."""

import jax
import numpy as np
import pytest

from imagen_jax import stage as stages
from imagen_jax.cascade import Cascade, StageSampler, TrainedStage, check_chain, load_cascade, load_stage, place_encoder
from imagen_jax.checkpoints import read_config
from imagen_jax.errors import UsageError
from imagen_jax.sharding import shard_parameters
from tests.tiny import (
    STEPS,
    base_config,
    contents,
    eight_devices,
    one_device,
    perturbed_params,
    quick_compilation,
    split_devices,
    sr_config,
    write_stage,
)

pytest_plugins = ("tests.trained",)
PROMPTS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def trained(base_stage, sr_stage):
    """Both stages, their weights such that everything has an effect."""
    return [(stage, perturbed_params(stage)) for stage in (base_stage, sr_stage)]


def on(mesh, trained):
    return [
        TrainedStage(stage, jax.device_put(params, shard_parameters(params, mesh)), place_encoder(stage, mesh), 0)
        for stage, params in trained
    ]


@pytest.fixture(scope="module")
def cascade(trained):
    mesh = eight_devices()
    return Cascade(on(mesh, trained), mesh)


@pytest.fixture(scope="module")
def drawn(cascade):
    return cascade.draw(PROMPTS, SEED)


def near(images, others):
    """The same pictures, but for the rounding of another order of sums."""
    assert images.shape == others.shape
    return np.abs(images.astype(int) - others.astype(int)).max() <= 1


def test_every_stage_draws_pictures_of_its_size(cascade, drawn):
    assert [(images.shape, images.dtype) for images in drawn] == [
        ((5, 8, 8, 3), np.uint8),
        ((5, 16, 16, 3), np.uint8),
    ]
    assert cascade.image_size == 16
    assert all(images.std() > 5 for images in drawn)


def test_the_same_again_is_the_same(cascade, drawn):
    for images, others in zip(cascade.draw(PROMPTS, SEED), drawn, strict=True):
        np.testing.assert_array_equal(images, others)


def test_pictures_do_not_depend_on_devices_or_batch(trained, drawn):
    mesh = one_device()
    alone = Cascade(on(mesh, trained), mesh)
    for i in (0, 4):
        for images, others in zip(alone.draw(PROMPTS[i : i + 1], SEED, first_index=i), drawn, strict=True):
            assert near(images, others[i : i + 1])


def test_pictures_do_not_depend_on_how_they_are_batched(cascade, drawn):
    """The last batch of two is a partial one."""
    for batch_size in (1, 2, 64):
        for images, others in zip(cascade.draw_all(PROMPTS, SEED, batch_size), drawn, strict=True):
            assert near(images, others)


def test_a_prompt_changes_its_own_picture_alone(cascade, drawn):
    changed = cascade.draw([PROMPTS[0], "four yellow rings", *PROMPTS[2:]], SEED)
    for images, others in zip(changed, drawn, strict=True):
        assert not near(images[1:2], others[1:2])
        assert near(np.delete(images, 1, axis=0), np.delete(others, 1, axis=0))


def test_another_seed_and_another_number_draw_other_pictures(cascade, drawn):
    for others in (cascade.draw(PROMPTS, SEED + 1), cascade.draw(PROMPTS, SEED, first_index=1)):
        for images, usual in zip(others, drawn, strict=True):
            for image, other in zip(images, usual, strict=True):
                assert not near(image, other)


def test_the_same_prompt_is_drawn_in_many_ways(cascade):
    images = cascade.draw(["a red circle"] * 5, SEED)[-1]
    assert len({image.tobytes() for image in images}) == 5


def test_stages_at_other_places_draw_other_noise(trained):
    mesh = eight_devices()
    stage, params = trained[0]
    encoder = place_encoder(stage, mesh)
    first, second = (StageSampler(stage, mesh, place).draw(params, encoder, PROMPTS, SEED, 0) for place in (0, 1))
    assert not near(first, second)


def with_settings(trained, **settings):
    """The samplers' pictures of the super-resolution stage, from one low-resolution picture."""
    stage, params = trained[1]
    mesh = eight_devices()
    config = sr_config(**{f"sampling.{name}": value for name, value in settings.items()})
    sampler = StageSampler(stages.build(config), mesh, place=1)

    def draw(low_res):
        return sampler.draw(params, place_encoder(stage, mesh), PROMPTS, SEED, 0, low_res)

    return draw


def test_a_larger_picture_is_made_of_the_smaller_one_and_of_its_noise(trained, drawn):
    low_res = drawn[0]
    usual = with_settings(trained)(low_res)
    assert near(usual, drawn[1])
    assert not near(with_settings(trained)(255 - low_res), usual)
    assert not near(with_settings(trained, aug_level=0.7)(low_res), usual)


def test_guidance_leads_away_from_no_guidance(trained, drawn):
    assert not near(with_settings(trained, guidance=4.0)(drawn[0]), with_settings(trained, guidance=1.0)(drawn[0]))


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "heun", "grid": "karras"}, {"variance": "large"}],
    ids=str,
)
def test_the_sampler_and_its_settings_make_another_picture(trained, drawn, settings):
    assert not near(with_settings(trained, steps=3, **settings)(drawn[0]), with_settings(trained, steps=3)(drawn[0]))


@pytest.fixture(scope="module")
def loaded_draw(base_folder, sr_folder):
    return load_cascade([base_folder, sr_folder], eight_devices()).draw(PROMPTS, SEED)


def test_a_trained_cascade_draws_and_its_folders_stay_as_they_are(base_folder, sr_folder, loaded_draw):
    before = contents(base_folder), contents(sr_folder)
    again = load_cascade([base_folder, sr_folder], eight_devices()).draw(PROMPTS, SEED)
    for images, others in zip(again, loaded_draw, strict=True):
        np.testing.assert_array_equal(images, others)
    assert (contents(base_folder), contents(sr_folder)) == before


def test_a_stage_is_loaded_onto_any_mesh(sr_folder):
    stages_loaded = [load_stage(sr_folder, read_config(sr_folder), mesh) for mesh in (one_device(), split_devices())]
    assert [stage.step for stage in stages_loaded] == [STEPS, STEPS]
    jax.tree.map(np.testing.assert_array_equal, *(stage.params for stage in stages_loaded))


def test_sampling_settings_can_be_changed_for_each_stage(base_folder, sr_folder, loaded_draw):
    changed = load_cascade([base_folder, sr_folder], eight_devices(), [{}, {"aug_level": 0.9}]).draw(PROMPTS, SEED)
    np.testing.assert_array_equal(changed[0], loaded_draw[0])
    assert not near(changed[1], loaded_draw[1])


# Chains are judged by their configs, before any weight is read.

BASE, SR = base_config(), sr_config()


@pytest.mark.parametrize(
    "configs, said",
    [
        ([], "no stages given"),
        ([SR], "the first stage is a super-resolution stage .8 to 16.: put a base stage of 8×8 before it"),
        ([SR, BASE], "the first stage is a super-resolution stage"),
        ([BASE, base_config()], "8×8×3 is followed by a base stage"),
        ([base_config(image_size=10), SR], "draws 10×10×3 is followed by one that starts from 8×8×3"),
        ([base_config(channels=1), SR], "draws 8×8×1 is followed by one that starts from 8×8×3"),
        ([BASE, SR, sr_config()], "draws 16×16×3 is followed by one that starts from 8×8×3"),
    ],
)
def test_stages_that_do_not_chain_are_refused(configs, said):
    with pytest.raises(UsageError, match=said):
        check_chain(configs)


def test_stages_that_chain_are_not_refused():
    check_chain([BASE])
    check_chain([BASE, SR, sr_config(low_res_size=16, image_size=32)])


def refused(folders, said, changes=None):
    """Each folder is as it was before."""
    before = [contents(folder) for folder in folders]
    with pytest.raises(UsageError, match=said) as error:
        load_cascade(folders, one_device(), changes)
    assert "\n" not in str(error.value)
    assert [contents(folder) for folder in folders] == before


def test_what_is_no_stage_is_refused(tmp_path):
    refused([tmp_path / "none"], "does not exist")
    refused([tmp_path], "is no stage folder, it has no config.json")


def test_a_stage_without_a_checkpoint_is_refused(tmp_path):
    refused([write_stage(tmp_path / "base", BASE)], "has no complete checkpoint: train it first")


def test_a_checkpoint_of_another_model_is_refused(tmp_path, base_folder):
    folder = write_stage(tmp_path / "base", base_config(**{"model.channels": 16}))
    (folder / "checkpoints").symlink_to(base_folder / "checkpoints")
    refused([folder], "of another model than its config describes: .*/kernel is float32")


def test_folders_in_the_wrong_order_are_refused(base_folder, sr_folder):
    refused([sr_folder, base_folder], "put a base stage of 8×8 before it")
    refused([base_folder, base_folder], "followed by a base stage")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sampler": "euler"}, "sampler 'euler' is not known: choose ddpm"),
        ({"sampler": "ddim", "eta": 1.5}, "eta 1.5 is not in"),
        ({"sampler": "heun", "churn": -1.0}, "churn -1.0 .* must not be below 0"),
        ({"grid": "cubic"}, "grid 'cubic' is not known: choose one of uniform"),
        ({"variance": "medium"}, "variance 'medium' is not known: choose one of small"),
        ({"variance": "learned"}, "variance 'learned' needs a network that predicts it"),
        ({"steps": 0}, "steps 0 is too few"),
        ({"threshold": "soft"}, "threshold 'soft' is not known: choose none, static or dynamic"),
        ({"threshold": "dynamic", "percentile": 101.0}, "percentile 101.0 is not in"),
        ({"threshold": "dynamic", "percentile": 0.0}, "percentile 0.0 is not in"),
        ({"aug_level": 1.5}, "aug_level 1.5 is not in"),
        ({"aug_level": -0.1}, "aug_level -0.1 is not in"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(base_folder, change, said):
    refused([base_folder], said, [change])
