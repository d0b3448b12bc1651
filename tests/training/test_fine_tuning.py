"""A run may start from another stage's weights and train a part of them; the rest stays as it is, to the bit."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError, TrainingError
from imagen_jax.io import checksums
from imagen_jax.pipelines.loading import load_stage
from imagen_jax.stages import stage as stages
from imagen_jax.stages.checkpoints import Checkpoints
from imagen_jax.stages.frozen import frozen_shapes, load_frozen, save_frozen
from imagen_jax.stages.trainable import merge, param_paths, split
from imagen_jax.stages.weights import SavedWeights
from imagen_jax.text.encoder import TextCondition
from imagen_jax.training import loop
from imagen_jax.training.init_from import StartingPoint, config_differences
from imagen_jax.training.loop import train
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_parts
from tests.helpers.configs import STEPS, base_config, contents, one_device, split_devices, write_stage
from tests.helpers.crash import Killed, killing

pytest_plugins = ("tests.helpers.fixtures",)
PATTERNS = ("text_key", "^out/", "^out_norm/")


def tuned_config(source, **changes):
    return base_config(**{"training.init_from": str(source), "training.trainable": PATTERNS, **changes})


def weights_of(folder, item="ema_params"):
    """All weights of a stage's folder by path, on the host."""
    weights = SavedWeights(folder, item)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), weights.shapes
    )
    loaded = weights.load(abstract)
    return dict(zip(param_paths(loaded), map(np.asarray, jax.tree.leaves(loaded)), strict=True))


def state_of(folder, config):
    """The state in a folder's latest checkpoint and the frozen parameters, on one device."""
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    parts = abstract_parts(stages.build(config).init, optimizer, one_device(), (), config.training.trainable)
    checkpoints = Checkpoints(folder)
    state, _ = checkpoints.restore(parts[0])
    checkpoints.close()
    return state, load_frozen(folder, parts[1])


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.fixture(scope="module")
def source(base_folder, tmp_path_factory):
    """A copy of a trained stage, which a test may delete."""
    return shutil.copytree(base_folder, tmp_path_factory.mktemp("source") / "base")


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """Fine-tuned in one go."""
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    train(tuned_config(source), folder)
    return folder


def test_frozen_parameters_are_bit_equal(source, tuned):
    before = weights_of(source)
    for item in ("ema_params", "params"):
        after = weights_of(tuned, item)
        assert after.keys() == before.keys()
        moved = {path for path in before if not np.array_equal(before[path], after[path])}
        trainable = {path for path in before if path.startswith(("out/", "out_norm/")) or "text_key" in path}
        assert moved == trainable


def test_state_has_trained_parameters_only(tuned):
    items = {path.name for path in (tuned / "checkpoints" / str(STEPS)).iterdir() if path.is_dir()}
    assert {"params", "opt_state", "ema_params"} <= items
    state, frozen = state_of(tuned, tuned_config(""))
    trained = param_paths(state.params)
    assert trained == param_paths(state.ema_params)
    assert len(trained) == 8
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(state.params)])
    assert not set(trained) & set(param_paths(frozen))


def test_log_says_where_weights_are_from(source, tuned):
    log = (tuned / "log.txt").read_text()
    number = len(weights_of(source))
    assert f"{number} of the network's {number} arrays are taken" in log
    assert f"ema weights of '{source}' at step {STEPS}" in log
    assert "trained" in log and "frozen" in log


def test_encoder_by_another_path_is_no_other_encoder(tmp_path, monkeypatch):
    (tmp_path / "encoder").mkdir()
    monkeypatch.chdir(tmp_path)
    trained, given = (base_config(**{"text.model": str(path)}) for path in (tmp_path / "encoder", "encoder"))
    assert config_differences(trained, given) == []
    (difference,) = config_differences(trained, given.with_changes({"text.model": "random", "training.steps": 9}))
    assert "text.model was" in difference and "random" in difference


