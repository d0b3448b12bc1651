"""A hierarchical VAE trains through the one loop: its objective, warm-up, and what a run leaves behind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.config.load import from_json, to_json
from imagen_jax.errors import ConfigError
from imagen_jax.images.resize import resize
from imagen_jax.parallel import batching
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.stages.vae import VAEBatch, encode_batch, latent_shapes, vae_loss
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import Frozen, abstract_parts, first_state, init_params
from imagen_jax.training.step import make_train_step
from imagen_jax.training.vae import VAEObjective
from imagen_jax.training.validate import check_training
from tests.helpers.configs import (
    STEPS,
    base_config,
    eight_devices,
    one_device,
    perturbed_params,
    restored,
    split_devices,
    vae_config,
    vae_sr_config,
)

WARM = {"vae.kl_warmup_steps": 4, "vae.kl_balancing": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "unbroken"
    train(vae_config(**WARM), folder)
    return folder


def test_it_trains(folder):
    lines = [line for line in read_metrics(folder) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[-1]["bound_bits"] < 0.9 * lines[0]["bound_bits"]
    assert [line["kl_weight"] for line in lines] == [0.25, 0.5, 0.75, 1, 1, 1]
    for line in lines:
        groups = [value for name, value in line.items() if name.startswith("kl_bits/group_")]
        assert len(groups) == 2
        np.testing.assert_allclose(sum(groups), line["kl_bits"], rtol=1e-4)
        np.testing.assert_allclose(line["reconstruction_bits"] + line["kl_bits"], line["bound_bits"], rtol=1e-4)
    np.testing.assert_allclose(lines[-1]["loss"], lines[-1]["bound_bits"], rtol=1e-5)
    assert lines[0]["loss"] < lines[0]["bound_bits"]
    assert "group_00" not in (folder / "log.txt").read_text()


def test_validation(folder):
    last = [line for line in read_metrics(folder) if "validation_bound_bits" in line][-1]
    assert last["validation_iwae_bits"] < last["validation_bound_bits"] + 0.05
    assert 0 <= last["active_units"] <= 1
    assert 0 <= last["active_groups"] <= 2
    assert (folder / "previews" / "00000006.png").exists()
    assert (folder / "diagnostics.png").exists()


def test_resume_is_bit_exact(folder, tmp_path):
    train(vae_config(**WARM, **{"training.steps": 3}), tmp_path / "resumed")
    train(vae_config(**WARM), tmp_path / "resumed")
    one, other = (restored(path, vae_config(**WARM), eight_devices()) for path in (folder, tmp_path / "resumed"))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@functools.cache
def one_step(mesh, config, step=2):
    """(metrics, parameters) after a step from a state in which nothing is zero."""
    encoder = PromptEncoder(make_encoder(config.text), mesh, config.text)
    objective = VAEObjective(stages.build(config, encoder.width), encoder.encoder)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, _ = abstract_parts(objective.init, optimizer, mesh)
    params = init_params(objective.init, 0, abstract.params)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    state = first_state(optimizer, abstract, params).replace(step=jnp.int32(step))
    rng = np.random.default_rng(0)
    tokens, mask = encoder.encoder.tokenize([f"caption {i}" for i in range(8)])
    image = rng.integers(0, 256, (8, *config.image_hw, 3), np.uint8)
    batch = {"image": image, "tokens": tokens, "mask": mask}
    batch = batching.shard_host_batch(batch, objective.batch_axes, mesh)
    step_fn = make_train_step(objective, config, optimizer, abstract, mesh)
    state, metrics = step_fn(state, Frozen(encoder.params), batch)
    return jax.device_get((metrics, state.params))


# no step of Adam depends on a gradient's size, and rounding would decide the sign of those near 0
SGD_LIKE = {"optimizer.eps": 1e-1, "optimizer.clip_norm": 1e9, "training.steps": 20}


@pytest.mark.parametrize(
    "mesh, micro_batches", [(split_devices, 1), pytest.param(one_device, 4, marks=pytest.mark.slow)]
)
def test_a_step_is_the_same_on_other_devices(mesh, micro_batches):
    config = vae_config(**SGD_LIKE, **WARM)
    metrics, params = one_step(one_device(), config)
    other_config = config.with_changes({"training.grad_accum_steps": micro_batches})
    other_metrics, other_params = one_step(mesh(), other_config)
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(other, one, atol=1e-5), params, other_params)


@pytest.mark.slow
def test_bf16_step_is_near_float32():
    metrics, _ = one_step(one_device(), vae_config(**SGD_LIKE, **WARM))
    rounded, params = one_step(one_device(), vae_config(**SGD_LIKE, **WARM, **{"model.dtype": "bfloat16"}))
    np.testing.assert_allclose(rounded["bound_bits"], metrics["bound_bits"], rtol=0.03)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_super_resolution_loss_depends_on_the_low_resolution():
    stage = stages.build(vae_sr_config())
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    text = TextCondition(jnp.zeros((2, 24, stage.text_width)), jnp.zeros((2, 24), bool))
    noise = tuple(jnp.zeros((2, *shape)) for shape in latent_shapes(stage, (16, 16)))
    low_res = resize(x, 8, 8)
    params = perturbed_params(stage)

    @jax.jit
    def loss(low_res):
        condition = stage.augment_low_res(low_res, jnp.zeros(2), jnp.zeros(low_res.shape))
        batch = VAEBatch(x, text, condition, noise, jnp.ones(2))
        return vae_loss(stage, batch, encode_batch(stage, params, batch)).kls

    assert np.any(np.abs(loss(low_res) - loss(-low_res)) > 1e-4)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model.latent_groups": (1, 0)}, "model.latent_groups"),
        ({"model.latent_groups": (1,)}, "model.latent_groups"),
        ({"model.num_res_blocks": (1,)}, "model.num_res_blocks"),
        ({"image_size": 9}, "image_size"),
        ({"model.head_channels": 3}, "model.head_channels"),
        ({"vae.kl_balancing": True}, "vae.kl_balancing"),
        ({"vae.components": 0}, "vae.components"),
        ({"sampling.guidance_scale": 2.0}, "sampling.guidance_scale"),
        ({"sampling.temperature": -1.0}, "sampling.temperature"),
        ({"sampling.tile_size": 4}, "sampling.tile_size"),
        ({"inpainting.enabled": True}, "inpainting.enabled"),
        ({"adapter.kind": "lora", "training.init_from": "x"}, "adapter.kind"),
        ({"optimizer.skip_norm": -1.0}, "optimizer.skip_norm"),
    ],
)
def test_bad_configs_are_refused(changes, key):
    with pytest.raises(ConfigError) as error:
        vae_config(**changes)
    assert any(problem.startswith(key) for problem in error.value.problems)


def test_vae_keys_need_a_vae():
    with pytest.raises(ConfigError) as error:
        base_config(**{"vae.kl_warmup_steps": 3})
    assert "vae.kl_warmup_steps has no effect" in error.value.problems[0]


def test_two_rows_on_two_devices_are_refused():
    config = vae_config(**{"image_size": 4, "mesh.spatial": 2, "mesh.data": 4})
    with pytest.raises(ConfigError) as error:
        check_training(config)
    assert "two rows" in error.value.problems[0]


def test_configs_without_the_keys_load():
    saved = to_json(base_config())
    del saved["vae"], saved["optimizer"]["skip_norm"], saved["sampling"]["temperature"]
    assert from_json(saved) == base_config()
