"""Every wrong use ends in one sentence and exit code 2, and has written nothing."""

import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import train
from imagen_jax.cli import app, sample
from imagen_jax.cli import train as train_command
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.errors import ConfigError
from imagen_jax.parallel import runtime
from tests.helpers.configs import ROOT, STEPS, base_config, contents, sr_config, write_stage

pytest_plugins = ("tests.helpers.fixtures",)
BASE = f"--config={ROOT}/configs/shapes_base.py:tiny"


@pytest.fixture
def run(capsys):
    """Runs a command within this process: (exit code, stdout, stderr)."""

    def run(command, *arguments):
        with pytest.raises(SystemExit) as ended:
            app.run(command, [str(argument) for argument in arguments])
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run, tmp_path):
    """Runs a command that must be refused; its sentence."""

    def refused(command, *arguments):
        before = contents(tmp_path)
        code, out, error = run(command, *arguments)
        assert code == 2
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert contents(tmp_path) == before
        return error.removeprefix("error: ").strip()

    return refused


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--config is missing"),
        ([BASE], "--workdir is missing"),
        (["--config=configs/none.py"], "'configs/none.py' does not exist"),
        ([f"{BASE}ny"], "'tinyny'"),
        ([BASE, "--config.model.chanels=8"], "model.chanels is not a key of the config: the nearest is model.channels"),
        ([BASE, "--config.optimizer.lr=1"], "optimizer.lr is not a key of the config: the nearest is optimizer"),
        ([BASE, "--config.model=8"], "model"),
        ([BASE, "--config.training.steps=many"], "many"),
        ([BASE, "--config.optimizer.learning_rate=high"], "high"),
        (["--config.seed=1"], "no --config=FILE is given"),
        ([BASE, "--workdri=x"], "workdri"),
        ([BASE, "runs/base"], "'runs/base' is not a flag"),
    ],
    ids=str,
)
def test_wrong_train_flags(refused, tmp_path, arguments, message):
    assert message in refused(train_command, *arguments)


@pytest.fixture
def cache_of():
    """What jax is told of a folder for compiled programs when it has been told ``told``."""
    before = jax.config.jax_compilation_cache_dir

    def cache_of(told):
        jax.config.update("jax_compilation_cache_dir", told)
        runtime.enable_compilation_cache()
        return jax.config.jax_compilation_cache_dir

    yield cache_of
    jax.config.update("jax_compilation_cache_dir", before)


