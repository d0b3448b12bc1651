"""A word of the frozen text encoder is learned, alone or with adapters; network and encoder stay as they are."""

import shutil

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.io.paths import file_sizes
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.publishing.publish import PublishSettings, publish
from imagen_jax.stages.lora_files import FILE as LORA_FILE
from imagen_jax.stages.trainable import param_paths
from imagen_jax.text.learned_tokens import FILE, read_learned, write_learned
from imagen_jax.training.diffusion_task import DiffusionTask
from imagen_jax.training.loop import train
from imagen_jax.training.to_lora import to_lora
from tests.helpers.configs import base_config, contents, one_device, perturbed_params
from tests.training.test_lora import assert_equal, losses, state_of

pytest_plugins = ("tests.helpers.fixtures",)


def inversion_config(source, **changes):
    """The word is part of the captions of shapes when it is "circle" that is learned."""
    token = {"adapter.token": "circle", "adapter.initializer": "ring", "adapter.vectors": 4}
    start = {"adapter.kind": "textual_inversion", "training.init_from": str(source), "optimizer.learning_rate": 0.1}
    return base_config(**{**start, **token, **changes})


@pytest.fixture(scope="module")
def learned(tmp_path_factory, base_folder):
    """A run that has learned a word beside a stage, which it left as it was."""
    folder, before = tmp_path_factory.mktemp("inversion") / "run", contents(base_folder)
    train(inversion_config(base_folder), folder)
    assert contents(base_folder) == before
    return folder


def images(pipe, prompt="a red circle"):
    return pipe(prompt, seed=1).images


def test_run_saves_the_rows_alone(base_folder, learned):
    config = inversion_config(base_folder)
    state = state_of(learned, config)
    assert param_paths(state.params) == param_paths(state.ema_params) == ["learned_token/rows"]
    rows = np.asarray(state.params["learned_token"]["rows"])
    first = ImagenPipeline.from_pretrained([base_folder]).text_encoders[0].encoder
    tokens, _ = first.tokenize(["ring"])
    started = np.asarray(first.params["token_embedding"]["embedding"])[tokens[0][:4]]
    assert rows.shape == started.shape and (np.abs(rows - started).max(axis=1) > 1e-3).all()
    assert not (learned / "frozen").exists()
    sizes = file_sizes(learned / "checkpoints")
    assert sum(size for name, size in sizes.items() if "/d/" in name) < 40_000


@pytest.mark.slow
def test_first_loss_is_that_of_the_initializer(base_folder, tmp_path):
    """A word that starts as the rows of itself changes nothing before it is trained."""
    itself = {"adapter.initializer": "circle", "adapter.vectors": 6, "training.steps": 1}
    train(inversion_config(base_folder, **itself), tmp_path / "run")
    train(base_config(**{"training.init_from": str(base_folder), "training.steps": 1}), tmp_path / "full")
    np.testing.assert_allclose(losses(tmp_path / "run")[1], losses(tmp_path / "full")[1], rtol=1e-6)


@pytest.mark.slow
def test_split_devices_learn_the_same(base_folder, learned, tmp_path):
    train(inversion_config(base_folder, **{"mesh.data": 2, "mesh.fsdp": 4}), tmp_path / "split")
    np.testing.assert_allclose(*(list(losses(folder).values()) for folder in (learned, tmp_path / "split")), rtol=1e-4)


@pytest.mark.slow
def test_micro_batches_learn_the_same(base_folder, learned, tmp_path):
    micro = {"training.grad_accum_steps": 2, "mesh.data": 4, "mesh.spatial": 2}
    train(inversion_config(base_folder, **micro), tmp_path / "micro")
    np.testing.assert_allclose(*(list(losses(folder).values()) for folder in (learned, tmp_path / "micro")), rtol=1e-4)


def test_resumed_run_is_the_unbroken_run(base_folder, learned, tmp_path):
    config = inversion_config(base_folder)
    train(config.with_changes({"training.steps": 3}), tmp_path / "run")
    train(config, tmp_path / "run")
    assert_equal(state_of(tmp_path / "run", config), state_of(learned, config))


def test_file_samples_what_the_run_samples(base_folder, sr_folder, learned, tmp_path):
    written = to_lora(learned, tmp_path / "word", kind="embedding")
    assert [file.name for file in written.files] == [FILE] and "--embedding" in written.summary()
    pipe = ImagenPipeline.from_pretrained([base_folder, sr_folder])
    before, checksum = images(pipe), pipe.stages[0].checksum
    pipe.load_embedding(tmp_path / "word")
    assert pipe.learned_tokens == ["circle"] and pipe.stages[0].checksum != checksum
    after, ring = images(pipe), images(pipe, "a red ring")
    assert not np.array_equal(after, before)
    run = ImagenPipeline.from_pretrained([learned, sr_folder])
    assert run.learned_tokens == ["circle"]
    np.testing.assert_array_equal(images(run), after)
    pipe.load_embedding(tmp_path / "word")  # again, the same
    pipe.unload_embedding()
    assert pipe.stages[0].checksum == checksum and pipe.learned_tokens == []
    np.testing.assert_array_equal(images(pipe), before)
    np.testing.assert_array_equal(images(pipe, "a red ring"), ring)


