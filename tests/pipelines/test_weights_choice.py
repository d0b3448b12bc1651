"""A cascade is sampled with the EMA or the raw weights of any step that is there, and its manifest says which."""

import hashlib
import json

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines import output_dir
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from tests.helpers.configs import contents, one_device, restored

pytest_plugins = ("tests.helpers.fixtures",)


def load(folder, weights=None):
    return ImagenPipeline.from_pretrained([folder], one_device(), weights=weights)


def manifest(pipeline):
    return output_dir.run_manifest(pipeline.stages, SampleRequest(Texts(["a ring"])))


@pytest.mark.parametrize("kind, item", [("ema", "ema_params"), ("raw", "params")])
def test_weights_are_those_of_the_choice(base_folder, kind, item):
    before = contents(base_folder)
    (trained,) = load(base_folder, {"kind": kind}).stages
    state, _ = restored(base_folder, trained.stage.config, one_device())
    jax.tree.map(np.testing.assert_array_equal, trained.params, getattr(state, item))
    assert contents(base_folder) == before


def test_step(base_folder):
    newest, older = load(base_folder), load(base_folder, [{"step": 3}])
    assert (newest.stages[0].step, older.stages[0].step) == (6, 3)
    pairs = zip(*(jax.tree.leaves(pipeline.stages[0].params) for pipeline in (newest, older)), strict=True)
    assert any(np.any(a != b) for a, b in pairs)
    with pytest.raises(ConfigError, match="step 4.* 3, 6"):
        load(base_folder, {"step": 4})


@pytest.mark.parametrize("other", [{"step": 3}, {"kind": "raw"}])
def test_another_choice_is_another_run(base_folder, tmp_path, other):
    before, now = manifest(load(base_folder)), manifest(load(base_folder, other))
    output_dir.prepare(tmp_path, before, overwrite=False)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0000.png").touch()
    output_dir.prepare(tmp_path, before, overwrite=False)
    with pytest.raises(ConfigError, match="step was 6" if "step" in other else "raw"):
        output_dir.prepare(tmp_path, now, overwrite=False)


def test_manifest_of_the_newest_ema_is_as_ever(base_folder):
    """So that folders of earlier versions are continued."""
    stage = manifest(load(base_folder))["stages"]["0"]
    folder = base_folder / "checkpoints" / "6"
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}
    assert stage["checkpoint"] == hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    assert stage.keys() == {"step", "checkpoint", "config", "sampling"}


@pytest.mark.parametrize(
    "weights, message",
    [
        ({"kind": "best"}, "'best'.* ema, raw"),
        ({"kinds": "raw"}, "'kinds'"),
        ({"step": "3"}, "'3'"),
        ({"step": True}, "True"),
        ([{}, {}], "2 choices for 1 stages"),
    ],
    ids=str,
)
def test_invalid_choices(base_folder, weights, message):
    with pytest.raises(ConfigError, match=message):
        load(base_folder, weights)