def test_compilation_cache_folder(cache_of, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_of("elsewhere") == "elsewhere"
    assert not list(tmp_path.iterdir())
    home = tmp_path / ".cache" / "imagen_jax" / "xla"
    assert cache_of(None) == str(home)
    assert home.is_dir()


def test_compilation_cache_without_home(cache_of, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert cache_of(None) is None


def overridden(*arguments):
    """The config that a command line gives."""
    args = CommandFlags(train_command)
    args.parse(arguments)
    return args.load_config()


def test_config_overrides():
    config = overridden(BASE, "--config.model.channels=32", "--config.training.steps=7", "--config.text.model=random")
    assert (config.model.channels, config.training.steps, config.text.model) == (32, 7, "random")


def test_size_overrides():
    assert overridden(BASE, "--config.image_size=64").image_hw == (64, 64)
    # a config whose size is a pair takes both
    wide = BASE.replace(":tiny", ":wide")
    assert overridden(wide, "--config.image_size=(48,64)").image_hw == (48, 64)
    assert overridden(wide, "--config.image_size=64").image_hw == (64, 64)
    assert overridden(BASE, "--config.image_size=(48,64)").image_hw == (48, 64)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"training.batch_size": 12}, "batch_size 12 .* 8 devices .* 8 or 16"),
        ({"training.grad_accum_steps": 2}, "batch_size 8 .* 8 devices .* 16"),
        ({"training.grad_accum_steps": 0}, "training.grad_accum_steps.* 0"),
        ({"training.remat": "some"}, "training.remat.* 'some' .*none, dots, full"),
        ({"sharding_rules": (("stem", ("model",)),)}, "sharding_rules.*data, fsdp"),
        ({"sharding_rules": (("sten", ()),)}, "sharding_rules.*'sten'"),
        ({"mesh.data": 3}, "mesh data=3, fsdp=1 .* 8 devices"),
        ({"mesh.fsdp": -1}, "-1"),
        ({"mesh.spatial": 8}, "image_size 8 .* 8 devices"),
        ({"model.network": "vit"}, "model.network.* 'vit'"),
        ({"text.model": "/none/there"}, "/none/there"),
        ({"diffusion.prediction_type": "y"}, "diffusion.prediction_type.* 'y'"),
        ({"diffusion.schedule": "y"}, "diffusion.schedule.* 'y'"),
        ({"data.source": "cats"}, "data.source.* 'cats' .*shapes, figures, digits, fashion_mnist, folder"),
        ({"data.split": "all"}, "split 'all'"),
        ({"data.validation_split": "all"}, "split 'all'"),
        ({"data.num_examples": 0}, "data.num_examples.* 0"),
        ({"data.bits": 12}, "data.bits.* 12 .*8, 16"),
        ({"data.transparent": True}, "4 channels.*channels.* 3"),
        ({"sampling.bits": 10}, "sampling.bits.* 10 .*8, 16"),
        ({"sampling.tile_size": 4}, "tile_size 4 .*model.positions"),
        ({"channels": 1}, "3 channels.*channels.* 1"),
        ({"optimizer.name": "sgd"}, "optimizer.name.* 'sgd'"),
        ({"optimizer.warmup_steps": 99}, "optimizer.warmup_steps.* 99"),
        ({"optimizer.first_moment_dtype": "int8"}, "optimizer.first_moment_dtype.* 'int8'"),
        ({"sampling.sampler": "euler"}, "sampling.sampler.* 'euler'"),
        ({"sampling.threshold": "soft"}, "sampling.threshold.* 'soft'"),
        (
            {"sampling.threshold": "dynamic", "sampling.dynamic_threshold_percentile": 120.0},
            "dynamic_threshold_percentile.* 120",
        ),
        ({"sampling.num_inference_steps": 0}, "sampling.num_inference_steps.* 0"),
        ({"training.log_every": 0}, "training.log_every.* 0 .*at least 1"),
        ({"training.save_every": 0}, "training.save_every.* 0 .*at least 1"),
        ({"training.preview_every": -1}, "training.preview_every.* -1 .*at least 1"),
        ({"training.preview_count": 0}, "training.preview_count.* 0"),
        ({"training.keep_checkpoints": 0}, "training.keep_checkpoints.* 0 .*at least 1"),
    ],
    ids=str,
)
def test_invalid_config_writes_nothing(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as refused:
        train(base_config(**changes), tmp_path / "stage")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "stage").exists()


