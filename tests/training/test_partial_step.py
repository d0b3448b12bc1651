"""A step that trains a part of the network moves it as a step that trains everything does."""

import jax
import numpy as np
import pytest

from imagen_jax.datasets.registry import make_source
from imagen_jax.parallel import batching, sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages import stage as stages
from imagen_jax.stages.text import make_encoder
from imagen_jax.stages.trainable import merge, select, split
from imagen_jax.training.diffusion import DiffusionObjective
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.stage_objective import TRAINING_AXES
from imagen_jax.training.state import Frozen, abstract_parts, first_state
from imagen_jax.training.step import make_train_step
from tests.helpers.configs import base_config, one_device, perturbed_params

PATTERNS = ("^out", "middle_attend/.*_(key|value)/", "conditioning/text_pooling")


def stage_of(**changes):
    # no clipping, which depends on the norm of all gradients; a large eps, because Adam would scale rounding noise
    return stages.build(base_config(**{"optimizer.clip_norm": 1e9, "optimizer.eps": 1e-3, **changes}))


def step_of(stage, mesh, patterns):
    """(state after one step, frozen parameters, metrics) from perturbed parameters."""
    config, optimizer = stage.config, make_optimizer(stage.config.optimizer, stage.config.training.steps)
    abstract, abstract_frozen = abstract_parts(stage.init, optimizer, mesh, (), patterns)
    params, frozen = split(perturbed_params(stage), patterns)
    place = lambda tree, like: jax.tree.map(lambda leaf, a: jax.device_put(leaf, a.sharding), tree, like)  # noqa: E731
    state = first_state(optimizer, abstract, place(params, abstract.params))
    encoder = make_encoder(config.text)
    frozen = Frozen(encoder.load(mesh), place(frozen, abstract_frozen))
    source = make_source(config.data, "train", config.image_size)
    examples = [source[i] for i in range(config.training.batch_size)]
    tokens, mask = encoder.tokenize([example.captions[0] for example in examples])
    batch = {"image": np.stack([example.image for example in examples]), "tokens": tokens, "mask": mask}
    step = make_train_step(DiffusionObjective(stage, encoder), config, optimizer, abstract, mesh)
    state, metrics = step(state, frozen, batching.shard_local_batch(batch, TRAINING_AXES, mesh))
    return jax.device_get(state), frozen.params, jax.device_get(metrics)


def assert_same_step(one, other, atol):
    (state, _, metrics), (expected, _, expected_metrics) = one, other
    paths = set(map(sharding.key_path, (path for path, _ in jax.tree_util.tree_leaves_with_path(state.params))))
    for tree, full in ((state.params, expected.params), (state.ema_params, expected.ema_params)):
        part = select(full, paths)
        assert jax.tree.structure(tree) == jax.tree.structure(part)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), tree, part)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adafactor", "muon"])
def test_partial_step_moves_like_full_step(optimizer):
    stage = stage_of(**{"optimizer.name": optimizer})
    full, partial = (step_of(stage, one_device(), patterns) for patterns in ((), PATTERNS))
    assert_same_step(partial, full, 1e-6)
    moments = [sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) for state, *_ in (full, partial)]
    assert moments[1] < 0.3 * moments[0]
    start = perturbed_params(stage)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), partial[0].params, split(start, PATTERNS)[0])
    assert all(jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, merge(partial[1], split(start, PATTERNS)[0]), start)


@pytest.mark.slow
def test_partial_step_on_a_mesh(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARD_SIZE", 2**8)
    changes = {"training.grad_accum_steps": 2, "training.remat": "full"}
    mesh = make_mesh({"data": 1, "fsdp": 2, "spatial": 4})
    partial = step_of(stage_of(**changes), mesh, PATTERNS)
    frozen = jax.tree.leaves(partial[1])
    assert any(leaf.addressable_shards[0].data.size < leaf.size for leaf in frozen)
    assert_same_step(partial, step_of(stage_of(), one_device(), PATTERNS), 1e-5)
