"""A cascade is taught a subject from a folder of images: all of it in one call, which continues after a break."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.datasets.shapes.source import ShapesSource
from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import read_png, save_png
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.lora_files import FILE
from imagen_jax.stages.stage_folder import read_config
from imagen_jax.text.learned_tokens import FILE as LEARNED
from imagen_jax.training import finetune as module
from imagen_jax.training.finetune import FinetuneSettings, finetune
from imagen_jax.training.finetune_progress import preview_path, read_progress
from imagen_jax.training.metric_writer import read_metrics
from imagen_jax.training.preemption import StopRequest
from tests.helpers.configs import contents

pytestmark = pytest.mark.slow

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a sks star", "a red circle"]
SETTINGS = FinetuneSettings(
    token="sks star",
    class_name="shape",
    prior_images=5,
    prompts=PROMPTS,
    steps=4,
    learning_rate=0.05,
    rank=2,
    varied=4,
    targets=("^out$",),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images, one with a caption, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        save_png(ShapesSource(3, "train", 24, 10)[index].image, folder / f"{index}.png")
    (folder / "1.txt").write_text("a red sks star at the top\na sks star at the top\n")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cascade(base_folder, sr_folder):
    return [str(base_folder), str(sr_folder)]


@pytest.fixture(scope="module")
def tuned(cascade, images, tmp_path_factory):
    """(result, messages) of a call for both stages."""
    messages, before = [], [contents(Path(folder)) for folder in cascade]
    result = finetune(cascade, images, tmp_path_factory.mktemp("tuned") / "star", SETTINGS, log=messages.append)
    assert [contents(Path(folder)) for folder in cascade] == before
    return result, messages


def captions(folder):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    return {entry["file_name"]: entry["text"] for entry in map(json.loads, lines)}


def test_images_of_the_subject(tuned, images):
    result, messages = tuned
    texts = [(result.out / "subject" / f"000{index}.txt").read_text() for index in range(3)]
    assert texts == ["a sks star", "a red sks star at the top\na sks star at the top", "a sks star"]
    assert (result.out / "subject" / "0002.png").read_bytes() == (images / "2.png").read_bytes()
    assert any(message.startswith("left out: broken.png: ") for message in messages)
    assert (result.out / "inspection" / "report.html").exists()


def test_super_resolution_sees_varied_copies(tuned, images, cascade):
    folder, size = tuned[0].out / "varied", read_config(Path(cascade[1])).image_size
    assert captions(folder) == {f"000{index}.png": "a sks star" for index in range(4)}
    copies = [read_png(folder / name) for name in captions(folder)]
    assert {copy.shape for copy in copies} == {(size, size, 3)}
    assert not np.array_equal(copies[0], copies[3])  # both of the first image


def test_varied_copies_have_the_size_of_the_largest_stage(cascade, images, tmp_path, monkeypatch):
    """Smaller stages reduce them, as they do the images; the other way round, they would be too small."""
    base, largest = (read_config(Path(folder)) for folder in cascade)
    smaller = largest.with_changes({"image_size": largest.image_size // 2, "low_res_size": largest.low_res_size // 2})
    monkeypatch.setattr(module, "read_config", {"a": base, "b": smaller, "c": largest}.get)
    monkeypatch.setattr(module, "find_stages", list)
    monkeypatch.setattr(module.ImagenPipeline, "from_pretrained", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        module, "train", lambda config, folder, **kwargs: module.Finetuned(folder, [], None, "the test")
    )
    settings = module.dataclasses.replace(SETTINGS, class_name="", only=(1,))
    module.finetune("abc", images, tmp_path / "out", settings, log=lambda _: None)
    copies = [read_png(path) for path in (tmp_path / "out" / "varied").glob("*.png")]
    assert [copy.shape for copy in copies] == [(largest.image_size, largest.image_size, 3)] * 4


def test_images_of_the_class_are_drawn_by_the_cascade(tuned, cascade):
    result, _ = tuned
    drawn = captions(result.out / "prior" / "images")
    assert list(drawn.values()) == ["a shape"] * 5
    expected = ImagenPipeline.from_pretrained(cascade)(["a shape"] * 5, seed=0, batch_size=16).images
    for name, image in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(read_png(result.out / "prior" / "images" / name), image)


def test_each_stage_is_trained_on_both_in_equal_numbers(tuned, cascade):
    result, _ = tuned
    for index, folder in enumerate(result.stages):
        config = read_config(folder)
        assert config.training.init_from == cascade[index] and config.training.batch_size == 8
        weights = {"subject": 0.5, "varied": 0.5, "prior": 1.0} if index else {"subject": 1.0, "prior": 1.0}
        assert {name: part.weight for name, part in config.data.parts.items()} == weights
        assert config.diffusion.cond_drop_prob == 0.1 and config.diffusion.never_dropped == "sks star"
        assert len([record for record in read_metrics(folder) if "loss" in record]) == 4
        assert config.image_size == read_config(folder).image_size
    assert [read_config(folder).is_super_resolution for folder in result.stages] == [False, True]


def test_progress_is_read_from_the_files(tuned, tmp_path):
    progress = read_progress(tuned[0].out)
    assert (progress.phase, progress.drawn) == ("done", 5)
    assert [(stage.index, stage.step, stage.steps) for stage in progress.stages] == [(0, 4, 4), (1, 4, 4)]
    for stage in progress.stages:
        assert [step for step, _ in stage.losses] == [1, 2, 3, 4] and stage.previews == [1, 2, 3, 4]
        assert preview_path(tuned[0].out, stage.index, 4).exists()
    assert read_progress(tmp_path / "nothing").phase == "preparing"
    copy = tmp_path / "copy"
    shutil.copytree(tuned[0].out, copy)
    phases = []
    for gone in ("before_after.png", "adapter", "stage_1", "stage_0", "prior/images/metadata.jsonl", "prior"):
        shutil.rmtree(copy / gone) if (copy / gone).is_dir() else (copy / gone).unlink()
        phases.append(read_progress(copy).phase)
    assert phases == ["comparing", "training", "training", "preparing", "drawing", "preparing"]


def test_adapter_is_what_was_trained(tuned, cascade):
    result, _ = tuned
    assert sorted(path.parent.name for path in result.adapter.rglob(FILE)) == ["stage_0", "stage_1"]
    card = (result.adapter / "README.md").read_text()
    assert 'instance_prompt: "a sks star"' in card and "trained on 3 images" in card
    pipe = ImagenPipeline.from_pretrained(cascade)
    before = pipe(PROMPTS, seed=0).images
    after = pipe.load_lora(result.adapter)(PROMPTS, seed=0).images
    expected = ImagenPipeline.from_pretrained([str(path) for path in result.stages])(PROMPTS, seed=0).images
    np.testing.assert_array_equal(after, expected)
    assert not np.array_equal(after, before)
    grid = read_png(result.out / "before_after.png")
    assert grid.ndim == 3 and grid.std() > 10


def test_token_is_learned_by_the_base(cascade, images, tmp_path):
    """With its adapter, and super-resolution knows it; one folder has both."""
    settings = module.dataclasses.replace(SETTINGS, initializer="ring", targets=())
    result = finetune(cascade, images, tmp_path / "star", settings, log=lambda _: None)
    base, enlarged = map(read_config, result.stages)
    assert (base.adapter.token, base.adapter.vectors, enlarged.adapter.token) == ("sks star", 4, "")
    assert enlarged.text.learned == (str(tmp_path / "star" / "words"),)
    assert base.adapter.targets == ("_res_", "^out$")
    assert (result.adapter / LEARNED).is_file() and "(4 tokens)" in (result.adapter / "README.md").read_text()
    pipe = ImagenPipeline.from_pretrained(cascade).load_lora(result.adapter)
    expected = ImagenPipeline.from_pretrained([str(path) for path in result.stages])
    assert pipe.learned_tokens == expected.learned_tokens == ["sks star"]
    np.testing.assert_array_equal(pipe(PROMPTS, seed=0).images, expected(PROMPTS, seed=0).images)
    again = finetune(cascade, images, tmp_path / "star", settings, log=lambda _: None)
    assert again == result


def test_token_alone(cascade, images, tmp_path):
    """The networks stay as they are: the base's prediction for other prompts, too."""
    settings = module.dataclasses.replace(SETTINGS, method="textual_inversion", targets=(), class_name="")
    result = finetune(cascade, images, tmp_path / "star", settings, log=lambda _: None)
    assert [str(path) for path in result.stages[1:]] == cascade[1:]
    assert sorted(path.name for path in result.adapter.iterdir()) == ["README.md", LEARNED]
    assert "pipe.load_embedding" in (result.adapter / "README.md").read_text()
    pipe = ImagenPipeline.from_pretrained(cascade)
    before = pipe(PROMPTS, seed=0).images
    after = pipe.load_embedding(result.adapter)(PROMPTS, seed=0).images
    assert not np.array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1], before[1])