def test_resume_with_other_config(base_folder):
    before = contents(base_folder)
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        train(base_config(seed=1), base_folder)
    assert contents(base_folder) == before


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="--workdir .* cannot be written"):
        train(base_config(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture
def chain(tmp_path):
    """Stage folders that chain and have no checkpoint, as a flag."""
    folders = [write_stage(tmp_path / "base", base_config()), write_stage(tmp_path / "sr", sr_config())]
    return f"--stages={folders[0]},{folders[1]}"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--prompts="], "no prompts"),
        (["--prompts= ; ;"], "no prompts"),
        (["--prompts_file=none.txt"], "--prompts_file 'none.txt'"),
        (["--prompts=a ring", "--stages="], "--stages is missing"),
        (["--prompts=a ring", "--stages=runs/none"], "runs/none is not a folder on this machine"),
        (["--prompts=a ring", "--num_inference_steps=1,2,3"], "--num_inference_steps has 3 values for 2 stages"),
        (["--prompts=a ring", "--sampler=ddim,ddim,ddpm"], "--sampler has 3 values for 2 stages"),
        (["--prompts=a ring", "--guidance_scale=much"], "--guidance_scale 'much'"),
        (["--prompts=a ring", "--s_churn=much"], "--s_churn 'much'"),
        (["--prompts=a ring", "--timestep_spacing=karras,uniform,karras"], "--timestep_spacing has 3 values"),
        (["--prompts=a ring", "--num_inference_steps=1.5"], "--num_inference_steps '1.5'"),
        (["--prompts=a ring;a cross", "--guidance_scale=1;2;3"], "3 prompts, and there are 2"),
        (["--prompts=a ring", "--guidance_resclae=1"], "guidance_rescale"),
        (["--prompts=a ring", "--batch_size=0"], "batch_size"),
        (["--prompts=a ring", "--seed=-1"], "seed"),
        (["--prompts=a ring"], "no complete checkpoint"),
    ],
    ids=str,
)
def test_wrong_sample_flags(refused, chain, tmp_path, arguments, message):
    assert message in refused(sample, chain, f"--out={tmp_path}/out", *arguments)


def test_stages_flag_in_wrong_order(refused, chain, tmp_path):
    first, second = chain.removeprefix("--stages=").split(",")
    said = refused(sample, f"--stages={second},{first}", "--prompts=a ring", f"--out={tmp_path}/out")
    assert said.endswith("put a base stage of 8×8 before it")


def test_unwritable_out(refused, base_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    said = refused(sample, f"--stages={base_folder}", "--prompts=a ring", f"--out={tmp_path}/file")
    assert "--out" in said
    assert "cannot be written" in said
    said = refused(sample, f"--stages={base_folder}", "--prompts=a ring")
    assert said.startswith("--out is missing")


@pytest.mark.parametrize(
    "environment, flag_values, place",
    [
        ({}, [], (None, None, None)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, [], ("a:1", 4, 0)),
        ({"JAX_NUM_PROCESSES": "4"}, ["--process_count=8", "--process_index=7"], (None, 8, 7)),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, ["--coordinator=b:2"], ("b:2", None, None)),
    ],
    ids=str,
)
def test_cli_flags_override_launcher_env(monkeypatch, environment, flag_values, place):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    args = CommandFlags(train_command)
    args.parse(flag_values)
    assert app.distributed_args(args) == place


