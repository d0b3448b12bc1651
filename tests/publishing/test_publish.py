"""A published cascade samples the same images to the bit, and its card says what it is and how it was measured."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from huggingface_hub import ModelCard

from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.evaluate import evaluate
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.output_dir import stages_manifest
from imagen_jax.publishing.publish import PublishSettings, publish
from imagen_jax.stages.published import INDEX
from tests.helpers.configs import contents, eight_devices, one_device, split_devices

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "a ring"]


def sampled(stages, mesh):
    pipeline = ImagenPipeline.from_pretrained(stages, mesh)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(PROMPTS, seed=3).stages


@pytest.mark.parametrize("mesh", [one_device, eight_devices, split_devices])
def test_images_are_equal_to_the_bit(base_folder, sr_folder, published_folder, mesh):
    before, after = (sampled(stages, mesh()) for stages in ([base_folder, sr_folder], published_folder))
    for ours, theirs in zip(before, after, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(after[-1]) > 0


def test_manifest_is_that_of_the_stage_folders(base_folder, sr_folder, published_folder):
    """So that runs of the one are continued with the other, and images of the one are made again by the other."""
    manifests = [
        stages_manifest(ImagenPipeline.from_pretrained(stages, one_device(), text_encoder=False).stages)
        for stages in ([base_folder, sr_folder], published_folder)
    ]
    assert manifests[0] == manifests[1]


def test_folder_names_no_place_of_this_machine(base_folder, published_folder):
    data = b"".join(data for data in contents(published_folder).values() if data)
    assert str(base_folder.parent).encode() not in data


def test_files(published_folder):
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=published_folder)
    assert checked.returncode == 0
    names = {str(path.relative_to(published_folder)) for path in published_folder.rglob("*") if path.is_file()}
    assert {"README.md", "samples.png", INDEX, "SHA256SUMS", "stage_0/config.json", "stage_1/config.json"} <= names
    index = json.loads((published_folder / "stage_0" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 1 and {f"stage_0/{file}" for file in files} <= names
    assert not [name for name in names if "unfinished" in name]


def test_card_without_an_evaluation(published_folder):
    card = ModelCard.load(published_folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "imagen_jax")
    assert card.data.pipeline_tag == "text-to-image" and card.data.datasets == ["shapes"]
    assert card.data.eval_results is None
    assert "has not been measured" in card.text and "a red circle" in card.text


@pytest.fixture(scope="module")
def evaluated(base_folder, tmp_path_factory):
    """The base stage and its evaluation."""
    pipeline = ImagenPipeline.from_pretrained(base_folder)
    folder = tmp_path_factory.mktemp("scores")
    config = EvaluationConfig().with_changes({"num_samples": 8, "batch_size": 8, "judge": "shapes"})
    evaluate(pipeline, config, folder)
    return pipeline, folder


def test_card_has_the_scores(evaluated, tmp_path):
    pipeline, scores = evaluated
    result = publish(pipeline, tmp_path / "one", PublishSettings(evaluation=scores, prompts=PROMPTS, license="My own"))
    row = json.loads((scores / "scores.json").read_text())["all"]
    card = ModelCard.load(tmp_path / "one" / "README.md")
    first = card.data.eval_results[0]
    assert (first.metric_name, first.metric_value) == ("correct captions: all", round(row["rate"], 4))
    assert f"{row['correct']:.0f} of {row['total']:.0f}" in card.text
    assert card.data.license == "other" and card.data.license_name == "My own"
    assert result.files == len([path for path in (tmp_path / "one").rglob("*") if path.is_file()])


def test_other_evaluations_are_refused(evaluated, sr_folder, base_folder, tmp_path):
    pipeline, scores = evaluated
    both = ImagenPipeline.from_pretrained([base_folder, sr_folder])
    with pytest.raises(ConfigError, match="other weights"):
        publish(both, tmp_path / "out", PublishSettings(evaluation=scores, prompts=PROMPTS))
    changed = tmp_path / "changed"
    shutil.copytree(scores, changed)
    table = json.loads((changed / "scores.json").read_text())
    table["all"]["rate"] = 1.0
    table["all"]["correct"] = 0
    (changed / "scores.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="scores.json is damaged"):
        publish(pipeline, tmp_path / "out", PublishSettings(evaluation=changed, prompts=PROMPTS))
    with pytest.raises(ConfigError, match="does not exist"):
        publish(pipeline, tmp_path / "out", PublishSettings(evaluation=tmp_path / "none", prompts=PROMPTS))
    assert not (tmp_path / "out").exists()


def test_a_cascade_is_replaced_on_request_only(evaluated, tmp_path):
    pipeline, _ = evaluated
    folder = tmp_path / "one"
    pipeline.save_pretrained(folder, prompts=PROMPTS)
    (folder / "stage_0" / "old").touch()
    before = contents(folder)
    with pytest.raises(ConfigError, match="--overwrite"):
        pipeline.save_pretrained(folder, prompts=PROMPTS)
    assert contents(folder) == before
    pipeline.save_pretrained(folder, prompts=PROMPTS, overwrite=True)
    assert not (folder / "stage_0" / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["one"]
    with pytest.raises(ConfigError, match="loaded from"):
        ImagenPipeline.from_pretrained(folder).save_pretrained(folder, overwrite=True)


def test_other_folders_are_not_touched(evaluated, tmp_path):
    pipeline, _ = evaluated
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="not those of a published cascade"):
        pipeline.save_pretrained(tmp_path / "work", overwrite=True)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_shard_size": 0}, "max_shard_size"),
        ({"prompts": ["a"] * 101}, "at most 100"),
        ({"license": "a\nb"}, "single lines"),
        ({"private": True}, "--push"),
        ({"push": "no name"}, "ORG/NAME"),
        ({"text_encoder": True}, "has no files"),
    ],
    ids=str,
)
def test_invalid_settings(evaluated, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        evaluated[0].save_pretrained(tmp_path / "out", **{"prompts": PROMPTS, **settings})
    assert not list(tmp_path.iterdir())