def test_it_continues_after_a_break(tuned, cascade, images, tmp_path):
    """Stopped in the first stage, and again while the second is about to train: the adapters are those of one call."""
    folder, stop = tmp_path / "star", StopRequest()
    stop.ready = True  # as after a run's first step

    def log(text):
        if text.startswith("stage 0"):
            stop.on_signal(signal.SIGTERM)

    stopped = finetune(cascade, images, folder, SETTINGS, stop=stop, log=log)
    assert stopped.stopped_by and stopped.adapter is None and "continues" in stopped.summary()
    drawn = {path: path.stat().st_mtime_ns for path in (folder / "prior").rglob("*.png")}
    result = finetune(cascade, images, folder, SETTINGS, log=lambda _: None)
    assert {path: path.stat().st_mtime_ns for path in (folder / "prior").rglob("*.png")} == drawn
    for stage in ("stage_0", "stage_1"):
        one, other = (done.adapter / stage / FILE for done in (result, tuned[0]))
        assert one.read_bytes()[-1000:] == other.read_bytes()[-1000:]
    with pytest.raises(ConfigError, match="of other settings: rank was 2 and is now 3"):
        finetune(cascade, images, folder, module.dataclasses.replace(SETTINGS, rank=3))


def test_it_stops_while_images_of_the_class_are_drawn(cascade, images, tmp_path):
    stop = StopRequest()

    def log(text):
        if text.startswith("drawing"):
            stop.ask("me")

    stopped = finetune(cascade, images, tmp_path / "star", SETTINGS, stop=stop, log=log)
    assert stopped.stopped_by == "me" and stopped.adapter is None
    assert not (tmp_path / "star" / "prior" / "images" / "metadata.jsonl").exists()
    assert not (tmp_path / "star" / "stage_0").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": " "}, "no token that names the subject"),
        ({"method": "dreambooth", "class_name": ""}, "the method 'dreambooth' .* a class"),
        ({"method": "full"}, "the method 'full' has no images of a class"),
        ({"method": "lara"}, "the method 'lara' is not one of lora, dreambooth, textual_inversion, full"),
        ({"method": "dreambooth", "initializer": "ring"}, "'dreambooth' leaves the text encoder as it is"),
        ({"prior_prompts": ("a ring",), "class_images": "rings"}, "are in 'rings', and there are prompts"),
        ({"prior_images": 0, "varied": -1}, "varied -1 is below 0"),
        ({"only": (2,)}, "the cascade has 2, counted from 0"),
        ({"targets": ("no_such",)}, "adapter.targets: 'no_such' matches none"),
    ],
)
def test_settings_that_cannot_work(changes, message, cascade, images, tmp_path):
    settings = module.dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(ConfigError, match=message):
        finetune(cascade, images, tmp_path / "out", settings, log=lambda _: None)
    assert not (tmp_path / "out" / "stage_0").exists()