def test_process_id_must_be_a_number(refused, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    assert refused(sample) == "$JAX_PROCESS_ID 'first' is not a number: set it to one, or give --process_index"


def test_single_process_command(refused):
    command = types.SimpleNamespace(
        __name__="alone", define_flags=lambda values: None, run=lambda args: pytest.fail("it ran")
    )
    place = ["--coordinator=localhost:1", "--process_count=2", "--process_index=1"]
    said = "--process_count is 2, but this command runs in one process: start it once"
    assert refused(command, *place) == said


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_sample_command(run, base_folder, sr_folder, tmp_path):
    prompts = "a red circle; ; two blue squares;a ring "
    stages = f"--stages={base_folder}, {sr_folder},"
    walk = [
        "--sampler=dpm_solver,ddpm",
        "--num_inference_steps=3",
        "--timestep_spacing=karras,quadratic",
        "--variance_type=large",
    ]
    code, out, _ = run(
        sample, stages, f"--prompts={prompts}", f"--out={tmp_path}/a", "--guidance_scale=3,1;2;4", "--columns=2", *walk
    )
    assert code == 0
    assert out.startswith("3 images: ")
    names = sorted(path.name for path in (tmp_path / "a" / "images").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png"]
    assert pixels(tmp_path / "a" / "samples.png").std() > 10
    # from a file, in other batches: the same pictures
    (tmp_path / "prompts.txt").write_text(prompts.replace(";", "\n"))
    file = f"--prompts_file={tmp_path}/prompts.txt"
    code, *_ = run(sample, stages, file, f"--out={tmp_path}/b", "--guidance_scale=3,1;2;4", "--batch_size=2", *walk)
    assert code == 0
    for name in names:
        first, second = (pixels(tmp_path / out / "images" / name) for out in ("a", "b"))
        assert first.shape == (16, 16, 3)
        assert np.abs(first - second).max() <= 1


def in_a_process_of_its_own(command, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "imagen_jax", command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_usage_error_exit_code(tmp_path):
    ended = in_a_process_of_its_own("train", BASE, f"--workdir={tmp_path}/stage", "--config.training.batch_size=9")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: batch_size 9 is not divisible by 8 devices")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
    assert not (tmp_path / "stage").exists()


def test_unknown_judge(tmp_path):
    config = f"--config={ROOT}/configs/shapes_eval.py"
    ended = in_a_process_of_its_own("evaluate", config, "--config.judge=people", "--stages=x", f"--out={tmp_path}/out")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: judge 'people'")
    assert "'', shapes, figures, digits" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_evaluate_command(base_folder, sr_folder, tmp_path):
    config = [f"--config={ROOT}/configs/shapes_eval.py", "--config.num_samples=10", "--config.batch_size=4"]
    settings = ["--num_inference_steps=1,2", "--guidance_scale=3", "--s_tmin=0.1", "--s_tmax=inf"]
    stages = f"--stages={base_folder},{sr_folder}"
    ended = in_a_process_of_its_own("evaluate", *config, stages, f"--out={tmp_path}", *settings)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["all"]["total"] == 10
    assert "rate" in ended.stdout
    # what was trained for six steps draws nothing right
    assert scores["all"]["correct"] <= 1
    assert pixels(tmp_path / "incorrect.png").std() > 10
    base, larger = json.loads((tmp_path / "diagnostics.json").read_text())
    assert (base["image_size"], larger["image_size"], larger["step"]) == (8, 16, STEPS)
    for stage, steps in ((base, 1), (larger, 2)):
        drawn_with = {name: stage["sampling"][name] for name in ("num_inference_steps", "guidance_scale", "s_tmax")}
        assert drawn_with == {"num_inference_steps": steps, "guidance_scale": 3.0, "s_tmax": float("inf")}
        assert 0 <= stage["metrics"]["saturation"] <= 1
        assert stage["metrics"]["validation_loss_at_noise/0.95"] > 0
    assert "consistency_db" not in base["metrics"]
    assert 0 < larger["metrics"]["consistency_db"] < 59
    for name, value in larger["metrics"].items():
        assert any(name in line and f"{value:.4g}" in line for line in ended.stdout.splitlines())
    with Image.open(tmp_path / "diagnostics.png") as figure:
        assert figure.width > 600


def test_help_lists_flags():
    ended = in_a_process_of_its_own("sample", "--help")
    assert ended.returncode == 0
    for flag in ("--stages", "--prompts", "--out", "--seed", "--guidance_rescale"):
        assert flag in ended.stdout
    assert "Traceback" not in ended.stderr


def test_save_interval(base_folder):
    assert sorted(path.name for path in (base_folder / "checkpoints").iterdir()) == ["3", str(STEPS)]


def test_prepare_command(tmp_path):
    to_digits = ("prepare", "--dataset=digits", f"--out={tmp_path}")
    first = in_a_process_of_its_own(*to_digits)
    assert first.returncode == 0, first.stderr
    assert f"{tmp_path}/digits/1.0.0 is prepared: train 1437, test 360 examples" in first.stdout
    before = contents(tmp_path)
    again = in_a_process_of_its_own(*to_digits)
    assert again.returncode == 0, again.stderr
    assert f"{tmp_path}/digits/1.0.0 is there already" in again.stdout
    assert contents(tmp_path) == before
