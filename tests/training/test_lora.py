"""An adapter is trained beside a network that stays as it is, to the bit, and is all that its run saves."""

import json
import shutil

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import file_sizes
from imagen_jax.pipelines.loading import load_stage
from imagen_jax.stages import lora
from imagen_jax.stages import stage as stages
from imagen_jax.stages.adapter import trained_patterns
from imagen_jax.stages.base import BASE_FILE
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.trainable import param_paths
from imagen_jax.training import loop
from imagen_jax.training.loop import train
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_parts
from tests.helpers.configs import STEPS, base_config, contents, one_device
from tests.helpers.crash import Killed

pytest_plugins = ("tests.helpers.fixtures",)
TARGETS = ("query", "^out$")
MODULES = ["middle_attend/self_text_0/query", "out"]


def lora_config(source, **changes):
    adapter = {"adapter.kind": "lora", "adapter.rank": 2, "adapter.alpha": 3.0, "adapter.targets": TARGETS}
    return base_config(**{"training.init_from": str(source), **adapter, **changes})


def state_of(folder, config):
    """The state in a folder's latest checkpoint, on one device."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    patterns = trained_patterns(config)
    abstract, _ = abstract_parts(stages.build(config).init, optimizer, one_device(), (), patterns)
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(abstract)
    checkpoints.close()
    return state


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def source(base_folder):
    return base_folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, source):
    """A run that has trained an adapter beside a stage, which it left as it was."""
    folder, before = tmp_path_factory.mktemp("lora") / "run", contents(source)
    train(lora_config(source), folder)
    assert contents(source) == before
    return folder


def test_run_saves_the_adapter_alone(source, adapted):
    state = state_of(adapted, lora_config(source))
    expected = sorted(f"{module}/{half}" for module in MODULES for half in (lora.LORA_A, lora.LORA_B))
    assert param_paths(state.params) == param_paths(state.ema_params) == expected
    assert not (adapted / "frozen").exists()
    sizes = file_sizes(adapted / "checkpoints" / str(STEPS))
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert trained < 1000 and sum(size for name, size in sizes.items() if "/d/" in name) < 20_000


def test_sampling_weights_are_those_of_the_stage_with_the_product_added(source, adapted):
    config = lora_config(source)
    mesh = one_device()
    before = load_stage(source, read_config(source), mesh)
    after = load_stage(adapted, read_config(adapted), mesh)
    assert not after.stage.config.adapter.enabled and after.checksum != before.checksum
    factors = state_of(adapted, config).ema_params
    changed = 0
    for path in param_paths(before.params):
        old, new = (np.asarray(at(trained.params, path)) for trained in (before, after))
        module = path.removesuffix("/kernel")
        if module not in MODULES or module == path:
            np.testing.assert_array_equal(old, new)
            continue
        a, b = (np.asarray(at(factors, f"{module}/{half}"), np.float64) for half in (lora.LORA_A, lora.LORA_B))
        np.testing.assert_allclose(new, old + 1.5 * a @ b, rtol=0, atol=1e-6)
        changed += not np.array_equal(old, new)
    assert changed == len(MODULES)


def at(params, path):
    for name in path.split("/"):
        params = params[name]
    return params


@pytest.mark.slow
def test_first_loss_is_that_of_the_stage(source, adapted, tmp_path):
    train(base_config(**{"training.init_from": str(source), "training.steps": 1}), tmp_path / "full")
    assert losses(adapted)[1] == losses(tmp_path / "full")[1]


def test_split_parameters_train_the_same_adapter(source, adapted, tmp_path):
    train(lora_config(source, **{"mesh.data": 2, "mesh.fsdp": 4}), tmp_path / "split")
    np.testing.assert_allclose(*(list(losses(folder).values()) for folder in (adapted, tmp_path / "split")), rtol=1e-4)


def test_resumed_run_is_the_unbroken_run(source, adapted, tmp_path):
    """After a kill between the name of the base and the first checkpoint, too."""
    config, folder = lora_config(source), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Goodput", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, folder)
    assert (folder / BASE_FILE).exists() and not list((folder / "checkpoints").iterdir())
    train(config.with_changes({"training.steps": 3}), folder)
    train(config, folder)
    assert_equal(state_of(folder, config), state_of(adapted, config))


@pytest.mark.parametrize("what", ["gone", "trained on", "damaged file"])
def test_stage_of_an_adapter_that_is_not_there(what, source, adapted, tmp_path):
    folder = shutil.copytree(adapted, tmp_path / "run")
    base = shutil.copytree(source, tmp_path / "base")
    entry = json.loads((folder / BASE_FILE).read_text())
    (folder / BASE_FILE).write_text(json.dumps({**entry, "folder": str(base)}))
    assert open_weights(folder).checksum == open_weights(adapted).checksum
    if what == "gone":
        shutil.rmtree(base)
    elif what == "trained on":
        (folder / BASE_FILE).write_text(json.dumps({**entry, "checkpoint": "0" * 64}))
    else:
        (folder / BASE_FILE).write_text('{"folder"')
    message = {"gone": str(base), "trained on": "other weights", "damaged file": BASE_FILE}[what]
    with pytest.raises(ConfigError, match=message):
        open_weights(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.init_from": ""}, "needs training.init_from"),
        ({"training.trainable": ("out",)}, "training.trainable"),
        ({"training.init_partial": True}, "training.init_partial"),
        ({"adapter.targets": ("(",)}, "adapter.targets"),
        ({"adapter.kind": "none"}, "adapter.rank, adapter.alpha, adapter.targets has no effect"),
    ],
)
def test_settings_that_cannot_work(changes, message, source):
    with pytest.raises(ConfigError, match=message):
        lora_config(source, **changes)


def test_targets_that_are_no_modules(source, tmp_path):
    with pytest.raises(ConfigError, match="'to_q' matches none of the network's .* such as"):
        train(lora_config(source, **{"adapter.targets": ("query", "to_q")}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_keeps_its_rank(source, adapted, tmp_path):
    folder = shutil.copytree(adapted, tmp_path / "run")
    with pytest.raises(ConfigError, match="adapter.rank was 2 and is now 4"):
        train(lora_config(source, **{"adapter.rank": 4}), folder)


def test_adapter_of_an_adapted_stage_is_refused(adapted, tmp_path):
    with pytest.raises(ConfigError, match="lora_a"):
        train(lora_config(adapted, **{"adapter.targets": ("^stem$",)}), tmp_path / "run")
