"""Training that reads embeddings from a cache is training with the encoder in the loop, and needs no encoder."""

import jax
import numpy as np
import pytest

from imagen_jax.data.pipeline import training_batches
from imagen_jax.datasets.from_config import make_examples
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import batching
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages import stage as stages
from imagen_jax.stages import text
from imagen_jax.stages.precompute_text import embed
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.stages.workdir import open_workdir, read_config
from imagen_jax.text.embedding_cache import EmbeddingCache
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.loop import train
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES
from imagen_jax.training.state import Frozen, abstract_state
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import STEPS, base_config, one_device, restored

pytestmark = pytest.mark.slow

BFLOAT16 = 2**-8  # of a number, at most


def config_of(**changes):
    # "empty" so that what stands for a dropped caption comes from the cache too
    fixed = {"data.num_examples": 40, "diffusion.null_text": "empty", "diffusion.cond_drop_prob": 0.3}
    return base_config(**{**fixed, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    embed(config_of(), folder, "bfloat16", batch_size=8, shard_rows=16)
    return folder


@pytest.fixture(scope="module")
def cached_config(cache):
    return config_of(**{"text.cache": str(cache), "text.fingerprint": EmbeddingCache(cache).plan.fingerprint})


@pytest.fixture(scope="module")
def in_the_loop():
    """(losses, parameters) of the same training with the encoder in the loop."""
    config = config_of()
    mesh = make_mesh(config.mesh.axes)
    encoder = make_encoder(config.text)
    stage = stages.build(config, encoder.width)
    batches = training_batches(
        make_examples(config.data, "train", config.image_size, config.channels),
        text_features=encoder.tokenize.as_features,
        batch_size=config.training.batch_size,
        seed=config.seed,
        threads=1,
        prefetch=1,
    )
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    abstract, init_state = abstract_state(stage.init, optimizer, config.seed, mesh)
    losses = []
    state, step = init_state(), make_train_step(DiffusionObjective(stage, encoder), config, optimizer, abstract, mesh)
    for _ in range(STEPS):
        batch = batching.shard_local_batch(next(batches), TRAINING_AXES, mesh)
        state, metrics = step(state, Frozen(encoder.load(mesh)), batch)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def from_cache(tmp_path_factory, cached_config):
    """A stage that was trained where there is no encoder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "load_encoder", lambda *_: pytest.fail("the encoder was asked for"))
        folder = tmp_path_factory.mktemp("cached") / "stage"
        train(cached_config, folder)
        return folder


def test_it_is_the_training_with_the_encoder_in_the_loop(in_the_loop, from_cache):
    losses, params = in_the_loop
    found = [line["loss"] for line in read_metrics(from_cache) if "loss" in line]
    assert found == pytest.approx(losses, rel=2 * BFLOAT16)
    assert found != losses
    state, _ = restored(from_cache, config_of(), one_device())
    params, cached_params = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (params, state.params)
    )
    # Adam makes of a gradient near 0, of whatever sign, a step of full length
    assert np.linalg.norm(cached_params - params) < 4 * BFLOAT16 * np.linalg.norm(params)


def test_previews_are_drawn_without_the_encoder(from_cache):
    assert len(list((from_cache / "previews").iterdir())) == 2


def test_what_it_samples_with_is_the_encoder_as_new_prompts_are_in_no_cache(from_cache):
    pipeline = ImagenPipeline.from_pretrained([from_cache], one_device())
    embeddings, mask = pipeline.encode_prompt("a prompt that is in no cache")
    assert np.abs(embeddings[mask]).max() > 0


def test_another_encoder_of_the_same_width_is_refused_in_sampling_too(from_cache):
    config = read_config(from_cache).with_changes({"text.fingerprint": "0" * 32})
    with pytest.raises(ConfigError, match="text encoder 'random' has fingerprint .*text.fingerprint is 000"):
        _ = PromptEncoder(make_encoder(config.text), one_device(), config.text).params


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data.seed": 1}, "lacks the caption '"),
        ({"data.split": "held_out"}, "lacks the caption '"),
        ({"data.validation_split": "held_out"}, "lacks the caption '"),
        ({"text.length": 32}, "length 24, .* has 32"),
        ({"text.fingerprint": "0" * 32}, "text encoder has 000"),
        ({"text.cache": "/none/there"}, "'/none/there' is not a complete embedding cache"),
    ],
    ids=str,
)
def test_a_cache_that_is_not_the_configs_is_refused_before_anything_is_written(tmp_path, cached_config, changes, said):
    config = cached_config.with_changes(changes)
    with pytest.raises(ConfigError, match=said) as refused:
        train(config, tmp_path / "stage")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "stage").exists()


def test_a_run_goes_on_with_the_encoder_or_from_another_cache(from_cache, cached_config):
    """Its cache is not part of what a run is."""
    for place in ("", "/another/place"):
        open_workdir(from_cache, cached_config.with_changes({"text.cache": place}))
