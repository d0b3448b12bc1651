"""A pipeline of diffusers comes back from a cascade to the byte; what is trained in between comes back as float32."""

import json
import subprocess

import numpy as np
import pytest
from flax import traverse_util
from huggingface_hub import ModelCard

from imagen_jax import train
from imagen_jax.config.load import to_json
from imagen_jax.config.schema import StageConfig
from imagen_jax.conversion import origin
from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.io.tensor_files import TensorFiles
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.published import ORIGIN, PublishedWeights
from imagen_jax.stages.stage_folder import open_weights, read_config
from tests.conversion.folders import UNET, change_json, pipeline_files
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND
from tests.helpers.configs import SMALL, contents, one_device


def tensors(folder):
    """Returns the tensors of a pipeline's U-Net by name."""
    files = TensorFiles(sorted((folder / "unet").glob("*.safetensors")))
    return {name: files.read(name, tuple(map(slice, shape))) for name, shape in files.shapes.items()}


def test_both_stages_come_back_to_the_byte(cascade, tmp_path):
    written = to_diffusers(cascade, tmp_path / "back")
    assert [path.name for path in written.folders] == ["stage_0", "stage_1"]
    for before, after in zip((FIRST, SECOND), written.folders, strict=True):
        assert pipeline_files(before) == pipeline_files(after)
        assert ModelCard.load(after / "README.md").data.license_name == "tiny-license"


def test_float16_in_several_files_comes_back_to_the_byte(half_cascade, tmp_path):
    files = TensorFiles((half_cascade / "stage_0").glob("*.safetensors"))
    assert set(files.dtypes.values()) == {"F32"}
    to_diffusers(half_cascade, tmp_path / "back")
    assert pipeline_files(HALF) == pipeline_files(tmp_path / "back/stage_0")


def test_configs(cascade):
    first, second = (read_config(cascade / f"stage_{index}") for index in (0, 1))
    expected = {
        "image_size": 8,
        "diffusion.prediction_type": "eps",
        "diffusion.variance_type": "learned",
        "diffusion.null_text": "empty",
        "model.network": "if_unet",
        "model.widths": (8, 16),
        "model.num_res_blocks": (1, 1),
        "model.attention": (False, True),
        "model.activate_once": False,
        "text.length": 77,
        "text.padding": "encoded",
        "text.cleaning": "if",
        "sampling.sampler": "ddpm",
        "sampling.timestep_spacing": "leading",
        "sampling.variance_type": "learned",
        "sampling.threshold": "dynamic",
        "sampling.dynamic_threshold_percentile": 95.0,
        "sampling.dynamic_threshold_max": 1.5,
        "sampling.num_inference_steps": 100,
        "sampling.guidance_scale": 7.0,
    }
    assert first == first.with_changes(expected)
    expected |= {
        "image_size": 16,
        "low_res_size": 8,
        "diffusion.align_corners": True,
        "diffusion.aug_after_resize": True,
        "model.widths": (8, 12),
        "model.num_res_blocks": (1, 2),
        "model.activate_once": True,
        "model.res_scale": 1.4142271248762552,
        "model.middle_scale": 1.4142271248762552,
        "sampling.aug_level": 0.251,
        "sampling.dynamic_threshold_max": 1.0,
        "sampling.num_inference_steps": 50,
        "sampling.guidance_scale": 4.0,
    }
    assert second == second.with_changes(expected)
    for config in (first, second):
        assert config.diffusion.schedule == "discrete_cosine"
    assert second.diffusion.aug_schedule == "discrete_cosine"


def test_the_cascade_is_complete(cascade):
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=cascade)
    assert checked.returncode == 0
    card = ModelCard.load(cascade / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "tiny-license")
    assert (cascade / "LICENSE").read_bytes() == (FIRST / "LICENSE").read_bytes()
    # one text encoder, as both pipelines have the same
    assert [path.name for path in cascade.glob("text_encoder*")] == ["text_encoder"]
    data = b"".join(data for data in contents(cascade).values() if data)
    assert str(FIRST.parent).encode() not in data


