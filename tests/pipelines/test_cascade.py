"""A picture is a function of (seed, its number), its prompt and the weights: of nothing else."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config.load import to_json
from imagen_jax.diffusion import samplers
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage, check_chain, load_stage, make_encoders
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages import stage as stages
from imagen_jax.stages.sampling import StageInputs, guided_prediction, make_sample_fn
from imagen_jax.stages.stage_sampler import NoiseSource, StageSampler, make_request, stage_keys
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.stages.workdir import read_config
from imagen_jax.text.encoder import TextCondition
from tests.helpers.configs import (
    STEPS,
    base_config,
    contents,
    eight_devices,
    one_device,
    perturbed_params,
    split_devices,
    sr_config,
    write_stage,
)

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "two blue squares", "a ring", "a small green cross", "an object"]
SEED = 5


@pytest.fixture(scope="module")
def trained(base_stage, sr_stage):
    """Both stages, their weights such that everything has an effect."""
    return [(stage, perturbed_params(stage)) for stage in (base_stage, sr_stage)]


def on(mesh, trained):
    return [
        TrainedStage(stage, jax.device_put(params, sharding.param_shardings(params, mesh)), 0)
        for stage, params in trained
    ]


def sample(cascade, prompts, seed, batch_size=64, first_index=0, guidance_scale=None):
    request = SampleRequest(Texts(prompts), seed, batch_size, guidance_scale, first_index=first_index)
    return cascade.sample_all(request)


def sample_stage(stage, params, mesh, stage_index, low_res=None, guidance_scale=None):
    """Returns the images of one stage for all prompts."""
    encoder = PromptEncoder(make_encoder(stage.config.text), mesh)
    request = make_request(stage, encoder, PROMPTS, NoiseSource(SEED, 0, stage_index), low_res, guidance_scale)
    return StageSampler(stage, mesh).sample_uint(params, request, len(PROMPTS))


@pytest.fixture(scope="module")
def cascade(trained):
    mesh = eight_devices()
    return ImagenPipeline(on(mesh, trained), mesh)


@pytest.fixture(scope="module")
def drawn(cascade):
    return sample(cascade, PROMPTS, SEED)


def near(images, others):
    """The same pictures, but for the rounding of another order of sums."""
    assert images.shape == others.shape
    return np.abs(images.astype(int) - others.astype(int)).max() <= 1


def test_image_shapes(cascade, drawn):
    assert [(images.shape, images.dtype) for images in drawn] == [
        ((5, 8, 8, 3), np.uint8),
        ((5, 16, 16, 3), np.uint8),
    ]
    assert cascade.image_size == (16, 16)
    assert all(images.std() > 5 for images in drawn)


def test_sampling_is_deterministic(cascade, drawn):
    for images, others in zip(sample(cascade, PROMPTS, SEED), drawn, strict=True):
        np.testing.assert_array_equal(images, others)


def test_images_are_independent_of_devices_and_batch(trained, drawn):
    mesh = one_device()
    alone = ImagenPipeline(on(mesh, trained), mesh)
    for i in (0, 4):
        for images, others in zip(sample(alone, PROMPTS[i : i + 1], SEED, first_index=i), drawn, strict=True):
            assert near(images, others[i : i + 1])


@pytest.mark.parametrize("fsdp, spatial", [(1, 4), (2, 4), (4, 1)], ids=["rows", "rows and parameters", "parameters"])
def test_spatial_and_fsdp_sharding_match_replication(trained, drawn, fsdp, spatial, monkeypatch):
    """Four for a picture: two rows at the network's only level."""
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 2**8)
    mesh = make_mesh({"data": -1, "fsdp": fsdp, "spatial": spatial})
    (_, trained_sr) = on(mesh, trained)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(trained_sr.params)) == (fsdp > 1)
    images = sample_stage(trained_sr.stage, trained_sr.params, mesh, 1, drawn[0])
    assert near(images, sample_stage(*trained[1], one_device(), 1, drawn[0]))


def test_indivisible_rows_are_refused(base_stage):
    with pytest.raises(ConfigError, match="image_size 8 cannot be split over 8 devices"):
        StageSampler(base_stage, make_mesh({"data": 1, "fsdp": 1, "spatial": 8}))