def test_resume_is_bit_exact(source, tuned, tmp_path):
    """After a kill between the frozen parameters and the first checkpoint, and without the source later on."""
    folder, moved = tmp_path / "tuned", source.with_name("moved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Goodput", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(tuned_config(source), folder)
    assert frozen_shapes(folder)
    assert not list((folder / "checkpoints").iterdir())
    train(tuned_config(source, **{"training.steps": 3}), folder)
    written = {path: path.stat().st_mtime_ns for path in (folder / "frozen").rglob("*")}
    source.rename(moved)
    try:
        train(tuned_config(source), folder)
    finally:
        moved.rename(source)
    assert {path: path.stat().st_mtime_ns for path in (folder / "frozen").rglob("*")} == written
    for one, other in zip(state_of(folder, tuned_config(source)), state_of(tuned, tuned_config(source)), strict=True):
        assert_equal(one, other)


def test_kills_while_frozen_parameters_are_saved(tmp_path):
    params = {"a": {"kernel": jax.numpy.arange(12.0)}, "b": jax.numpy.ones(3)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    save_frozen(tmp_path, jax.tree.map(lambda leaf: leaf + 1, params))
    killed = 0
    for at in range(100):
        with pytest.MonkeyPatch.context() as patch:
            killing(patch, at, (shutil, "rmtree"))
            try:
                save_frozen(tmp_path, params)
                break
            except (Killed, TrainingError):
                killed += 1
    assert killed > 3
    assert_equal(load_frozen(tmp_path, abstract), params)
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == ["0"]


def test_frozen_parameters_in_bucket(bucket):
    params = {"a": {"kernel": jax.numpy.arange(12.0)}, "b": jax.numpy.ones(3)}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    workdir = bucket / "tuned"
    for added in (1, 0):
        save_frozen(workdir, jax.tree.map(lambda leaf, added=added: leaf + added, params))
    assert_equal(load_frozen(workdir, abstract), params)
    (workdir / "frozen" / "0" / "SHA256SUMS").unlink()
    with pytest.raises(TrainingError, match="frozen"):
        load_frozen(workdir, abstract)


def test_damaged_or_missing_frozen_parameters(source, tuned, tmp_path):
    folder = shutil.copytree(tuned, tmp_path / "tuned")
    file = next(path for path in (folder / "frozen").rglob("*") if path.is_file() and path.parent.name == "d")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for _ in range(2):
        with pytest.raises(TrainingError, match="frozen"):
            train(tuned_config(source, **{"training.steps": STEPS + 1}), folder)
        with pytest.raises(TrainingError, match="frozen"):
            SavedWeights(folder)
        shutil.rmtree(folder / "frozen" / "0", ignore_errors=True)


def test_sampling_uses_ema_and_frozen(tuned):
    config = tuned_config("")
    params = load_stage(tuned, config, split_devices()).params
    expected = weights_of(tuned)
    assert param_paths(params) == list(expected)
    for leaf, other in zip(jax.tree.leaves(params), expected.values(), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.slow
def test_raw_weights(source, tmp_path):
    config = tuned_config(source, **{"training.init_weights": "raw", "training.steps": 1})
    train(config, tmp_path / "tuned")
    before, after = weights_of(source, "params"), weights_of(tmp_path / "tuned")
    assert all(np.array_equal(before[path], after[path]) for path in before if path.startswith("stem/"))
    assert "raw weights" in (tmp_path / "tuned" / "log.txt").read_text()


@pytest.mark.slow
def test_partial_start(source, tmp_path):
    """A network with one block more in its only level, and another patch size."""
    changes = {"model.num_res_blocks": (2,), "model.patch_size": 1, "training.trainable": ()}
    config = tuned_config(source, **changes, **{"training.steps": 1})
    with pytest.raises(ConfigError, match="new in the network.*of another shape") as error:
        train(config, tmp_path / "tuned")
    assert "training.init_partial" in str(error.value)
    assert not (tmp_path / "tuned").exists()
    train(config.with_changes({"training.init_partial": True, "optimizer.learning_rate": 1e-9}), tmp_path / "tuned")
    before, after = weights_of(source), weights_of(tmp_path / "tuned")
    fitting = {path for path in before if path in after and before[path].shape == after[path].shape}
    assert 50 < len(fitting) < len(after)
    for path in fitting:
        np.testing.assert_allclose(after[path], before[path], atol=1e-6)
    log = (tmp_path / "tuned" / "log.txt").read_text()
    assert f"{len(fitting)} of the network's {len(after)} arrays are taken" in log
    assert "left in the folder" not in log


INPAINTING = {"inpainting.enabled": True, "inpainting.objects": 1.0, "training.trainable": ("^known_",)}


@pytest.mark.slow
def test_stage_that_inpaints_starts_as_its_parent(source):
    """What it predicts at first, for any image and mask, is to the bit what the parent predicts."""
    config = tuned_config(source, **INPAINTING)
    stage, parent = stages.build(config), stages.build(tuned_config(source))
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    trained, frozen = abstract_parts(stage.init, optimizer, one_device(), (), config.training.trainable)
    everything = merge(trained.params, frozen)
    messages = []
    params = StartingPoint(config, everything).load(stage.init, messages.append)
    old = {part: value for part, value in params.items() if not part.startswith("known_")}
    assert_equal(dict(zip(param_paths(old), jax.tree.leaves(old), strict=True)), weights_of(source))
    assert any("new in the network: known_skip" in message for message in messages)
    assert any("inpainting.enabled" in message for message in messages)
    x, mask = jax.random.normal(jax.random.key(0), (2, 8, 8, 3)), jax.numpy.ones((2, 8, 8, 1)).at[:, 2:].set(0)
    text = TextCondition(jax.numpy.ones((2, 24, stage.text_width)), jax.numpy.ones((2, 24), bool))
    arguments = x, jax.numpy.zeros(2), text
    prediction = jax.jit(lambda params: stage.predict(params, *arguments, stage.mask_known(x, mask))[0])(params)
    np.testing.assert_array_equal(prediction, jax.jit(lambda params: parent.predict(params, *arguments, {})[0])(old))


@pytest.mark.slow
def test_stage_that_inpaints_resumes(source, tmp_path):
    """Its masks are a function of the step; what is frozen stays that of the parent."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(tuned_config(source, **INPAINTING), straight)
    train(tuned_config(source, **INPAINTING, **{"training.steps": 3}), resumed)
    train(tuned_config(source, **INPAINTING), resumed)
    for item in ("ema_params", "params"):
        after, before = weights_of(straight, item), weights_of(source)
        assert_equal(weights_of(resumed, item), after)
        assert all(np.array_equal(before[path], after[path]) for path in before)
        assert all(np.abs(after[path]).max() > 0 for path in after.keys() - before.keys())


def test_other_new_parts_are_refused(source, tmp_path):
    """Only what `inpainting` adds may be missing in the parent."""
    with pytest.raises(ConfigError, match=r"training\.init_from.*new in the network"):
        changes = {"model.num_res_blocks": (2,), "training.trainable": (), "inpainting.enabled": True}
        train(tuned_config(source, **changes), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.slow
def test_start_on_other_meshes(source, tmp_path):
    config = tuned_config(source, **{"training.steps": 1, "mesh.fsdp": 4, "mesh.data": 2})
    train(config, tmp_path / "tuned")
    before, after = weights_of(source), weights_of(tmp_path / "tuned")
    assert all(np.array_equal(before[path], after[path]) for path in before if path.startswith("stem/"))


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"training.trainable": ("no_such_layer",)}, "no_such_layer"),
        ({"training.trainable": ("out", "no_such_layer")}, "no_such_layer"),
        ({"training.trainable": (".*",)}, "training.trainable"),
        ({"training.init_from": "/no/such/folder"}, "training.init_from.*/no/such/folder"),
        ({"model.channels": 16}, "training.init_from.*of another shape"),
        ({"model.middle_attention_types": ()}, "training.init_from.*left in the folder"),
    ],
    ids=["no match", "one without match", "all match", "no folder", "wider network", "smaller network"],
)
def test_wrong_use_writes_nothing(source, tmp_path, changes, key):
    with pytest.raises(ConfigError, match=key) as error:
        train(tuned_config(source, **{"training.trainable": (), **changes}), tmp_path / "tuned")
    assert all("\n" not in problem and len(problem) < 1000 for problem in error.value.problems)
    assert not (tmp_path / "tuned").exists()


def test_start_from_folder_without_checkpoint(tmp_path):
    folder = write_stage(tmp_path / "untrained", base_config())
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        train(tuned_config(folder), tmp_path / "tuned")


def test_nothing_fits(source, tmp_path):
    config = tuned_config(source, **{"training.trainable": (), "training.init_partial": True})
    empty = shutil.copytree(source, tmp_path / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SavedWeights, "__init__", lambda self, *_: setattr(self, "shapes", {}))
        with pytest.raises(ConfigError, match="nothing that fits"):
            train(config.with_changes({"training.init_from": str(empty)}), tmp_path / "tuned")


@pytest.mark.parametrize("changes", [{"training.trainable": ("^out/",)}, {"training.init_from": ""}])
def test_resume_with_other_parts(source, tuned, changes):
    before = contents(tuned)
    with pytest.raises(ConfigError, match=next(iter(changes))):
        train(tuned_config(source, **changes), tuned)
    assert contents(tuned).keys() == before.keys()


@pytest.mark.parametrize(
    "changes", [{"training.trainable": ("(",)}, {"training.init_partial": True}, {"training.init_weights": "raw"}]
)
def test_config_is_checked(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        base_config(**changes)


def test_split_and_merge():
    params = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert split(params, ()) == (params, {})
    trainable, frozen = split(params, ("c/d", "^e$"))
    assert (trainable, frozen) == ({"a": {"c": {"d": 2}}, "e": 3}, {"a": {"b": 1}})
    assert merge(trainable, frozen) == merge(frozen, trainable) == params


def test_frozen_checksums_are_those_of_the_checkpoint(tuned, tmp_path):
    """Damage to their own file costs nothing, and frozen parameters of another run are refused."""
    folder = shutil.copytree(tuned, tmp_path / "tuned")
    frozen = folder / "frozen" / "0"
    (frozen / "SHA256SUMS").write_text("damaged")
    jax.tree.map(np.testing.assert_array_equal, weights_of(folder), weights_of(tuned))
    (frozen / "params" / "_METADATA").write_bytes((frozen / "params" / "_METADATA").read_bytes() + b" ")
    checksums.write_shard(frozen, 0, checksums.list_files(frozen))
    checksums.merge_shards(frozen, 1)
    with pytest.raises(TrainingError, match="_METADATA"):
        SavedWeights(folder)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_see_and_draw_gray_images_as_before(source, channels):
    config = base_config(**{"training.init_from": str(source), "channels": channels})
    stage, parent = stages.build(config), stages.build(base_config())
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state, _ = abstract_parts(stage.init, optimizer, split_devices())
    messages = []
    params = StartingPoint(config, state.params).load(stage.init, messages.append)
    assert any(f"averaged over 3 image channels and repeated for {channels}: " in text for text in messages)
    assert any("channels was 3 and is now" in text for text in messages)
    old = load_stage(source, base_config(), one_device()).params
    gray = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    text = TextCondition(jax.numpy.ones((2, 24, stage.text_width)), jax.numpy.ones((2, 24), bool))

    def predict(stage, params, image):
        return np.asarray(jax.jit(lambda params: stage.predict(params, image, jax.numpy.zeros(2), text, {})[0])(params))

    before, after = predict(parent, old, gray.repeat(3, -1)), predict(stage, params, gray.repeat(channels, -1))
    assert np.ptp(before, axis=-1).max() > 1e-3
    np.testing.assert_allclose(after, before.mean(axis=-1, keepdims=True).repeat(channels, -1), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_ema_is_continued(source, tmp_path):
    """A run of one step from both kinds of weights moves the EMA by 1 - decay, as the run that it continues would."""
    changes = {"training.init_weights": "both", "training.steps": 1, "optimizer.ema_decay": 0.9}
    train(base_config(**{"training.init_from": str(source)}, **changes), tmp_path / "tuned")
    ema, raw = weights_of(source), weights_of(source, "params")
    after, trained = weights_of(tmp_path / "tuned"), weights_of(tmp_path / "tuned", "params")
    assert any(not np.array_equal(ema[path], raw[path]) for path in ema)
    for path, array in after.items():
        np.testing.assert_allclose(array, 0.9 * ema[path] + 0.1 * trained[path], rtol=0, atol=1e-6)
        assert np.array_equal(raw[path], trained[path]) or np.abs(raw[path] - trained[path]).max() < 0.03


@pytest.mark.slow
def test_learning_rates_by_path(source, tmp_path):
    """Adam's first update of each parameter is the learning rate times its factor."""
    factors = (("^out/", 0.5), ("^stem/|^out_norm/", 0.0))
    changes = {"training.steps": 1, "optimizer.rate_factors": factors, "optimizer.clip_norm": 1e6}
    train(base_config(**{"training.init_from": str(source)}, **changes), tmp_path / "tuned")
    before, after = weights_of(source), weights_of(tmp_path / "tuned", "params")
    for path in before:
        factor = 0.5 if path.startswith("out/") else 0.0 if path.startswith(("stem/", "out_norm/")) else 1.0
        moved = np.abs(after[path] - before[path])
        assert moved.max() <= factor * 1.001e-2
        if path.endswith("/kernel") and "key" not in path:  # some gradients are small beside Adam's epsilon
            assert moved.max() >= 0.7 * factor * 1e-2, path
    with pytest.raises(ConfigError, match=r"rate_factors: '\^oud/' matches none .* such as '"):
        train(base_config(**{"training.init_from": str(source), "optimizer.rate_factors": (("^oud/", 1.0),)}), tmp_path)