def test_it_samples(cascade):
    pipeline = ImagenPipeline.from_pretrained(cascade, one_device(), [{"num_inference_steps": 2}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["a red circle", ""]).images
    assert images.shape == (2, 16, 16, 3) and np.ptp(images) > 0
    assert (images[0] != images[1]).any()  # the text has an effect


def test_large_stages_are_in_several_files(cascade, tmp_path, monkeypatch):
    from imagen_jax.conversion import from_diffusers
    from imagen_jax.conversion import to_diffusers as backwards

    monkeypatch.setattr(from_diffusers, "MAX_SHARD_SIZE", 50_000)
    monkeypatch.setattr(backwards, "_GROUP_BYTES", 10_000)  # as much as is loaded together
    convert([str(FIRST)], tmp_path / "out")
    assert len(list((tmp_path / "out/stage_0").glob("model-*-of-*.safetensors"))) > 3
    ours, theirs = (open_weights(path / "stage_0").shapes for path in (tmp_path / "out", cascade))
    assert traverse_util.flatten_dict(ours) == traverse_util.flatten_dict(theirs)
    to_diffusers(tmp_path / "out", tmp_path / "back")
    assert pipeline_files(FIRST) == pipeline_files(tmp_path / "back/stage_0")


def test_a_later_stage_alone(tmp_path):
    """No file of it says what it enlarges: a fourth of its size is assumed and said, or the size is given."""
    converted = convert([str(SECOND)], tmp_path / "second")
    config = read_config(tmp_path / "second/stage_0")
    assert (config.image_size, config.low_res_size) == (16, 4)
    assert "enlarges images of 4×4 to 16×16" in converted.summary() and "--low_res_size" in converted.summary()
    given = convert([str(SECOND)], tmp_path / "given", ConvertSettings(low_res_size=8))
    config = read_config(tmp_path / "given/stage_0")
    assert (config.image_size, config.low_res_size) == (16, 8) and not given.notes
    to_diffusers(tmp_path / "second", tmp_path / "back")
    assert pipeline_files(SECOND) == pipeline_files(tmp_path / "back/stage_0")


def test_a_cascade_comes_back_after_it_was_published_again(cascade, tmp_path):
    """With the license: its text, and what the card says of it."""
    pipeline = ImagenPipeline.from_pretrained(cascade, one_device(), [{"num_inference_steps": 2}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "again", prompts=["a red circle"])
    to_diffusers(tmp_path / "again", tmp_path / "back")
    for index, before in enumerate((FIRST, SECOND)):
        assert pipeline_files(before) == pipeline_files(tmp_path / f"back/stage_{index}")
    assert (tmp_path / "again/LICENSE").read_bytes() == (FIRST / "LICENSE").read_bytes()
    card = ModelCard.load(tmp_path / "again/README.md")
    assert (card.data.license, card.data.license_name) == ("other", "tiny-license")
    assert "## License\n\ntiny-license" in card.content
    pipeline.save_pretrained(tmp_path / "mine", prompts=["a red circle"], license="apache-2.0")
    assert ModelCard.load(tmp_path / "mine/README.md").data.license == "apache-2.0"


@pytest.mark.parametrize("stage", [0, 1])
def test_without_its_origin_a_stage_becomes_a_new_pipeline(cascade, tmp_path, stage):
    """As one from a folder that `imagen convert` of an earlier version wrote does."""
    folder = tmp_path / "published"
    for name, data in contents(cascade).items():
        if data and not name.endswith(ORIGIN):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    (folder / checksums.MANIFEST).unlink()
    checksums.write_shard(folder, 0, checksums.list_files(folder))
    checksums.merge_shards(folder, 1)
    to_diffusers(folder / f"stage_{stage}", tmp_path / "back")
    before, after = (FIRST, SECOND)[stage], tmp_path / "back/stage_0"
    for name in (
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "image_noising_scheduler/scheduler_config.json",
    ):
        if (before / name).exists():
            old, new = (json.loads((path / name).read_text()) for path in (before, after))
            if isinstance(old.get("layers_per_block"), int):  # one for all levels
                old["layers_per_block"] = [old["layers_per_block"]] * 2
            assert old == new, name
    assert (before / UNET).read_bytes() == (after / UNET).read_bytes()
    old, new = (json.loads((path / "model_index.json").read_text()) for path in (before, after))
    assert old | {"feature_extractor": [None, None]} == new


def test_variants_are_written(cascade, tmp_path):
    to_diffusers(cascade / "stage_0", tmp_path / "back", variant="fp16")
    folder = tmp_path / "back/stage_0"
    assert [path.name for path in folder.glob("unet/*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert (folder / "text_encoder/model.fp16.safetensors").is_file()
    before, after = tensors(FIRST), tensors(folder)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name].astype(np.float16), after[name])
    convert([str(folder)], tmp_path / "again")


def test_a_variant_is_left(half_cascade, tmp_path):
    to_diffusers(half_cascade, tmp_path / "back", variant="none")
    folder = tmp_path / "back/stage_0"
    assert sorted(path.name for path in folder.glob("unet/*")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert (folder / "text_encoder/model.safetensors.index.json").is_file()
    before, after = tensors(HALF), tensors(folder)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name].astype(np.float32), after[name])
    convert([str(folder)], tmp_path / "again")


@pytest.mark.slow
def test_a_trained_stage_has_its_ema(cascade, tmp_path):
    start = read_config(cascade / "stage_0")
    keys = {key: value for key, value in SMALL.items() if key.split(".")[0] in ("optimizer", "training")}
    keys |= {"training.init_from": str(cascade / "stage_0"), "training.steps": 2, "optimizer.ema_decay": 0.5}
    train(start.with_changes(keys), tmp_path / "run")
    to_diffusers(tmp_path / "run", tmp_path / "back")
    folder = tmp_path / "back/stage_0"
    before, after = tensors(FIRST), tensors(folder)
    assert before.keys() == after.keys()
    assert {array.dtype for array in after.values()} == {np.dtype(np.float32)}
    assert any((before[name] != after[name]).any() for name in before)
    unchanged = {name: data for name, data in pipeline_files(FIRST).items() if not name.startswith(UNET)}
    assert {name: data for name, data in pipeline_files(folder).items() if not name.startswith(UNET)} == unchanged
    # published, it is the same
    pipeline = ImagenPipeline.from_pretrained(tmp_path / "run", one_device(), [{"num_inference_steps": 2}])
    pipeline.save_pretrained(tmp_path / "published", prompts=["a red circle"])
    to_diffusers(tmp_path / "published", tmp_path / "back_of_published")
    assert contents(tmp_path / "back_of_published") == contents(tmp_path / "back")
    # and again into a cascade: the same parameters as those of the run
    convert([str(folder)], tmp_path / "again")
    run = open_weights(tmp_path / "run")
    again = TensorFiles((tmp_path / "again/stage_0").glob("*.safetensors"))
    ema = run.load(with_shardings(run.shapes, one_device()))
    for path, array in traverse_util.flatten_dict(ema, sep=".").items():
        np.testing.assert_array_equal(array, again.read(path, tuple(map(slice, again.shapes[path]))))


def test_changed_settings_go_to_the_scheduler(cascade, tmp_path, monkeypatch):
    from imagen_jax.conversion import schedulers

    before = json.loads((FIRST / "scheduler/scheduler_config.json").read_text())
    config = read_config(cascade / "stage_0")
    assert schedulers.scheduler_fields(config, before) == before
    static = config.with_changes({"sampling.threshold": "static", "sampling.variance_type": "small"})
    after = schedulers.scheduler_fields(static, before)
    changed = {"thresholding": False, "clip_sample": True, "variance_type": "fixed_small"}
    assert after == before | changed


def test_nothing_is_left_of_a_failure(cascade, tmp_path, monkeypatch):
    from imagen_jax.conversion import to_diffusers as backwards
    from imagen_jax.io import tensor_files

    def full(*arguments):
        raise OSError(28, "No space left on device")

    convert([str(FIRST)], tmp_path / "out")
    before = contents(tmp_path)
    monkeypatch.setattr(tensor_files, "write_tensors", full)
    monkeypatch.setattr(backwards, "write_tensors", full)
    with pytest.raises(OSError):
        convert([str(SECOND)], tmp_path / "out", ConvertSettings(overwrite=True))
    with pytest.raises(OSError):
        to_diffusers(cascade, tmp_path / "back")
    assert contents(tmp_path) == before


def test_overwriting(cascade, tmp_path):
    convert([str(FIRST)], tmp_path / "out")
    with pytest.raises(ConfigError, match="--overwrite"):
        convert([str(SECOND)], tmp_path / "out")
    convert([str(SECOND)], tmp_path / "out", ConvertSettings(overwrite=True))
    assert read_config(tmp_path / "out/stage_0").is_super_resolution
    to_diffusers(cascade, tmp_path / "back")
    with pytest.raises(ConfigError, match="--overwrite"):
        to_diffusers(tmp_path / "out", tmp_path / "back")
    to_diffusers(tmp_path / "out", tmp_path / "back", overwrite=True)
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["stage_0"]


@pytest.mark.parametrize("what", ["pipeline", "notes", "itself"])
def test_foreign_folders_are_not_overwritten(cascade, first, tmp_path, what):
    out = tmp_path / "out"
    out.mkdir()
    if what == "pipeline":
        (out / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    elif what == "notes":
        (out / "notes.txt").write_text("mine")
    else:
        out = first
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="--out"):
        convert([str(first)], out, ConvertSettings(overwrite=True))
    with pytest.raises(ConfigError, match="--out"):
        to_diffusers(cascade, out, overwrite=True)
    assert contents(tmp_path) == before


def test_a_damaged_origin_is_refused(cascade, tmp_path):
    folder = tmp_path / "damaged"
    for name, data in contents(cascade).items():
        if data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    change_json(folder / "stage_0" / ORIGIN, texts={"../secret": "x"})
    with pytest.raises(ConfigError, match="damaged"):
        to_diffusers(folder / "stage_0", tmp_path / "back")
    (folder / checksums.MANIFEST).unlink()
    checksums.write_shard(folder, 0, checksums.list_files(folder))
    checksums.merge_shards(folder, 1)
    with pytest.raises(ConfigError, match="texts"):
        to_diffusers(folder / "stage_0", tmp_path / "back")
    with pytest.raises(ConfigError, match="upgrade"):
        origin.validate(json.loads((cascade / "stage_0" / ORIGIN).read_text()) | {"format": 2}, "it")
    assert not (tmp_path / "back").exists() and not (tmp_path / "secret").exists()


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'unet'.*if_unet"):
        to_diffusers("shapes", tmp_path / "back")
    assert contents(tmp_path) == {}


def test_published_stages_have_no_other_files(cascade):
    """The file about the origin is one that published stages may have; it changes nothing in them."""
    weights = PublishedWeights(cascade / "stage_0")
    assert (weights.step, weights.kind, weights.text_width) == (0, "ema", 24)
    assert to_json(StageConfig()).keys() == json.loads((cascade / "stage_0/config.json").read_text()).keys()