def test_images_are_independent_of_batch_size(cascade, drawn):
    """The last batch of two is a partial one."""
    for batch_size in (1, 2, 64):
        for images, others in zip(sample(cascade, PROMPTS, SEED, batch_size), drawn, strict=True):
            assert near(images, others)


def test_truncated_prompts_are_counted(cascade, caplog):
    sample(cascade, ["a red circle", "x" * 23, "x" * 24], SEED)  # of 24 tokens the last ends the sequence
    assert caplog.text.count("1 of ") == 1
    caplog.clear()
    sample(cascade, ["a red circle"], SEED)
    assert "prompts" not in caplog.text


def test_prompt_affects_only_its_image(cascade, drawn):
    changed = sample(cascade, [PROMPTS[0], "four yellow rings", *PROMPTS[2:]], SEED)
    for images, others in zip(changed, drawn, strict=True):
        assert not near(images[1:2], others[1:2])
        assert near(np.delete(images, 1, axis=0), np.delete(others, 1, axis=0))


def test_seed_and_index_change_images(cascade, drawn):
    for others in (sample(cascade, PROMPTS, SEED + 1), sample(cascade, PROMPTS, SEED, first_index=1)):
        for images, usual in zip(others, drawn, strict=True):
            for image, other in zip(images, usual, strict=True):
                assert not near(image, other)


@pytest.mark.parametrize("seed", [2**32 + SEED, 2**63 + SEED, 2**64 - 1])
def test_large_seeds_are_others(cascade, drawn, seed):
    image, usual = sample(cascade, PROMPTS[:1], seed)[-1], drawn[-1][:1]
    assert not near(image, usual)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, None])
def test_other_seeds_are_refused(cascade, seed):
    with pytest.raises(ConfigError, match="seed"):
        cascade("a ring", seed=seed)


@pytest.mark.parametrize("first_index", [-1, 2**32 - 1])
def test_indices_have_32_bits(cascade, first_index):
    with pytest.raises(ConfigError, match="indices"):
        sample(cascade, PROMPTS[:2], SEED, first_index=first_index)


def test_samples_of_one_prompt_differ(cascade):
    images = sample(cascade, ["a red circle"] * 5, SEED)[-1]
    assert len({image.tobytes() for image in images}) == 5


def test_stage_index_changes_noise(trained):
    mesh = eight_devices()
    first, second = (sample_stage(*trained[0], mesh, stage_index) for stage_index in (0, 1))
    assert not near(first, second)


def with_settings(trained, **settings):
    """The samplers' pictures of the super-resolution stage, from one low-resolution picture."""
    stage, params = trained[1]
    mesh = eight_devices()
    config = sr_config(**{f"sampling.{name}": value for name, value in settings.items()})
    return lambda low_res: sample_stage(stages.build(config, stage.text_width), params, mesh, 1, low_res)


@pytest.mark.trap("augmentation level 0")
def test_sr_depends_on_low_res_and_its_noise(trained, drawn):
    low_res = drawn[0]
    usual = with_settings(trained)(low_res)
    assert near(usual, drawn[1])
    assert not near(with_settings(trained)(255 - low_res), usual)
    assert not near(with_settings(trained, aug_level=0.7)(low_res), usual)


def test_tiled_sampling(trained, drawn):
    assert near(with_settings(trained, tile_size=16, tile_overlap=8)(drawn[0]), drawn[1])
    assert not near(with_settings(trained, tile_size=8, tile_overlap=4)(drawn[0]), drawn[1])


def test_output_bits(trained, drawn):
    low_res = drawn[0]
    fine = with_settings(trained, bits=16)(low_res)
    assert fine.dtype == np.uint16
    usual = with_settings(trained)(low_res)
    np.testing.assert_allclose(fine / 257, usual, atol=0.6)
    # and starts from as many as it is given
    np.testing.assert_allclose(with_settings(trained)(low_res.astype(np.uint16) * 257).astype(int), usual, atol=1)


def test_guidance_changes_images(trained, drawn):
    assert not near(
        with_settings(trained, guidance_scale=4.0)(drawn[0]), with_settings(trained, guidance_scale=1.0)(drawn[0])
    )


