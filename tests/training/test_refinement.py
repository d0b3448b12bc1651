"""A stage that refines the images of a VAE: what it sees in training, and that the VAE stays as it is."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.data.dataset import first_examples
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation import diagnostics
from imagen_jax.evaluation.cascade_metrics import StageMetrics
from imagen_jax.evaluation.low_res import Reconstruct
from imagen_jax.images.array import to_float
from imagen_jax.parallel import batching
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.planning.programs import train_program
from imagen_jax.stages import stage as stages
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.text import make_encoder
from imagen_jax.stages.vae import decode, draw_noise, run_network
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.refinement import VAE_FILE
from imagen_jax.training.stage_objective import draw_low_res, encode_text
from imagen_jax.training.state import abstract_state
from imagen_jax.variational import logistics
from tests.helpers.configs import (
    STEPS,
    as_written,
    base_config,
    contents,
    one_device,
    perturbed_params,
    refine_config,
    restored,
    vae_config,
    vae_sr_config,
    write_stage,
)

VAE_STEP = 2
PROMPTS = ["a red circle", "a blue square", "a ring"]


def save_vae(folder, step, scale=0.1):
    """Saves a VAE as its run does at a step, with weights that depend on the scale."""
    config = vae_config()
    stage, optimizer = stages.build(config), make_optimizer(config.optimizer, config.training.steps)
    _, init = abstract_state(stage.init, optimizer, config.seed, one_device())
    state = init().replace(step=jnp.int32(step), ema_params=perturbed_params(stage, scale))
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, {"next_index": 0}, config, num_examples=[1])
    checkpoints.close()


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = write_stage(tmp_path_factory.mktemp("refinement") / "vae", vae_config())
    save_vae(folder, VAE_STEP)
    return folder


@pytest.fixture(scope="module")
def refiner(vae, tmp_path_factory):
    before = contents(vae)
    folder = tmp_path_factory.mktemp("refinement") / "refiner"
    train(refine_config(vae), folder)
    assert contents(vae) == before
    return folder


def test_condition_is_the_reconstruction(vae, tmp_path):
    task = DiffusionTask(refine_config(vae), one_device())
    objective, networks = task.objective, task.load_networks(tmp_path)
    features = [task.text_features(prompt) for prompt in [*PROMPTS, ""]]
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    batch = {"image": images} | {name: np.stack([each[name] for each in features]) for name in features[0]}
    batch, key = batching.shard_local_batch(batch, objective.batch_axes, one_device()), jax.random.key(5)
    draw = jax.jit(lambda networks: objective.draw(networks, batch, key, jnp.int32(0)))
    examples = draw(networks)

    # by hand: a sample of the posterior for each caption, none of them dropped, and the means of its pixels
    x = to_float(images)
    text = encode_text(objective.encoder, networks.encoder, batch)
    keys = jax.random.split(jax.random.fold_in(key, 2**17), 4)
    start_keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(keys)
    noise = draw_noise(objective.vae, start_keys, (8, 8))
    pixels = run_network(objective.vae, networks.vae, x, noise, text, {}).pixels
    mean = logistics.mean(logistics.read_mixture(pixels, 3, 256))
    np.testing.assert_allclose(objective.reconstruct(networks, batch, jax.random.fold_in(key, 2**17)), mean, atol=1e-5)
    expected = draw_low_res(objective.stage, jax.random.split(key, 5)[3], x, mean)
    for name, array in expected.items():
        np.testing.assert_allclose(examples.condition[name], array, atol=1e-5)

    assert np.any(np.abs(mean - decode(objective.vae, networks.vae, noise, text, {})) > 1e-3)  # latents of the image
    other = draw(networks._replace(vae=jax.tree.map(lambda leaf: 1.5 * leaf, networks.vae)))
    assert np.any(np.abs(other.condition["low_res"] - examples.condition["low_res"]) > 1e-3)
    np.testing.assert_array_equal(other.x, examples.x)
    np.testing.assert_array_equal(other.eps, examples.eps)


def test_vae_is_frozen_and_not_saved(vae, refiner):
    config = refine_config(vae)
    shapes = jax.eval_shape(stages.build(config).init, jax.random.key(0))
    assert jax.tree.structure(open_weights(refiner).shapes) == jax.tree.structure(shapes)
    assert not (refiner / "frozen").exists()
    state, _ = restored(refiner, config, one_device())
    assert state.step == STEPS
    pin = json.loads((refiner / VAE_FILE).read_text())
    assert (pin["step"], pin["weights"], pin["checkpoint"]) == (VAE_STEP, "ema", open_weights(vae).checksum)
    assert [line["step"] for line in read_metrics(refiner) if "loss" in line] == list(range(1, STEPS + 1))
    assert (refiner / "previews" / f"{STEPS:08d}.png").exists()


@pytest.mark.slow
def test_resume_is_bit_exact_with_a_vae_that_was_moved_and_trained_on(vae, refiner, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    train(refine_config(vae, **{"training.steps": 3}), run)
    shutil.copytree(vae, moved)
    save_vae(moved, VAE_STEP + 1, 0.3)
    train(refine_config(moved), run)
    one, other = (restored(folder, refine_config(vae), one_device()) for folder in (refiner, run))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert "diffusion.low_res_vae" in (run / "log.txt").read_text()


def test_another_vae_is_refused_on_resuming(vae, refiner, tmp_path):
    run = shutil.copytree(refiner, tmp_path / "run")
    pin = json.loads((run / VAE_FILE).read_text())
    (run / VAE_FILE).write_text(json.dumps(pin | {"checkpoint": "0" * 64}))
    with pytest.raises(ConfigError, match=r"diffusion\.low_res_vae .* other weights"):
        train(refine_config(vae, **{"training.steps": STEPS + 1}), run)
    (run / VAE_FILE).unlink()
    with pytest.raises(ConfigError, match=VAE_FILE):
        train(refine_config(vae, **{"training.steps": STEPS + 1}), run)


@pytest.mark.slow
def test_cascade_samples_without_the_folder_of_the_key(vae, refiner, tmp_path):
    pipe = ImagenPipeline.from_pretrained([vae, refiner], one_device())
    output = pipe(PROMPTS, seed=1)
    assert [images.shape for images in output.stages] == [(3, 8, 8, 3)] * 2
    assert np.any(output.images != pipe(PROMPTS, seed=1, temperature=[0.0, 1.0]).images)
    pipe.save_pretrained(tmp_path / "published")
    published = ImagenPipeline.from_pretrained(tmp_path / "published", one_device())
    name = published.stages[1].stage.config.diffusion.low_res_vae
    assert name == vae.name and not Path(name).exists()
    np.testing.assert_array_equal(published(PROMPTS, seed=1).images, output.images)
    assert read_config(refiner).refines


@pytest.mark.slow
def test_diagnostics_are_of_reconstructions(vae, refiner, monkeypatch):
    seen = []

    def make_validation(stage, mesh, batch_size):
        return lambda params, images, text, low_res=None: seen.append((images, low_res)) or {"loss": 1.0}

    monkeypatch.setattr(diagnostics, "make_validation", make_validation)
    pipe = ImagenPipeline.from_pretrained([vae, refiner], one_device())
    evaluation = as_written("shapes_eval.py", "").with_changes({"num_samples": 4, "batch_size": 3})
    metrics = diagnostics.compute_diagnostics(pipe, [StageMetrics(), StageMetrics()], evaluation)
    assert "8×8 refined" in diagnostics.format_diagnostics(pipe.stages, metrics)
    (_, nothing), (real, low_res) = seen
    assert nothing is None
    assert real.shape == low_res.shape == (4, 8, 8, 3)
    assert np.any(np.abs(low_res - to_float(real)) > 1e-2)
    # the same images in one batch
    captions = first_examples(make_examples(evaluation.data, evaluation.data.split, (8, 8), 3), 4)[1]
    whole = Reconstruct(pipe.stages[0], one_device())(real, pipe.text_encoders[0], captions)
    np.testing.assert_allclose(low_res, whole, atol=1e-5)


def test_plan_counts_the_vae(vae):
    config = refine_config(vae)
    program = train_program(config, one_device(), make_encoder(config.text))
    without = train_program(base_config(), one_device(), make_encoder(config.text))
    assert program.argument_bytes["low-res VAE"] > 0
    assert program.model_flops > without.model_flops


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_res_size": 4}, "low_res_size"),
        ({"low_res_size": 0}, "low_res_size"),
        ({"diffusion.low_res_vae": ""}, "low_res_size 8 must be below image_size 8"),
        ({"data.crop_size": 4}, r"data\.crop_size"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        refine_config("runs/vae", **changes)
    with pytest.raises(ConfigError, match=r"model\.network 'hvae'"):
        vae_config(**{"low_res_size": 8, "diffusion.low_res_vae": "runs/vae"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (base_config(), "a diffusion model"),
        (vae_config(**{"image_size": 16}), "16"),
        (vae_config(**{"channels": 1}), "1 channels"),
        (vae_config(**{"text.length": 32}), r"text\.length"),
        (vae_sr_config(), "enlarges"),
        (None, "does not exist|no such|not"),
    ],
)
def test_vaes_that_do_not_fit(config, message, tmp_path):
    folder = tmp_path / "other"
    if config is not None:
        write_stage(folder, config)
    with pytest.raises(ConfigError, match=message) as error:
        train(refine_config(folder), tmp_path / "run")
    assert error.value.problems[0].startswith("diffusion.low_res_vae")
    assert not (tmp_path / "run").exists()
