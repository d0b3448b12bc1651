"""The public API: lazy, usable from any thread, and in one process with every command."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile

import jax
import numpy as np
import pytest

import imagen_jax
from imagen_jax import ImagenPipeline, evaluate, load_config, train
from imagen_jax.cli import app
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.config.schema import EvaluationConfig
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.find_stages import SHIPPED
from imagen_jax.stages import stage_sampler
from tests.helpers.cli import run_command
from tests.helpers.configs import ROOT, base_config, contents, one_device
from tests.helpers.old_stages import extract_old_stages

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "two blue squares", "a ring"]


def test_import_is_lazy():
    lines = "import sys, imagen_jax; print(sorted({'jax', 'numpy', 'absl', 'pydantic'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", lines], text=True).strip() == "[]"


def test_public_names_exist():
    for name in imagen_jax.__all__:
        assert getattr(imagen_jax, name) is not None
    assert set(imagen_jax.__all__) <= set(dir(imagen_jax))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = imagen_jax.no_such_name


@pytest.fixture(scope="module")
def pipeline(base_folder, sr_folder):
    pipeline = ImagenPipeline.from_pretrained([str(base_folder), str(sr_folder)])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def output(pipeline):
    return pipeline(PROMPTS, seed=1)


def test_pipeline_returns_images_of_every_stage(pipeline, output):
    assert output.images.dtype == np.uint8
    assert [images.shape for images in output.stages] == [(3, 8, 8, 3), (3, 16, 16, 3)]
    np.testing.assert_array_equal(output.images, output.stages[-1])
    assert len(pipeline.stages) == 2


def test_pipeline_takes_one_prompt(pipeline, output):
    image = pipeline(PROMPTS[0], seed=1).images
    assert np.abs(image.astype(int) - output.images[:1].astype(int)).max() <= 1


def test_pipeline_loads_a_folder_of_stages(base_folder, sr_folder, tmp_path, output):
    for name, folder in (("a", sr_folder), ("b", base_folder)):
        (tmp_path / name).symlink_to(folder)
    found = ImagenPipeline.from_pretrained(str(tmp_path))
    assert [trained.stage.image_shape[0] for trained in found.stages] == [8, 16]
    np.testing.assert_array_equal(found(PROMPTS, seed=1).images, output.images)


def test_settings_per_call(pipeline, output):
    same = pipeline(PROMPTS, seed=1, num_inference_steps=[2, 2], batch_size=2)
    assert np.abs(same.images.astype(int) - output.images.astype(int)).max() <= 1
    other = pipeline(PROMPTS, seed=1, sampler="ddim", num_inference_steps=3, guidance_scale=[3.0, 1.0], aug_level=0.5)
    assert np.abs(other.images.astype(int) - output.images.astype(int)).max() > 1
    # settings of a call do not stay
    np.testing.assert_array_equal(pipeline(PROMPTS, seed=1).images, output.images)


def test_settings_of_a_call_are_compiled_once(pipeline, monkeypatch):
    settings = {"num_inference_steps": 1, "eta": 0.5, "sampler": "ddim"}
    pipeline(PROMPTS, **settings)
    monkeypatch.setattr(stage_sampler, "_compile_programs", lambda *args: pytest.fail("programs are made again"))
    pipeline(PROMPTS, seed=2, **settings)


def test_pipeline_moves_to_other_devices(pipeline, output):
    for mesh in (one_device(), {"data": 2, "fsdp": 4}):
        images = pipeline(PROMPTS, seed=1, mesh=mesh).images
        assert np.abs(images.astype(int) - output.images.astype(int)).max() <= 1


def test_weights_are_copied_to_other_devices_once(pipeline, monkeypatch):
    mesh, settings = one_device(), {"sampler": "ddim", "num_inference_steps": 1}
    images = pipeline(PROMPTS, seed=1, mesh=mesh, **settings).images
    monkeypatch.setattr(pipeline, "_copy_to", lambda mesh: pytest.fail("weights are copied again"))
    np.testing.assert_array_equal(pipeline(PROMPTS, seed=1, mesh=mesh, **settings).images, images)
    monkeypatch.undo()
    # settings of a derived pipeline go with it
    derived = pipeline.with_settings([settings] * 2)
    np.testing.assert_array_equal(derived(PROMPTS, seed=1, mesh=mesh).images, images)


def test_encode_prompt(pipeline):
    embeddings, mask = pipeline.encode_prompt(PROMPTS)
    assert embeddings.shape[:2] == mask.shape == (3, 24)
    assert mask.sum(axis=1).tolist() == [len(prompt) + 1 for prompt in PROMPTS]


@pytest.mark.parametrize(
    "settings, key",
    [
        ({"sampler": "euler"}, "sampler"),
        ({"num_inference_steps": [1, 2, 3]}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"guidance_scale": np.ones((2, 5))}, "guidance_scale"),
        ({"aug_level": 2.0}, "aug_level"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_steps": 3}, "num_steps"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_wrong_arguments(pipeline, settings, key):
    with pytest.raises(ConfigError, match=key):
        pipeline(PROMPTS, **settings)


@pytest.mark.parametrize("prompts", [[], [1], [None]], ids=str)
def test_wrong_prompts(pipeline, prompts):
    with pytest.raises(ConfigError, match="prompts"):
        pipeline(prompts)


def test_no_stages_in_folder(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=str(folder)):
            ImagenPipeline.from_pretrained(folder)


def test_train_sample_evaluate_in_one_process(tmp_path):
    """In a thread that is not the main one, as of a server."""
    results = []

    def work():
        config = base_config(**{"training.steps": 2, "training.save_every": 2, "training.preview_every": 2})
        results.append(train(config, str(tmp_path / "base")))
        pipeline = ImagenPipeline.from_pretrained(str(tmp_path / "base"))
        results.append(pipeline(PROMPTS[:2], num_inference_steps=1))
        scoring = load_config(
            f"{ROOT}/configs/shapes_eval.py", {"num_samples": 4, "batch_size": 4}, schema=EvaluationConfig
        )
        results.append(evaluate(pipeline, scoring, str(tmp_path / "scores")))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    trained, sampled, scored = results
    assert (trained.step, trained.stopped_by) == (2, "")
    assert sampled.images.shape == (2, 8, 8, 3)
    assert scored.scores["all"]["total"] == 4
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == scored.scores


@pytest.mark.slow
def test_commands_run_one_after_another(base_folder, sr_folder, tmp_path):
    """Flags of one command are unknown to the next, even where names are the same."""
    stages = f"--stages={base_folder},{sr_folder}"
    scoring = [f"--config={ROOT}/configs/shapes_eval.py", "--config.num_samples=2", "--config.batch_size=2"]
    base = f"--config={ROOT}/configs/shapes_base.py:tiny"
    assert run_command("sample", stages, "--prompts=a ring", f"--out={tmp_path}/a", "--num_inference_steps=1") == 0
    assert run_command("evaluate", stages, *scoring, f"--out={tmp_path}/b", "--num_inference_steps=1") == 0
    assert run_command("sample", stages, "--prompts=a ring", f"--out={tmp_path}/c", *scoring) == 2
    assert run_command("train", base, "--config.training.steps=1", f"--workdir={tmp_path}/d") == 0
    assert run_command("train", base, stages, f"--workdir={tmp_path}/e") == 2
    assert run_command("config", base) == 0
    assert run_command("config", base, f"--diff={ROOT}/configs/shapes_sr.py") == 0
    assert run_command("config", *scoring, f"--diff={ROOT}/configs/digits_eval.py") == 0
    assert run_command("config", f"--config={ROOT}/configs/pretrain_text.py") == 0
    assert not (tmp_path / "c").exists()
    assert not (tmp_path / "e").exists()


def test_every_command_has_help(capsys):
    for name in app.COMMANDS:
        assert run_command(name, "--help") == 0
        out = capsys.readouterr().out
        assert f"imagen {name}" in out
        assert "Flags:" in out


def test_unknown_command(capsys):
    assert run_command("smaple") == 2
    assert "'sample'" in capsys.readouterr().err
    assert run_command() == 2


def test_commands_with_dashes(capsys):
    assert run_command("benchmark-prompts", "--help") == 0
    assert "imagen benchmark_prompts" in capsys.readouterr().out
    assert run_command("--version") == 0


def test_only_some_commands_take_files(capsys):
    assert run_command("sample", "votes.json") == 2
    assert "'votes.json' is not a flag" in capsys.readouterr().err
    assert run_command("votes", "--key=missing.json", "votes.json") == 2
    assert "missing.json cannot be read" in capsys.readouterr().err


def test_flags_of_two_calls_are_apart():
    from imagen_jax.cli import sample

    first, second = CommandFlags(sample), CommandFlags(sample)
    first.parse(["--seed=3"])
    second.parse([])
    assert (first.seed, second.seed) == (3, 0)


def test_installed_wheel_samples_and_has_configs(tmp_path):
    """As in an environment without a checkout; the libraries are those of this one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = tmp_path / "source"
    for name in ("imagen_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *build, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    shipped = [file for file in zipfile.ZipFile(wheel).infolist() if "/pipelines/cascades/" in file.filename]
    assert 0 < sum(file.file_size for file in shipped) <= 4 * 10**6
    assert {path.name for path in (ROOT / "imagen_jax/pipelines/cascades").iterdir()} == set(SHIPPED)
    extract_old_stages(tmp_path / "runs")
    lines = (
        "import imagen_jax, imagen_jax.configs.shapes_base as base\n"
        "assert 'site' in imagen_jax.__file__ and 'site' in base.__file__\n"
        "assert imagen_jax.load_config('configs/shapes_base.py:tiny').image_size == 32\n"
        "pipe = imagen_jax.ImagenPipeline.from_pretrained(['runs/base', 'runs/sr'])\n"
        "print(pipe('a red circle', seed=0).images.shape)\n"
        "shipped = imagen_jax.ImagenPipeline.from_pretrained('shapes', text_encoder=False)\n"
        "assert all('site' in str(trained.folder) for trained in shipped.stages)\n"
        "assert shipped.image_size == (64, 64)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ended = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "(1, 16, 16, 3)"


def test_sampling_changes_no_folder(base_folder, sr_folder):
    before = contents(base_folder), contents(sr_folder)
    ImagenPipeline.from_pretrained([base_folder, sr_folder])(PROMPTS[:1])
    assert (contents(base_folder), contents(sr_folder)) == before
    assert jax.process_count() == 1