def of_base(trained, weights=None, null_text="zero", **settings):
    """Pictures of the base stage, on one device, with other settings."""
    stage, params = trained[0]
    sampling = {f"sampling.{name}": value for name, value in settings.items()}
    config = base_config(**{"diffusion.null_text": null_text, **sampling})
    return sample_stage(stages.build(config, stage.text_width), params, one_device(), 0, guidance_scale=weights)


@pytest.fixture(scope="module")
def unguided(trained):
    return of_base(trained, guidance_scale=1.0)


@pytest.fixture(scope="module")
def guided(trained):
    return of_base(trained, guidance_scale=3.0)


def test_guidance_scale_per_sample(trained, unguided, guided):
    mixed = of_base(trained, np.float32([1, 3, 1, 3, 1]), guidance_scale=7.0)
    assert near(mixed[::2], unguided[::2])
    assert near(mixed[1::2], guided[1::2])
    assert not near(guided, unguided)


def test_guidance_scale_per_prompt_and_stage(cascade, trained, drawn):
    usual = np.array([[stage.config.sampling.guidance_scale] * 5 for stage, _ in trained], np.float32)
    other = usual.copy()
    other[1, 1], other[0, 4] = 9.0, 9.0
    # batches of two: the last is filled up
    for images, expected in zip(sample(cascade, PROMPTS, SEED, 2, guidance_scale=usual), drawn, strict=True):
        assert near(images, expected)
    base, large = sample(cascade, PROMPTS, SEED, 2, guidance_scale=other)
    assert near(base[:4], drawn[0][:4])
    assert not near(base[4:], drawn[0][4:])
    assert near(large[[0, 2, 3]], drawn[1][[0, 2, 3]])
    assert not near(large[1:2], drawn[1][1:2])


def test_guidance_interval_without_steps(trained, unguided):
    # of the two steps one is at pure noise, the other in the middle
    assert near(of_base(trained, guidance_scale=3.0, guidance_interval=(0.6, 0.9)), unguided)


def test_oscillating_guidance(trained, unguided, guided):
    assert near(of_base(trained, guidance_scale=3.0, oscillating_guidance=True, guidance_low=3.0), guided)
    oscillating = of_base(trained, guidance_scale=3.0, oscillating_guidance=True, guidance_low=1.0)
    assert not near(oscillating, guided)
    assert not near(oscillating, unguided)


def test_guidance_settings_change_images(trained, guided):
    assert not near(of_base(trained, guidance_scale=3.0, guidance_rescale=0.7), guided)
    assert not near(of_base(trained, guidance_scale=3.0, null_text="empty"), guided)


def test_learned_variance_is_used():
    mesh, drawn = one_device(), []
    for variance in ("learned", "small"):
        stage = stages.build(base_config(**{"diffusion.variance_type": "learned", "sampling.variance_type": variance}))
        drawn.append(sample_stage(stage, perturbed_params(stage), mesh, 0))
    assert drawn[0].shape == (5, 8, 8, 3)
    assert not near(*drawn)


class Recorded:
    """A stage without a network, which remembers what it was asked."""

    def __init__(self, stage):
        self.config, self.image_shape, self.schedule, self.prediction = stage.config, (16, 16, 3), stage.schedule, "v"
        self.asked, self.conditions, self.learns_variance = [], [], False
        self.is_super_resolution, self.aug_levels, self.low_res_shape = True, stage.aug_levels, (8, 8, 3)
        self.masks, self.is_vae = None, stage.is_vae
        self.z_shape, self.decode = stage.z_shape, stage.decode

    def aug_noise_shape(self, low_res):
        return low_res.shape

    def augment_low_res(self, low_res, level, eps):
        self.conditions.append((np.asarray(low_res), np.asarray(level), np.asarray(eps)))
        return {"low_res": low_res, "aug_level": level}

    def predict(self, params, z, logsnr, text, condition, control=None):
        self.asked.append((z.shape, logsnr.shape, *text, condition))
        marks = jnp.mean(text.embeddings, axis=(1, 2))
        return 0 * z + marks[:, None, None, None], 0 * z - marks[:, None, None, None]


