"""Images that a safety checker flags are black wherever they are shown, and nowhere else is anything changed."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError
from imagen_jax.images.grid import read_png
from imagen_jax.pipelines import image_record, safety_checker
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.find_stages import CASCADES, find_stages
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.sample_to_folder import sample_to_folder
from imagen_jax.pipelines.texts import Texts
from imagen_jax.stages.published import INDEX, read_index
from tests.goldens.safety_checker import cases
from tests.helpers.cli import run_command
from tests.helpers.configs import eight_devices, one_device, split_devices

pytest_plugins = ("tests.helpers.hub",)

PROMPTS = ["a red circle", "a blue square on a white background", "a large green ring"]
STEPS = [{"num_inference_steps": 2}, {"num_inference_steps": 1}]
NONE = {"nsfw": -99, "watermark": -99}
ALL = {"nsfw": 99, "watermark": -99}


def load(checker=None, mesh=None):
    pipeline = ImagenPipeline.from_pretrained("shapes", mesh or one_device(), STEPS, safety_checker=checker)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def plain():
    """The output without a checker."""
    return load()(PROMPTS)


@pytest.fixture(scope="module")
def some(plain, tmp_path_factory):
    """A folder with a checker that flags one of the images, for its content."""
    folder = tmp_path_factory.mktemp("some")
    nsfw, _ = cases.load(folder / "before").scores(plain.images, 4)
    return cases.folder(folder / "checker", nsfw=0.5 - np.sort(nsfw)[1:].mean(), watermark=-99)


@pytest.fixture(scope="module")
def published(some, tmp_path_factory):
    """A published cascade with the checker that flags one of three images."""
    folder = tmp_path_factory.mktemp("published") / "shapes"
    pipeline = load(safety_checker.SafetyChecker(some, one_device()))
    pipeline.save_pretrained(folder, prompts=PROMPTS[:1])
    return folder


@pytest.mark.parametrize("size", cases.SIZES)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores_and_flags_match_diffusers(tmp_path, size, batch_size):
    checker, images = cases.load(tmp_path / "checker"), cases.images(size)
    with np.load(cases.GOLDEN) as golden:
        np.testing.assert_allclose(
            np.stack(checker.scores(images, batch_size), 1), golden[f"{size}/scores"], atol=cases.TOLERANCE
        )
        report = checker(images, batch_size)
        for kind in ("nsfw", "watermark"):
            np.testing.assert_array_equal(getattr(report, f"{kind}_detected"), golden[f"{size}/{kind}"])
        np.testing.assert_array_equal(report.blacken(images), golden[f"{size}/images"])
    assert 0 < report.flagged.sum() < len(images)


@pytest.mark.parametrize("mesh", [eight_devices, split_devices])
def test_devices_agree(tmp_path, mesh):
    alone, images = cases.load(tmp_path / "checker"), cases.images(40)
    expected = alone.scores(images, 4)
    np.testing.assert_allclose(alone.on(mesh()).scores(images, 4), expected, atol=1e-6)
    alone.params  # noqa: B018  are copied now
    np.testing.assert_allclose(alone.on(mesh()).scores(images, 4), expected, atol=1e-6)


def test_images_of_other_kinds(tmp_path):
    checker, images = cases.load(tmp_path / "checker"), cases.images(16)
    expected = checker.scores(images, 8)
    np.testing.assert_array_equal(checker.scores(images.astype(np.uint16) * 257, 8), expected)
    gray = np.repeat(images[..., :1], 3, -1)
    np.testing.assert_array_equal(checker.scores(images[..., :1], 8), checker.scores(gray, 8))
    assert checker(images[:0], 8).flagged.shape == (0,)


def test_flagged_images_are_black_in_all_stages(plain, some):
    output = load(safety_checker.SafetyChecker(some, one_device()))(PROMPTS)
    flagged = output.safety.flagged
    assert flagged.sum() == 1 and not output.safety.watermark_detected.any()
    for ours, theirs in zip(output.stages, plain.stages, strict=True):
        assert theirs[flagged].any() and not ours[flagged].any()
        np.testing.assert_array_equal(ours[~flagged], theirs[~flagged])
    np.testing.assert_array_equal(output.images, output.stages[-1])


def test_without_a_checker_nothing_is_computed(plain):
    before = safety_checker._make_score.cache_info()
    pipeline = ImagenPipeline.from_pretrained("shapes", one_device(), STEPS)  # it has none
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(PROMPTS)
    assert pipeline.safety_checker is None and output.safety is None
    np.testing.assert_array_equal(output.images, plain.images)
    assert safety_checker._make_score.cache_info() == before


def test_a_folder_is_a_checker(some):
    pipeline = load(str(some))
    assert pipeline.safety_checker.folder == some and pipeline(PROMPTS).safety.flagged.sum() == 1
    with pytest.raises(ConfigError, match="no-such/folder has no config.json"):
        load("no-such/folder")


def test_it_follows_settings_and_devices(tmp_path):
    pipeline = load(cases.load(tmp_path / "checker", **ALL))
    assert not pipeline(PROMPTS[0], num_inference_steps=1, mesh={"data": 8}).images.any()


def test_edits_are_checked_as_they_are_shown(plain, tmp_path):
    """What is kept of an image is as black as the rest."""
    editor, image = ImagenEditor(load(cases.load(tmp_path / "checker", **ALL))), plain.images[0]
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    for output in (
        editor.inpaint(image, mask, PROMPTS[1]),
        editor.image_to_image(image, PROMPTS[1], 0.0),
        editor.edit(image, PROMPTS[0], PROMPTS[1], num_inference_steps=1),
    ):
        assert output.safety.flagged.tolist() == [True] and not output.images.any()
    allowed = ImagenEditor(load(cases.load(tmp_path / "other", **NONE)))
    output = allowed.image_to_image(image, PROMPTS[1], 0.0)
    np.testing.assert_array_equal(output.images[0], image)


def test_what_is_measured_is_not_checked(plain, tmp_path):
    pipeline = load(cases.load(tmp_path / "checker", **ALL))
    request = SampleRequest(Texts(PROMPTS), batch_size=16)
    np.testing.assert_array_equal(pipeline.sample_all(request)[-1], plain.images)


def test_folders_say_which_images_are_black(plain, some, tmp_path):
    checker = safety_checker.SafetyChecker(some, one_device(), "c" * 64)
    pipeline, request = load(checker), SampleRequest(Texts(PROMPTS), batch_size=2)
    result = sample_to_folder(pipeline, request, tmp_path / "out")
    (index,) = result.flagged
    assert result.summary().endswith(f"1 images are black, as the safety checker has flagged them: {index:04d}.png")
    for number, image in enumerate(plain.images):
        path = tmp_path / f"out/images/{number:04d}.png"
        assert image_record.read_record(path).flagged == (number == index)
        expected = np.zeros_like(image) if number == index else image
        np.testing.assert_allclose(read_png(path).astype(int), expected, atol=1)  # of another batch
    # the images of a run with a checker are not continued by one without
    with pytest.raises(ConfigError, match="safety_checker"):
        sample_to_folder(load(), request, tmp_path / "out")
    again = sample_to_folder(pipeline, request, tmp_path / "out")
    assert (again.existing, again.flagged) == (3, ())


def test_a_published_cascade_has_it(plain, published):
    entry = read_index(published).safety_checker
    assert entry.folder == "safety_checker" and entry.model == "shapes/safety_checker"
    assert "safety_checker/config.json" in (published / "SHA256SUMS").read_text()
    pipeline = ImagenPipeline.from_pretrained(published, one_device(), STEPS)
    assert pipeline.safety_checker.checksum == entry.checksum
    assert pipeline(PROMPTS).safety.flagged.sum() == 1
    # one of its stages has it, too
    alone = ImagenPipeline.from_pretrained(f"{published}/stage_0", one_device(), STEPS[:1])
    assert alone.safety_checker is not None and alone(PROMPTS).safety is not None
    assert ImagenPipeline.from_pretrained(published, one_device(), safety_checker=None)(PROMPTS[0]).safety is None


def test_damaged_checkers_are_refused(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "cascade")
    (folder / "safety_checker/extra.json").write_text("{}")
    with pytest.raises(ConfigError, match="safety_checker/extra.json"):
        ImagenPipeline.from_pretrained(folder, one_device())
    (folder / "safety_checker/extra.json").unlink()
    (folder / "safety_checker/model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safety_checker/model.safetensors"):
        ImagenPipeline.from_pretrained(folder, one_device())
    ImagenPipeline.from_pretrained(folder, one_device(), safety_checker=None)


def test_the_index_of_a_cascade_without_one_is_as_before(tmp_path):
    load().save_pretrained(tmp_path / "out", prompts=PROMPTS[:1])
    before, after = (json.loads((path / INDEX).read_text()) for path in (CASCADES / "shapes", tmp_path / "out"))
    assert before.keys() == after.keys()


def test_it_is_downloaded_only_if_it_is_wanted(hub, published):
    hub.add("ann/checked", published)
    find_stages("ann/checked")
    assert not [name for name in hub.downloaded() if name.startswith("safety_checker/")]
    pipeline = ImagenPipeline.from_pretrained("ann/checked", one_device())
    assert pipeline.safety_checker is not None
    assert "safety_checker/model.safetensors" in hub.downloaded()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("p_head.bias"), "missing p_head.bias"),
        (lambda t: t.update({"z_head.bias": np.zeros(1, np.float32)}), "unexpected z_head.bias"),
        (lambda t: t.update({"w_head.weight": np.zeros((1, 9), np.float32)}), r"w_head.weight is \[1, 9\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, match):
    folder = cases.folder(tmp_path / "checker")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=match):
        safety_checker.SafetyChecker(folder, one_device())


def test_commands_say_which_images_are_black(published, tmp_path, capsys):
    prompts, steps = f"--prompts={';'.join(PROMPTS)}", "--num_inference_steps=2,1"
    common = [f"--stages={published}", prompts, steps]
    assert run_command("sample", *common, f"--out={tmp_path / 'out'}") == 0
    assert "1 images are black, as the safety checker has flagged them: 000" in capsys.readouterr().out
    for number, flag in enumerate(("--no_safety_checker", "--no-safety-checker")):
        assert run_command("sample", *common, f"--out={tmp_path / str(number)}", flag) == 0
        assert "black" not in capsys.readouterr().out
    image = tmp_path / "given.png"
    Image.fromarray(read_png(next((tmp_path / "0/images").glob("*.png")))).save(image)
    edit = ["edit", "--task=image_to_image", f"--image={image}", *common, "--strength=1"]
    assert run_command(*edit, f"--out={tmp_path / 'edit'}") == 0
    assert "1 images are black" in capsys.readouterr().out
    assert run_command(*edit, f"--out={tmp_path / 'other'}", "--no_safety_checker") == 0
    assert "black" not in capsys.readouterr().out
