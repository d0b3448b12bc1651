"""The safety checker of a pipeline is that of its cascade, and comes back to the byte."""

import json
import logging
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.conversion.to_diffusers import to_diffusers
from imagen_jax.errors import ConfigError
from imagen_jax.images.clip_inputs import FILE
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.published import read_index
from imagen_jax.training.loop import train
from tests.conversion.folders import change_json, pipeline_files
from tests.goldens.if_pipelines.cases import FIRST, HALF, SECOND
from tests.goldens.safety_checker.cases import CHECKER, INPUTS, images, with_checker
from tests.helpers.cli import run_command
from tests.helpers.configs import SMALL, contents, one_device

pytest_plugins = ("tests.helpers.hub",)
WEIGHTS = "safety_checker/model.safetensors"


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Both stages, each with the checker."""
    folder = tmp_path_factory.mktemp("pipelines")
    return [with_checker(pipeline, folder / pipeline.name) for pipeline in (FIRST, SECOND)]


@pytest.fixture(scope="module")
def checked(pipelines, tmp_path_factory):
    """The cascade of both."""
    folder = tmp_path_factory.mktemp("checked") / "cascade"
    convert(list(map(str, pipelines)), folder)
    return folder


@pytest.fixture
def first(pipelines, tmp_path):
    """A copy of the first one, to change."""
    return shutil.copytree(pipelines[0], tmp_path / "first")


def refused(out, *names, **settings):
    with pytest.raises(ConfigError) as error:
        convert([str(name) for name in names], out, ConvertSettings(**settings))
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def reconverted(pipelines, out, **settings):
    convert(list(map(str, pipelines)), out, ConvertSettings(**settings))
    return read_index(out).safety_checker


def test_both_stages_share_one(checked, caplog):
    entry = read_index(checked).safety_checker
    assert (entry.folder, entry.model) == ("safety_checker", "first/safety_checker")
    files = {path.name: path.read_bytes() for path in (checked / "safety_checker").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (*CHECKER.iterdir(), INPUTS / FILE)}
    listed = (checked / "SHA256SUMS").read_text()
    assert all(f"  safety_checker/{name}\n" in listed for name in files)
    assert "another safety checker" not in caplog.text
    assert "flags are made black" in (checked / "README.md").read_text()


def test_it_comes_back_to_the_byte(pipelines, checked, tmp_path):
    written = to_diffusers(checked, tmp_path / "back")
    for before, after in zip(pipelines, written.folders, strict=True):
        assert pipeline_files(before) == pipeline_files(after)


def test_it_checks_what_is_sampled(checked):
    pipeline = ImagenPipeline.from_pretrained(checked, one_device(), [{"num_inference_steps": 1}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    output, scores = pipeline(["a red circle"]), pipeline.safety_checker.scores(images(16), 6)
    assert output.safety.flagged.shape == (1,) and bool(output.images.any()) != output.safety.flagged[0]
    np.testing.assert_array_equal(pipeline.safety_checker(images(16), 6).nsfw_detected, scores.nsfw > 0.5)


def test_variants_and_several_files_come_back_to_the_byte(tmp_path):
    """As the U-Net's variant; or, as in diffusers, that of files without one."""
    half, tensors = with_checker(HALF, tmp_path / "half"), load_file(CHECKER / "model.safetensors")
    plain = with_checker(HALF, tmp_path / "plain")
    tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    parts = [f"model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    where = {name: parts[number % 2] for number, name in enumerate(sorted(tensors))}
    for part in parts:
        held = {name: tensor for name, tensor in tensors.items() if where[name] == part}
        (half / "safety_checker" / part).write_bytes(save(held, {"format": "pt"}))
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    (half / "safety_checker/model.safetensors.index.fp16.json").write_text(index)
    for pipeline, left_out in ((half, {WEIGHTS}), (plain, set())):
        out = tmp_path / f"{pipeline.name}_out"
        assert reconverted([pipeline], out).folder is not None
        assert ImagenPipeline.from_pretrained(out, one_device()).safety_checker.scores(images(16), 6).nsfw.std() > 0
        to_diffusers(out, tmp_path / f"{pipeline.name}_back")
        before, after = pipeline_files(pipeline), pipeline_files(tmp_path / f"{pipeline.name}_back/stage_0")
        assert {name: data for name, data in before.items() if name not in left_out} == after


def test_missing_weights_are_refused(first, tmp_path):
    (first / WEIGHTS).unlink()
    for lost in (None, shutil.rmtree):
        if lost is not None:
            lost(first / "safety_checker")
        message = refused(tmp_path / "out", first)
        assert str(first / "model_index.json") in message and "hf download" in message
        assert "--include 'safety_checker/*.safetensors'" in message and "--no_safety_checker" in message
    (first / "safety_checker").mkdir()
    (first / "safety_checker/pytorch_model.bin").write_bytes(b"pickled")
    assert "--no_safety_checker" in refused(tmp_path / "out", first)


@pytest.mark.parametrize("flag", ["--no_safety_checker", "--no-safety-checker"])
def test_leaving_it_out_is_a_choice_that_is_recorded(first, tmp_path, flag):
    shutil.rmtree(first / "safety_checker")
    out = tmp_path / "out"
    assert run_command("convert", f"--from={first}", f"--out={out}") == 2
    assert run_command("convert", f"--from={first}", f"--out={out}", flag) == 0
    entry = read_index(out).safety_checker
    assert (entry.folder, entry.model, entry.checksum) == (None, "first/safety_checker", "")
    assert ImagenPipeline.from_pretrained(out, one_device()).safety_checker is None
    assert "was left out" in (out / "README.md").read_text()
    to_diffusers(out, tmp_path / "back")
    assert json.loads((tmp_path / "back/stage_0/model_index.json").read_text())["safety_checker"] == [None, None]
    assert run_command("convert", f"--stages={out}", "--to=diffusers", f"--out={tmp_path / 'no'}", flag) == 2


def test_pipelines_that_name_none_have_none(tmp_path):
    shutil.copytree(FIRST, tmp_path / "first")
    shutil.copytree(CHECKER, tmp_path / "first/safety_checker")
    assert reconverted([tmp_path / "first"], tmp_path / "out") is None
    assert "have no safety checker" in (tmp_path / "out/README.md").read_text()


def test_the_second_has_it_where_the_first_has_none(pipelines, tmp_path):
    entry = reconverted([FIRST, pipelines[1]], tmp_path / "out")
    assert entry.model == "second/safety_checker"
    to_diffusers(tmp_path / "out", tmp_path / "back")
    for before, after in ((FIRST, "stage_0"), (pipelines[1], "stage_1")):
        assert pipeline_files(before) == pipeline_files(tmp_path / "back" / after)


def test_others_are_named(pipelines, tmp_path, caplog):
    second = shutil.copytree(pipelines[1], tmp_path / "other")
    tensors = load_file(second / WEIGHTS)
    tensors["p_head.bias"] += 1
    save_file(tensors, second / WEIGHTS)
    with caplog.at_level(logging.WARNING):
        assert reconverted([pipelines[0], second], tmp_path / "out").model == "first/safety_checker"
    assert "other has another safety checker than first: the cascade has the latter" in caplog.text
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (pipelines[0] / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("file", "match"),
    [(WEIGHTS, "is not a complete safetensors file"), ("safety_checker/config.json", "config.json is not valid JSON")],
)
def test_damaged_checkers_are_refused(first, tmp_path, file, match):
    data = (first / file).read_bytes()
    (first / file).write_bytes(data[: len(data) // 2])
    message = refused(tmp_path / "out", first)
    assert match in message and str(first / "safety_checker") in message


def test_other_kinds_of_inputs_are_refused(first, tmp_path):
    change_json(first / "feature_extractor" / FILE, crop_size={"height": 20, "width": 20})
    assert f"{first / 'feature_extractor' / FILE} makes images of 20×20" in refused(tmp_path / "out", first)


def test_published_again_it_is_still_there(checked, tmp_path):
    """Without what is kept of the pipeline, too."""
    pipeline = ImagenPipeline.from_pretrained(checked, one_device(), [{"num_inference_steps": 1}] * 2)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "again", prompts=["a ring"])
    assert read_index(tmp_path / "again").safety_checker.folder == "safety_checker"
    ours, theirs = (contents(path / "safety_checker") for path in (tmp_path / "again", checked))
    assert ours == theirs
    to_diffusers(tmp_path / "again", tmp_path / "back")
    index = json.loads((tmp_path / "back/stage_1/model_index.json").read_text())
    assert index["safety_checker"] == ["deepfloyd_if", "IFSafetyChecker"] and index["requires_safety_checker"]
    files = pipeline_files(tmp_path / "back/stage_1")
    assert files[WEIGHTS] == (CHECKER / "model.safetensors").read_bytes()
    assert files[f"feature_extractor/{FILE}"] == (INPUTS / FILE).read_bytes()


@pytest.mark.slow
def test_trained_stages_have_it_in_diffusers(checked, tmp_path):
    """What they were trained from has it, and what is sampled meanwhile is not checked."""
    from imagen_jax.stages.stage_folder import read_config

    config = read_config(checked / "stage_0").with_changes(
        {key: value for key, value in SMALL.items() if not key.startswith(("model.", "text."))}
        | {"training.init_from": str(checked / "stage_0"), "training.steps": 1, "data.source": "shapes"}
    )
    train(config, tmp_path / "run")
    to_diffusers(tmp_path / "run", tmp_path / "back", variant="fp16")
    files = pipeline_files(tmp_path / "back/stage_0")
    assert files["safety_checker/model.fp16.safetensors"] == (CHECKER / "model.safetensors").read_bytes()
    assert json.loads(files["model_index.json"])["safety_checker"] == ["deepfloyd_if", "IFSafetyChecker"]


def test_one_variant_is_downloaded_once(hub, pipelines, tmp_path):
    for name, pipeline in zip(("ann/first", "ann/second"), pipelines, strict=True):
        others = {"safety_checker/pytorch_model.bin": b"pickled", "safety_checker/model.fp16.safetensors": b"large"}
        hub.add(name, pipeline, **others)
    convert(["ann/first", "ann/second"], tmp_path / "out")
    paths = [path for method, path in hub.log if method == "GET" and "/safety_checker/" in path]
    weights = [path for path in paths if not path.endswith(".json")]
    assert [path.split("/resolve/")[0] for path in weights] == ["/ann/first"] and weights[0].endswith(WEIGHTS)
    to_diffusers(tmp_path / "out", tmp_path / "back")
    files = pipeline_files(tmp_path / "back/stage_1")
    assert files[WEIGHTS] == (CHECKER / "model.safetensors").read_bytes()


def test_a_gated_repository_says_what_to_download(hub, pipelines, tmp_path):
    hub.add("ann/first", pipelines[0], **{"safety_checker/model.fp16.safetensors": b"large"})
    hub.repositories["ann/first"].is_gated = True
    message = refused(tmp_path / "out", "ann/first")
    assert f"--include {WEIGHTS} " in message and "model.fp16" not in message
    assert WEIGHTS not in refused(tmp_path / "out", "ann/first", safety_checker=False)


def test_nothing_is_downloaded_that_is_not_wanted(hub, pipelines, tmp_path):
    hub.add("ann/first", pipelines[0])
    convert(["ann/first"], tmp_path / "out", ConvertSettings(safety_checker=False))
    assert WEIGHTS not in hub.downloaded()
    assert read_index(tmp_path / "out").safety_checker.folder is None
    hub.add("ann/first", pipelines[0], **{WEIGHTS: None})
    assert "hf download" in refused(tmp_path / "other", "ann/first")