def test_guidance_is_one_forward_of_a_doubled_batch(sr_stage):
    stage = Recorded(sr_stage)
    z = jnp.ones((3, 16, 16, 3))
    text, null_text = (
        TextCondition(jnp.ones((3, 2, 4)), jnp.ones((3, 2), bool)),
        TextCondition(jnp.full((2, 4), 7.0), jnp.array([True, False])),
    )
    condition = {"low_res": jnp.arange(3.0), "aug_level": jnp.arange(3.0)}
    prediction, v = guided_prediction(
        lambda inputs: stage.predict({}, *inputs),
        StageInputs(z, jnp.float32(0), text, condition),
        null_text,
        Guidance(5.0),
        jnp.float32(0),
    )
    ((z_shape, logsnr_shape, both_text, both_mask, both_condition),) = stage.asked
    assert z_shape == (6, 16, 16, 3)
    assert logsnr_shape == (6,)
    np.testing.assert_array_equal(both_text, np.concatenate([text[0], np.full((3, 2, 4), 7)]))
    np.testing.assert_array_equal(both_mask, [[True, True]] * 3 + [[True, False]] * 3)
    for array in both_condition.values():
        np.testing.assert_array_equal(array, [0, 1, 2, 0, 1, 2])
    # 1 with the caption and 7 without it; a variance is that of the conditional half
    np.testing.assert_allclose(prediction, 7 + 5 * (1 - 7))
    np.testing.assert_array_equal(v, -1)


class RecordedSampler:
    """A sampler that takes no step, and remembers where it starts."""

    def __init__(self, schedule, starts):
        self._sampler, self._starts = samplers.ddim(schedule), starts

    def times(self, steps, spacing):
        return self._sampler.times(steps, spacing)

    def __call__(self, denoise_fn, z, times, keys):
        self._starts.append(np.asarray(z))
        return z


@pytest.mark.trap("uniform noise", "augmentation level 0", "shared noise")
def test_aug_noise_at_sampling(sr_stage, monkeypatch):
    starts = []
    monkeypatch.setattr(
        "imagen_jax.stages.sampling.samplers.get_sampler",
        lambda name, schedule, config: RecordedSampler(schedule, starts),
    )
    stage = Recorded(sr_stage)
    settings = sr_stage.config.sampling.with_changes(aug_level=0.35)
    low_res = jax.random.uniform(jax.random.key(0), (64, 8, 8, 3), minval=-1)
    text = TextCondition(jnp.zeros((64, 2, 4)), jnp.zeros((64, 2), bool))
    make_sample_fn(stage, settings)({}, text, text, stage_keys([SEED] * 64, range(64), 1, one_device()), low_res)
    ((given, level, eps),) = stage.conditions
    np.testing.assert_array_equal(given, low_res)
    np.testing.assert_allclose(level, 0.35)
    assert np.std(eps) == pytest.approx(1, abs=0.05)
    assert np.mean(eps**4) == pytest.approx(3, abs=0.3)
    (start,) = starts
    assert np.mean(start**4) == pytest.approx(3, abs=0.3)
    small = start.reshape(64, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    for other in (small, start[:, :8, :8]):
        assert abs(np.corrcoef(other.ravel(), eps.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "heun", "timestep_spacing": "karras"}, {"variance_type": "large"}],
    ids=str,
)
def test_sampler_settings_change_images(trained, drawn, settings):
    assert not near(
        with_settings(trained, num_inference_steps=3, **settings)(drawn[0]),
        with_settings(trained, num_inference_steps=3)(drawn[0]),
    )


@pytest.fixture(scope="module")
def loaded_draw(base_folder, sr_folder):
    return sample(ImagenPipeline.from_pretrained([base_folder, sr_folder], eight_devices()), PROMPTS, SEED)


@pytest.mark.trap("EMA swapped into parameters")
def test_sampling_leaves_stage_folders_unchanged(base_folder, sr_folder, loaded_draw):
    before = contents(base_folder), contents(sr_folder)
    again = sample(ImagenPipeline.from_pretrained([base_folder, sr_folder], eight_devices()), PROMPTS, SEED)
    for images, others in zip(again, loaded_draw, strict=True):
        np.testing.assert_array_equal(images, others)
    assert (contents(base_folder), contents(sr_folder)) == before