@pytest.mark.slow
def test_word_of_another_name(base_folder, learned, tmp_path):
    to_lora(learned, tmp_path / "word", kind="embedding")
    pipe = ImagenPipeline.from_pretrained([base_folder])
    pipe.load_embedding(tmp_path / "word").load_embedding(tmp_path / "word" / FILE, "sks")
    np.testing.assert_array_equal(images(pipe, "a red sks"), images(pipe))
    rows = read_learned(tmp_path / "word").words["circle"]
    write_learned(tmp_path / "other" / FILE, {"sks": 2 * rows}, pipe.text_encoders[0].fingerprint)
    with pytest.raises(ConfigError, match="'sks' is learned already"):
        pipe.load_embedding(tmp_path / "other")
    with pytest.raises(ConfigError, match='learned token "sk" is unknown|learned token'):
        pipe.unload_embedding("sk")
    with pytest.raises(ConfigError, match="no text encoder"):
        ImagenPipeline.from_pretrained([base_folder], text_encoder=False).load_embedding(tmp_path / "word")


@pytest.mark.slow
def test_adapter_and_word_together(base_folder, sr_folder, tmp_path):
    """They are trained in one run, written to one folder, and loaded by one call."""
    lora = {"adapter.kind": "lora", "adapter.rank": 2, "adapter.targets": ("^out$",)}
    train(inversion_config(base_folder, **lora), tmp_path / "run")
    paths = param_paths(state_of(tmp_path / "run", inversion_config(base_folder, **lora)).params)
    assert paths == ["learned_token/rows", "out/lora_a", "out/lora_b"]
    to_lora(tmp_path / "run", tmp_path / "both")
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [FILE, LORA_FILE]
    pipe = ImagenPipeline.from_pretrained([base_folder, sr_folder]).load_lora(tmp_path / "both")
    expected = images(ImagenPipeline.from_pretrained([tmp_path / "run", sr_folder]))
    np.testing.assert_array_equal(images(pipe), expected)
    # a run that begins with the word as it is
    config = base_config(**{"text.learned": (str(tmp_path / "both"),), "training.init_from": str(base_folder)})
    train(config.with_changes({"training.steps": 1}), tmp_path / "later")
    assert ImagenPipeline.from_pretrained([tmp_path / "later"]).learned_tokens == ["circle"]


def test_published_cascade_has_the_words(tmp_path):
    """Inside of the text encoder's folder, wherever it was learned."""
    pipe = ImagenPipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    encoder = pipe.text_encoders[0]
    tokens, _ = encoder.encoder.tokenize(["square"])
    rows = np.asarray(encoder.params["token_embedding"]["embedding"])[tokens[0][:6]]
    write_learned(tmp_path / FILE, {"sks thing": rows}, encoder.fingerprint)
    pipe.load_embedding(tmp_path)
    with pytest.raises(ConfigError, match="publish it inside"):
        publish(pipe, tmp_path / "named", PublishSettings(text_encoder=False))
    pipe.save_pretrained(tmp_path / "published")
    loaded = ImagenPipeline.from_pretrained(tmp_path / "published")
    assert loaded.learned_tokens == ["sks thing"]
    one, other = images(loaded, "a red sks thing"), images(pipe, "a red sks thing")
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, images(pipe, "a red square"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.token": ""}, "needs adapter.token"),
        ({"adapter.kind": "none"}, "adapter.token has no effect with adapter.kind 'none'"),
        ({"adapter.rank": 4}, "adapter.rank has no effect with adapter.kind 'textual_inversion'"),
        ({"training.init_from": ""}, "'textual_inversion' needs training.init_from"),
        ({"text.cache": "runs/cache"}, "text.cache has embeddings of captions without learned tokens"),
        ({"adapter.vectors": 65}, "adapter.vectors"),
    ],
)
def test_settings_that_cannot_work(changes, message, base_folder):
    with pytest.raises(ConfigError, match=message):
        inversion_config(base_folder, **changes)


def test_runs_that_cannot_be_written(base_folder, learned, tmp_path):
    with pytest.raises(ConfigError, match="has trained no adapter, but a word"):
        to_lora(learned, tmp_path / "lora")
    other = shutil.copytree(learned, tmp_path / "other")
    train(inversion_config(base_folder, **{"seed": 5}), tmp_path / "seed")
    with pytest.raises(ConfigError, match="'circle' has other rows in another run"):
        to_lora([other, tmp_path / "seed"], tmp_path / "words", kind="embedding")
    assert not (tmp_path / "words").exists()


def test_word_that_is_known_already(base_folder, learned, tmp_path):
    to_lora(learned, tmp_path / "word", kind="embedding")
    with pytest.raises(ConfigError, match="'circle' is among the words of text.learned"):
        train(inversion_config(base_folder, **{"text.learned": (str(tmp_path / "word"),)}), tmp_path / "run")


def test_gradient_reaches_the_rows_alone(base_stage, base_folder, tmp_path):
    """Through encoder and network: a word that no caption has gets none."""
    task = DiffusionTask(inversion_config(base_folder), one_device())
    objective, networks = task.objective, task.load_networks(tmp_path)
    params = jax.jit(objective.init)(jax.random.key(0)) | perturbed_params(base_stage)
    gradients = {}
    for caption in ("a red circle", "a red ring"):
        features = [task.text_features(caption)] * 2
        batch = {name: np.stack([each[name] for each in features]) for name in ("tokens", "mask")}
        batch["image"] = np.full((2, *base_stage.image_shape), 200, np.uint8)

        def loss(rows, batch=batch):
            examples = objective.draw(networks, batch, jax.random.key(3), 0)
            return objective.loss({**params, "learned_token": {"rows": rows}}, networks, examples).loss.mean()

        gradients[caption] = np.asarray(jax.jit(jax.grad(loss))(params["learned_token"]["rows"]))
    assert np.abs(gradients["a red circle"]).max() > 0
    np.testing.assert_array_equal(gradients["a red ring"], 0)
