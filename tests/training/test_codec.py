"""Codecs, and stages of their latents, train as every stage does."""

import jax
import numpy as np
import pytest

from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_buckets
from imagen_jax.errors import ConfigError
from imagen_jax.images.array import to_float
from imagen_jax.parallel import batching
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.codec import CODEC, LATENTS, Codec
from imagen_jax.stages.stage_folder import open_weights
from imagen_jax.training.codec_task import CodecTask
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import Frozen, abstract_parts, first_state, init_params
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import STEPS, codec_config, eight_devices, latent_config, one_device

pytest_plugins = ("tests.helpers.fixtures",)


def weights_of(folder):
    weights = open_weights(folder)
    return jax.device_get(weights.load(jax.tree.map(on_one_device, weights.shapes)))


def on_one_device(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_codec_trains_and_says_what_its_loss_lacks(codec_folder):
    lines = [line for line in read_metrics(codec_folder) if "l1" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["l1"] < lines[0]["l1"]
    # the discriminator plays in the second half
    assert [round(line["loss"] - line["l1"], 1) > 0.1 for line in lines] == [False] * 3 + [True] * 3
    assert "reconstruction/psnr" in {name for line in read_metrics(codec_folder) for name in line}
    assert "no perceptual term" in (codec_folder / "log.txt").read_text()
    assert len(list((codec_folder / "previews").iterdir())) == 2


def test_resumed_codec_is_the_unbroken_one(codec_folder, tmp_path):
    train(codec_config(**{"training.steps": 3}), tmp_path)
    train(codec_config(), tmp_path)
    assert_equal(weights_of(tmp_path), weights_of(codec_folder))


def test_resumed_stage_of_latents_is_the_unbroken_one(codec_folder, latent_folder, tmp_path):
    config = latent_config(codec_folder)
    train(config.with_changes({"training.steps": 3}), tmp_path)
    train(config, tmp_path)
    assert_equal(weights_of(tmp_path), weights_of(latent_folder))


def test_stage_keeps_the_codec_with_the_moments_of_its_latents(codec_folder, latent_folder):
    codec, stage = weights_of(codec_folder), weights_of(latent_folder)[CODEC]
    assert_equal({name: stage[name] for name in ("encoder", "decoder")}, {n: codec[n] for n in ("encoder", "decoder")})
    config = latent_config(codec_folder)
    buckets = make_buckets(config.data, "train", config.image_hw, 3)
    batches = training_batches(buckets, lambda caption: {}, 8, config.seed, 1, 1)
    images = np.concatenate([next(batches)["image"] for _ in range(2)])
    latents = np.asarray(Codec.of(config.codec.model, 3).encode(stage, to_float(images)))
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-4)
    assert set(stage[LATENTS]) == {"mean", "std"}


@pytest.mark.parametrize("kind", ["codec", pytest.param("latents", marks=pytest.mark.slow)])
def test_step_does_not_depend_on_devices_and_micro_batches(kind, codec_folder, tmp_path):
    config = codec_config() if kind == "codec" else latent_config(codec_folder, **{"inpainting.enabled": True})
    config = config.with_changes({"training.batch_size": 16, "reconstruction.disc_start": 0, "optimizer.eps": 1e-3})
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    states = []
    for mesh, steps in ((one_device(), 1), (eight_devices(), 1), (eight_devices(), 2)):
        task = (CodecTask if kind == "codec" else DiffusionTask)(config, mesh)
        now = config.with_changes({"training.grad_accum_steps": steps})
        objective, optimizer = task.objective, make_optimizer(config.optimizer, STEPS)
        abstract, frozen = abstract_parts(objective.init, optimizer, mesh, (), trained_patterns(config))
        state = first_state(optimizer, abstract, init_params(objective.init, 0, abstract.params))
        networks = Frozen(task.load_networks(tmp_path), init_params(objective.init, 0, frozen))
        captions = {name: np.stack([value] * 16) for name, value in task.text_features("a ring").items()}
        batch = batching.shard_local_batch({"image": images, **captions}, objective.batch_axes, mesh)
        states.append(
            jax.device_get(make_train_step(objective, now, optimizer, abstract, mesh)(state, networks, batch))
        )
    (one, metrics), *others = states
    for other, other_metrics in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, other.params)
        np.testing.assert_allclose(metrics["loss"], other_metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sampling.threshold": "static"}, "sampling.threshold"),
        ({"image_size": 9}, "image_size 9 is not a multiple of 4"),
        ({"low_res_size": 4}, "low_res_size"),
        ({"diffusion.variance_type": "learned"}, "diffusion.variance_type"),
        ({"codec.model.num_res_blocks": (1,)}, "codec.model.num_res_blocks"),
        ({"codec.kind": "pixels"}, "codec.path"),
    ],
)
def test_settings_of_latents_that_cannot_work(changes, key, codec_folder):
    with pytest.raises(ConfigError, match=key):
        latent_config(codec_folder, **{"model.patch_size": 2, **changes})


@pytest.mark.parametrize("changes", [{"low_res_size": 4}, {"inpainting.enabled": True}, {"codec.kind": "kl_vae"}])
def test_settings_of_codecs_that_cannot_work(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        codec_config(**changes)


@pytest.mark.parametrize("what", ["none", "other", "stage", "nowhere"])
def test_codecs_that_do_not_fit(what, codec_folder, latent_folder, tmp_path):
    path = {"none": "", "other": codec_folder, "stage": latent_folder, "nowhere": tmp_path / "gone"}[what]
    changes = {"codec.model.latent_channels": 3} if what == "other" else {}
    with pytest.raises(ConfigError, match=r"codec\.path"):
        train(latent_config(path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_starts_from_the_codec_of_its_weights(codec_folder, latent_folder, tmp_path):
    changes = {"training.init_from": str(latent_folder), "training.trainable": ("^out/",), "training.steps": 1}
    train(latent_config("", **changes), tmp_path)
    before, after = weights_of(latent_folder), weights_of(tmp_path)
    assert_equal(after[CODEC], before[CODEC])
    assert_equal(after["stem"], before["stem"])