def test_load_stage_onto_any_mesh(sr_folder):
    stages_loaded = [load_stage(sr_folder, read_config(sr_folder), mesh) for mesh in (one_device(), split_devices())]
    assert [stage.step for stage in stages_loaded] == [STEPS, STEPS]
    jax.tree.map(np.testing.assert_array_equal, *(stage.params for stage in stages_loaded))


def test_stages_share_text_encoder(base_folder, sr_folder):
    mesh = one_device()
    base, sr = read_config(base_folder), read_config(sr_folder)
    longer = sr.with_changes({"text.length": sr.text.length + 8})
    first, second, third = make_encoders([base, sr, longer], mesh)
    assert first is second
    assert third is not first
    (other,) = make_encoders([sr.with_changes({"text.fingerprint": "0123456789abcdef"})], mesh)
    with pytest.raises(ConfigError, match=r"text.fingerprint is 0123456789abcdef"):
        other(["a ring"])


@pytest.mark.trap("augmentation level 0")
def test_sampling_settings_per_stage(base_folder, sr_folder, loaded_draw):
    changes = [{}, {"aug_level": 0.9, "s_tmin": 0.0, "s_tmax": 1.0}]
    changed = sample(ImagenPipeline.from_pretrained([base_folder, sr_folder], eight_devices(), changes), PROMPTS, SEED)
    np.testing.assert_array_equal(changed[0], loaded_draw[0])
    assert not near(changed[1], loaded_draw[1])


# Chains are judged by their configs, before any weight is read.

BASE, SR = base_config(), sr_config()
WIDE_SR = sr_config(image_size=(16, 24), low_res_size=(8, 12))


@pytest.mark.parametrize(
    "configs, said",
    [
        ([], "no stages given"),
        ([SR], "the first stage is a super-resolution stage .8 to 16.: put a base stage of 8×8 before it"),
        ([SR, BASE], "the first stage is a super-resolution stage"),
        ([BASE, base_config()], "8×8×3 is followed by a base stage"),
        ([base_config(image_size=10), SR], "samples 10×10×3 is followed by one that starts from 8×8×3"),
        ([base_config(channels=1), SR], "samples 8×8×1 is followed by one that starts from 8×8×3"),
        ([BASE, SR, sr_config()], "16×16×3 is followed by one that starts from 8×8×3"),
        ([WIDE_SR], "the first stage is a super-resolution stage .8×12 to 16×24.: put a base stage of 8×12 before it"),
        ([base_config(image_size=(12, 8)), WIDE_SR], "samples 12×8×3 is followed by one that starts from 8×12×3"),
        ([BASE, WIDE_SR], "samples 8×8×3 is followed by one that starts from 8×12×3"),
    ],
)
def test_broken_chain_is_refused(configs, said):
    with pytest.raises(ConfigError, match=said):
        check_chain(configs)


def test_valid_chains():
    check_chain([BASE])
    check_chain([BASE, SR, sr_config(low_res_size=16, image_size=32)])
    check_chain([base_config(image_size=(8, 12)), WIDE_SR])
    check_chain([base_config(image_size=(8, 8)), SR])


def refused(folders, said, changes=None):
    """Each folder is as it was before."""
    before = [contents(folder) for folder in folders]
    with pytest.raises(ConfigError, match=said) as error:
        ImagenPipeline.from_pretrained(folders, one_device(), changes)
    assert not [problem for problem in error.value.problems if "\n" in problem]
    assert [contents(folder) for folder in folders] == before