def test_folders_that_cannot_be_used(cascade, images, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has files that are not those of a fine-tuning"):
        finetune(cascade, images, tmp_path / "used", SETTINGS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match="--images .* cannot be used: none of 1 records can be read"):
        finetune(cascade, tmp_path / "broken", tmp_path / "out", SETTINGS, log=lambda _: None)


def test_images_of_the_class_that_are_there_are_not_drawn(tuned, cascade, images, tmp_path):
    result, _ = tuned
    settings = module.dataclasses.replace(SETTINGS, class_images=str(result.out / "prior" / "images"), only=(0,))
    messages: list[str] = []
    again = finetune(cascade, images, tmp_path / "again", settings, log=messages.append)
    assert not (again.out / "prior").exists()
    assert f"5 images of what the cascade is to keep are in {settings.class_images}" in messages
    one, other = (load_file(done.adapter / "stage_0" / FILE) for done in (result, again))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_images_of_the_class_without_captions(cascade, images, tmp_path):
    folder = tmp_path / "class"
    save_png(ShapesSource(3, "train", 24, 10)[0].image, folder / "0.png")
    settings = module.dataclasses.replace(SETTINGS, class_images=str(folder))
    with pytest.raises(ConfigError, match="cannot be the images of the class: .* write what each shows into a text"):
        finetune(cascade, images, tmp_path / "out", settings, log=lambda _: None)
