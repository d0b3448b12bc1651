"""An evaluation that is killed continues, with the results of an unbroken one."""

import copy
import json
import random
import shutil

import pytest

from imagen_jax import ImagenPipeline, evaluate, load_config
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.evaluation.evaluate import check_judge
from imagen_jax.evaluation.progress import IMAGES, MANIFEST, RECORDS, EvaluationFolder
from tests.goldens.safety_checker import cases as safety_checkers
from tests.helpers.configs import ROOT

pytest_plugins = ("tests.helpers.fixtures",)
FILES = ("scores.json", "diagnostics.json", "incorrect.png")


@pytest.fixture(scope="module")
def pipeline(base_folder, sr_folder):
    pipeline = ImagenPipeline.from_pretrained([str(base_folder), str(sr_folder)])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.with_settings([{"num_inference_steps": 1}] * 2)


def config_of(**changes):
    settings = {"num_samples": 7, "batch_size": 2, **changes}
    return load_config(f"{ROOT}/configs/shapes_eval.py", settings, schema=EvaluationConfig)


def results(out):
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def unbroken(pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores")
    return out, evaluate(pipeline, config_of(), out)


def test_a_safety_checker_changes_no_score(pipeline, unbroken, tmp_path):
    """What is measured is what the stages draw, also where it would be black."""
    checked = copy.copy(pipeline)
    checked.safety_checker = safety_checkers.load(tmp_path / "checker", pipeline.mesh, nsfw=99)
    assert not checked(["a ring"]).images.any()
    assert evaluate(checked, config_of()).scores == unbroken[1].scores


@pytest.fixture
def saved(monkeypatch):
    """The first image of each batch that is saved."""
    firsts, save = [], EvaluationFolder.save

    def recorded(self, state, first, images):
        save(self, state, first, images)
        firsts.append(first)

    monkeypatch.setattr(EvaluationFolder, "save", recorded)
    return firsts


class Kill(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("torn", [False, True])
def test_resume_equals_unbroken(pipeline, unbroken, saved, tmp_path, monkeypatch, torn):
    with monkeypatch.context() as patch:
        save = EvaluationFolder.save

        def killed(self, state, first, images):
            save(self, state, first, images)
            if first == 2:
                raise Kill

        patch.setattr(EvaluationFolder, "save", killed)
        with pytest.raises(Kill):
            evaluate(pipeline, config_of(), tmp_path)
    if torn:
        records = tmp_path / RECORDS
        records.write_bytes(records.read_bytes()[:-9])
    assert not (tmp_path / "scores.json").exists()
    saved.clear()
    resumed = evaluate(pipeline, config_of(), tmp_path)
    assert saved == ([2, 4, 6] if torn else [4, 6])
    assert (resumed.scores, resumed.diagnostics) == (unbroken[1].scores, unbroken[1].diagnostics)
    assert results(tmp_path) == results(unbroken[0])
    assert [json.loads(line)["images"] for line in (tmp_path / RECORDS).read_text().splitlines()] == [2, 4, 6, 7]


def test_finished_is_not_sampled_again(pipeline, unbroken, saved):
    before = results(unbroken[0])
    evaluate(pipeline, config_of(), unbroken[0])
    assert saved == []
    assert results(unbroken[0]) == before


def test_lost_grid_image_is_sampled_again(pipeline, unbroken, saved):
    before = results(unbroken[0])
    (unbroken[0] / IMAGES / "5.png").unlink()
    evaluate(pipeline, config_of(), unbroken[0])
    assert saved == [4, 6]
    assert results(unbroken[0]) == before


def test_flipped_bits_cost_states_at_most(unbroken, tmp_path):
    """A state is one that was written, or none: a changed count would be a changed score."""
    out = tmp_path / "out"
    shutil.copytree(unbroken[0], out)
    manifest, judge = json.loads((out / MANIFEST).read_text()), check_judge(config_of())
    data, rng = (out / RECORDS).read_bytes(), random.Random(0)
    states = [{key: value for key, value in json.loads(line).items() if key != "crc32"} for line in data.splitlines()]
    for _ in range(100):
        broken = bytearray(data)
        position = rng.randrange(8 * len(data))
        broken[position // 8] ^= 1 << position % 8
        (out / RECORDS).write_bytes(broken)
        state = EvaluationFolder(out, manifest, False).load(judge)
        assert state is not None and state.to_json() in states[-2:]


def test_batch_size_does_not_change_results(pipeline, unbroken, tmp_path):
    result = evaluate(pipeline, config_of(batch_size=7), tmp_path)
    assert result.scores == unbroken[1].scores
    for metrics, expected in zip(result.diagnostics, unbroken[1].diagnostics, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-4)


def test_without_folder(pipeline, unbroken):
    result = evaluate(pipeline, config_of())
    assert (result.scores, result.diagnostics, result.out) == (unbroken[1].scores, unbroken[1].diagnostics, None)


def test_other_evaluation_is_refused(pipeline, unbroken, saved, tmp_path):
    evaluate(pipeline, config_of(num_samples=2), tmp_path)
    before = results(tmp_path)
    for key, changes in (("seed", {"seed": 1}), ("num_samples", {"num_samples": 3})):
        with pytest.raises(ConfigError, match=rf"(?s){key}.*--overwrite"):
            evaluate(pipeline, config_of(**{"num_samples": 2} | changes), tmp_path)
    other = pipeline.with_settings([{"num_inference_steps": 2}, {}])
    with pytest.raises(ConfigError, match="num_inference_steps"):
        evaluate(other, config_of(num_samples=2), tmp_path)
    assert results(tmp_path) == before
    saved.clear()
    evaluate(pipeline, config_of(), tmp_path, overwrite=True)
    assert saved == [0, 2, 4, 6]
    assert results(tmp_path) == results(unbroken[0])