def test_missing_stage_folder(tmp_path):
    refused([tmp_path / "none"], "does not exist")
    refused([tmp_path], "is not a stage folder and has none in it")


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        "[]",
        '"text"',
        "[" * 10**6,
        '{"a":' * 10**6,
        '{"a":' * 900 + "1" + "}" * 900,
        "{}",
        json.dumps({"image_size": "8", "low_res_size": 0, "channels": 3, "sampling": {}}),
        json.dumps({"image_size": 8, "low_res_size": 0, "channels": [], "sampling": {}}),
        json.dumps({"image_size": 8, "low_res_size": 0, "channels": 3, "sampling": []}),
        json.dumps({"image_size": 8, "low_res_size": 0, "channels": 3, "sampling": {}}),
        json.dumps(to_json(BASE) | {"model": 8}),
        json.dumps(to_json(BASE) | {"text": {"model": ["shapes"]}}),
        json.dumps(to_json(BASE) | {"diffusion": {"schedule": None}}),
        json.dumps(to_json(BASE) | {"\u001b[31m": {}, "model": {"multipliers": [[]]}}),
    ],
    ids=lambda text: text[:40],
)
def test_damaged_config_is_refused(tmp_path, spoilt):
    folder = write_stage(tmp_path / "base", BASE)
    (folder / "config.json").write_text(spoilt)
    refused([folder], "config.json.*restore it from a checkpoint's metadata|config|size|channels")


def test_stage_without_checkpoint(tmp_path):
    refused([write_stage(tmp_path / "base", BASE)], "has no complete checkpoint: train it first")


def test_checkpoint_of_another_model(tmp_path, base_folder):
    folder = write_stage(tmp_path / "base", base_config(**{"model.channels": 16}))
    (folder / "checkpoints").symlink_to(base_folder / "checkpoints")
    refused([folder], "checkpoint .*/kernel is float32")


def test_stages_in_wrong_order(base_folder, sr_folder):
    refused([sr_folder, base_folder], "put a base stage of 8×8 before it")
    refused([base_folder, base_folder], "followed by a base stage")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sampler": "euler"}, "sampling.sampler 'euler'.* ddpm"),
        ({"sampler": "ddim", "eta": 1.5}, "eta 1.5"),
        ({"sampler": "heun", "s_churn": -1.0}, "sampling.s_churn -1.0"),
        ({"timestep_spacing": "cubic"}, "timestep_spacing 'cubic'.* uniform"),
        ({"variance_type": "medium"}, "variance_type 'medium'.* small"),
        ({"variance_type": "learned"}, "sampling.variance_type 'learned' needs .* diffusion.variance_type 'learned'"),
        ({"oscillating_guidance": True, "timestep_spacing": "karras"}, "oscillating_guidance counts steps .* 'karras'"),
        ({"num_inference_steps": 0}, "sampling.num_inference_steps 0"),
        ({"threshold": "soft"}, "threshold 'soft'.* none, static, dynamic"),
        ({"threshold": "dynamic", "dynamic_threshold_percentile": 101.0}, "percentile 101.0"),
        ({"threshold": "dynamic", "dynamic_threshold_percentile": 0.0}, "percentile 0.0"),
        ({"guidance_interval": (0.8, 0.2)}, r"guidance_interval \(0.8, 0.2\)"),
        ({"guidance_rescale": 2.0}, "guidance_rescale 2.0"),
        ({"guidance_warmup_steps": -1}, "guidance_warmup_steps -1"),
        ({"aug_level": 1.5}, "aug_level 1.5"),
        ({"aug_level": -0.1}, "aug_level -0.1"),
    ],
    ids=str,
)
def test_settings_out_of_range(base_folder, change, said):
    refused([base_folder], said, [change])


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"tile_size": 12, "tile_overlap": 8}, r"tile_overlap 8 is not in \[1, 6\]"),
        ({"tile_size": 24, "tile_overlap": 8}, r"tile_size 24 is not in \[1, 16\]"),
        ({"tile_size": 8, "tile_overlap": 2}, "tile_size 8 and tile_overlap 2 are not multiples of 4"),
        ({"tile_size": (8, 8, 8)}, r"tile_size \(8, 8, 8\)"),
        ({"aug_level": 0.8}, r"aug_level 0.8 is not in \[0.0, 0.5\], the levels that the stage is trained at"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_sr_stage(sr_stage, settings, said):
    config = sr_config(**{"diffusion.aug_level_range": (0.0, 0.5)})
    stage = dataclasses.replace(sr_stage, config=config)
    with pytest.raises(ConfigError, match=said):
        stage.with_sampling(settings)
