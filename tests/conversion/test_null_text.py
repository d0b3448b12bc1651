"""An embedding that a user gives replaces the unconditional text, in samples and training, wherever a cascade goes."""

import io
import pickle
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.errors import ConfigError
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.planning.encoders import abstract_encoder
from imagen_jax.stages.precompute_text import embed
from imagen_jax.stages.published import read_index
from imagen_jax.stages.stage import build
from imagen_jax.stages.stage_folder import open_weights, read_config
from imagen_jax.stages.text import make_cached_encoder, make_encoder
from imagen_jax.text.encoder import TextCondition
from imagen_jax.text.null_text import FILE, load_array, read_null_text
from imagen_jax.training.diffusion import make_diffusion_batch
from imagen_jax.training.diffusion_task import DiffusionTask
from tests.conversion.folders import pipeline_files
from tests.goldens.if_pipelines.cases import FIRST, SECOND
from tests.helpers.configs import base_config, contents, one_device

SHAPE = (77, 24)
VALUES = np.random.default_rng(0).normal(size=SHAPE).astype(np.float16)
ROUNDING = 1  # of uint8 images
PROMPTS = ["a red circle", "two blue squares"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Both stages, converted with an array of numpy.save."""
    folder = tmp_path_factory.mktemp("null_text")
    np.save(folder / "zero.npy", VALUES[None])  # a batch of one
    settings = ConvertSettings(dtype="float32", null_text=str(folder / "zero.npy"))
    convert([str(FIRST), str(SECOND)], folder / "cascade", settings)
    return folder / "cascade"


def sampled(folder, prompts=PROMPTS, **options):
    """Returns the images of all stages, with two steps each; learned variances would be those of the prompt."""
    sampling = {"num_inference_steps": 2, "variance_type": "small"}
    pipeline = ImagenPipeline.from_pretrained(folder, one_device(), [sampling] * 2)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompts, seed=3, **options).stages


def text_of(values):
    embeddings = np.broadcast_to(values.astype(np.float32), (2, *SHAPE))
    return TextCondition(embeddings, np.ones((2, SHAPE[0]), bool))


def test_guidance_starts_from_its_values(stored):
    """With a weight of 0, images are those of the values as a prompt; with more, of a negative prompt."""
    unconditional = sampled(stored, guidance_scale=0.0)
    by_hand = sampled(stored, None, prompt_embeds=text_of(VALUES), guidance_scale=1.0)
    for ours, theirs in zip(unconditional, by_hand, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)
    guided = sampled(stored, guidance_scale=3.0)
    by_hand = sampled(stored, PROMPTS, negative_prompt_embeds=text_of(VALUES), guidance_scale=3.0)
    empty = sampled(stored, PROMPTS, negative_prompt=[""] * 2, guidance_scale=3.0)
    for ours, theirs, others in zip(guided, by_hand, empty, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)
        assert np.abs(np.int32(ours) - others).max() > 10


def test_without_it_all_is_as_before(stored, cascade, tmp_path):
    convert([str(FIRST), str(SECOND)], tmp_path / "plain", ConvertSettings(dtype="float32"))
    assert read_config(tmp_path / "plain/stage_0").diffusion.null_text == "empty"
    assert not list(tmp_path.rglob(FILE))
    fingerprints = [read_index(folder).stages[0].text_encoder.fingerprint for folder in (cascade, tmp_path / "plain")]
    assert fingerprints[0] == fingerprints[1] != read_index(stored).stages[0].text_encoder.fingerprint
    plain, prompted = (
        sampled(tmp_path / "plain", **options, guidance_scale=3.0) for options in ({}, {"negative_prompt": ""})
    )
    for ours, theirs in zip(plain, prompted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ROUNDING)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropped_captions_have_its_values_in_training(stored, dtype):
    config = read_config(stored / "stage_0").with_changes({"diffusion.cond_drop_prob": 0.5, "text.dtype": dtype})
    stage, encoder = build(config, SHAPE[1]), make_encoder(config.text)
    tokens, mask = encoder.tokenize(PROMPTS * 16)
    batch = {"image": np.zeros((32, 8, 8, 3), np.uint8), "tokens": tokens, "mask": mask}
    draw = jax.jit(lambda key: make_diffusion_batch(stage, encoder, encoder.params, batch, key))
    text = draw(jax.random.key(0)).text
    dropped = np.asarray(text.mask).all(axis=1)
    assert 5 < dropped.sum() < 27
    tolerance = 1e-2 if dtype == "bfloat16" else 0
    embeddings = np.asarray(text.embeddings, np.float32)
    np.testing.assert_allclose(embeddings[dropped], np.float32([VALUES] * dropped.sum()), rtol=tolerance)
    encoded = np.asarray(encoder(PROMPTS * 16)[0], np.float32)
    np.testing.assert_allclose(embeddings[~dropped], encoded[~dropped], rtol=5e-2, atol=5e-2)


def values_in(folder):
    return read_null_text(folder / FILE, SHAPE)


def test_it_goes_wherever_the_cascade_goes(stored, tmp_path):
    """Published again, written for diffusers, and converted again."""
    pipeline = ImagenPipeline.from_pretrained(stored, one_device(), [{"num_inference_steps": 2}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "published", prompts=PROMPTS)
    assert read_config(tmp_path / "published/stage_1").diffusion.null_text == "stored"
    to_diffusers(tmp_path / "published", tmp_path / "back")
    for index, before in enumerate((FIRST, SECOND)):
        files = pipeline_files(tmp_path / f"back/stage_{index}")
        assert files.pop(f"text_encoder/{FILE}") == (stored / "text_encoder" / FILE).read_bytes()
        assert files == pipeline_files(before)
    convert([str(tmp_path / "back/stage_0"), str(tmp_path / "back/stage_1")], tmp_path / "again")
    for folder in (stored, tmp_path / "published", tmp_path / "again"):
        np.testing.assert_array_equal(values_in(folder / "text_encoder"), VALUES.astype(np.float32))
        assert f"text_encoder/{FILE}" in (folder / "SHA256SUMS").read_text()
    config = read_config(tmp_path / "again/stage_0")
    assert config.diffusion.null_text == "stored"


def test_it_is_verified(stored, tmp_path):
    damaged = shutil.copytree(stored, tmp_path / "damaged")
    data = bytearray((damaged / "text_encoder" / FILE).read_bytes())
    data[-1] ^= 1
    (damaged / "text_encoder" / FILE).write_bytes(data)
    with pytest.raises(ConfigError, match=f"text_encoder/{FILE}"):
        ImagenPipeline.from_pretrained(damaged, one_device())
    with pytest.raises(ConfigError, match="checksum"):  # as training reads it, from the encoder's folder
        values_in(damaged / "text_encoder")
    (damaged / "text_encoder" / FILE).unlink()
    with pytest.raises(ConfigError, match="has no null_text"):
        values_in(damaged / "text_encoder")
    config = read_config(stored / "stage_0")
    with pytest.raises(ConfigError, match="text.length to 77"):
        make_encoder(config.text.with_changes(length=16)).null_text()
    with pytest.raises(ConfigError, match="has no files"):
        make_encoder(config.text.with_changes(model="random")).null_text()


def test_training_is_refused_without_it(cascade, tmp_path):
    config = read_config(cascade / "stage_0").with_changes({"diffusion.null_text": "stored"})
    with pytest.raises(ConfigError, match="has no null_text"):
        DiffusionTask(config, one_device())


def test_a_cache_of_embeddings_has_it(stored, cascade, tmp_path):
    keys = {"text.length": 77, "text.padding": "encoded", "diffusion.null_text": "stored", "data.num_examples": 4}
    config = base_config(**keys, **{"text.model": str(stored / "text_encoder")})
    embed(config, tmp_path / "cache")
    cached = config.with_changes({"text.cache": str(tmp_path / "cache")})
    np.testing.assert_array_equal(DiffusionTask(cached, one_device()).objective.encoder.null_text(), VALUES)
    with pytest.raises(ConfigError, match="fingerprint"):  # the cache is of the encoder with it
        make_cached_encoder(cached.text.with_changes(model=str(cascade / "text_encoder")))
    (tmp_path / "cache" / FILE).unlink()
    with pytest.raises(ConfigError, match="has no null_text"):
        DiffusionTask(cached, one_device())


def test_a_plan_needs_no_values():
    encoder = abstract_encoder(base_config(**{"text.model": "google/t5-v1_1-xxl", "text.length": 77}).text)
    assert encoder.null_text().shape == (77, 4096)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_safetensors(tmp_path, dtype):
    save_file({"zero_t5": VALUES.astype(dtype)}, tmp_path / "zero.safetensors")
    convert([str(FIRST)], tmp_path / "out", ConvertSettings(null_text=str(tmp_path / "zero.safetensors")))
    np.testing.assert_array_equal(values_in(tmp_path / "out/text_encoder"), VALUES.astype(np.float32))


class Unpickled:
    def __reduce__(self):
        return (pytest.fail, ("a pickle ran",))


def write_pickle(path):
    path.write_bytes(pickle.dumps(Unpickled()))


def zipped(array):
    file = io.BytesIO()
    np.savez(file, a=array)
    return file.getvalue()


BAD = {
    "another shape": ("x.npy", lambda path: np.save(path, VALUES[:5]), r"\[5, 24\].*\[77, 24\]"),
    "two of them": ("x.npy", lambda path: np.save(path, np.stack([VALUES] * 2)), r"\[2, 77, 24\]"),
    "NaN": ("x.npy", lambda path: np.save(path, np.where(VALUES > 2, np.nan, VALUES)), "not finite"),
    "too large for float32": ("x.npy", lambda path: np.save(path, VALUES * np.float64(1e300)), "not finite"),
    "integers": ("x.npy", lambda path: np.save(path, VALUES.astype(int)), "int64"),
    "objects": ("x.npy", lambda path: np.save(path, np.array([Unpickled()]), allow_pickle=True), "pickled"),
    "a pickle": ("x.npy", write_pickle, "pickled"),
    "cut": ("x.npy", lambda path: (np.save(path, VALUES), path.write_bytes(path.read_bytes()[:-9])), "numpy.save"),
    "empty": ("x.npy", lambda path: path.touch(), "numpy.save"),
    "several": ("x.npy", lambda path: path.write_bytes(zipped(VALUES)), "numpy.save"),
    "another suffix": ("x.pt", write_pickle, "neither .npy nor .safetensors"),
    "a folder": ("x.npy", lambda path: path.mkdir(), "not a file"),
    "two tensors": ("x.safetensors", lambda path: save_file({"a": VALUES, "b": VALUES}, path), "2 tensors"),
    "damaged": ("x.safetensors", lambda path: path.write_bytes(b"\xff" * 99), "copy it again"),
}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("name, write, message", BAD.values(), ids=BAD)
def test_files_that_are_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        convert([str(FIRST)], tmp_path / "out", ConvertSettings(null_text=str(tmp_path / name)))
    assert "\n" not in str(error.value) and contents(tmp_path) == before


def test_damaged_arrays_are_refused_or_read(tmp_path):
    """Whatever bytes a file has: one sentence, or an array of finite floats."""
    rng, refused = np.random.default_rng(0), 0
    np.save(tmp_path / "x.npy", VALUES)
    whole = (tmp_path / "x.npy").read_bytes()
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(128)] ^= 1 << rng.integers(8)  # in the header
        (tmp_path / "x.npy").write_bytes(data)
        try:
            assert np.isfinite(load_array(str(tmp_path / "x.npy"), SHAPE)).all()
        except ConfigError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150


def test_the_weights_are_those_of_the_pipeline(stored, cascade):
    """The array is no parameter."""
    ours, theirs = (open_weights(folder / "stage_0") for folder in (stored, cascade))
    for array, other in zip(
        *(jax.tree.leaves(w.load(with_shardings(w.shapes, one_device()))) for w in (ours, theirs)), strict=True
    ):
        np.testing.assert_array_equal(array, other)
