"""launch/xla_flags.sh, sourced by a shell. Whether libtpu knows the flags can be tested only where it is installed."""

import os
import subprocess
import sys

import pytest

from tests.helpers.configs import ROOT

SCRIPT = ROOT / "launch" / "xla_flags.sh"


@pytest.fixture
def sourced(tmp_path):
    """Returns a function that runs a command after the script, with or without a GPU, and returns its output."""

    def sourced(command, gpu=False, shell="sh", **environment):
        if gpu:
            (tmp_path / "nvidia-smi").touch(mode=0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        script = f"set -eu; . {SCRIPT}; {command}"
        # without the tests' own XLA_FLAGS
        clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
        done = subprocess.run(
            [shell, "-c", script],
            env={**clean, "PATH": path, **environment},
            text=True,
            capture_output=True,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout

    return sourced


def test_environment_flags_come_last(sourced):
    own_flag = "--xla_tpu_overlap_compute_collective_tc=false"
    flags = sourced('echo "$LIBTPU_INIT_ARGS"', LIBTPU_INIT_ARGS=own_flag).split()
    assert len(flags) > 5
    assert flags[-1] == own_flag
    own_flag = "--xla_dump_to=/tmp/x"
    assert sourced('echo "$XLA_FLAGS"', gpu=True, XLA_FLAGS=own_flag).split()[-1] == own_flag


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_flags_have_libtpu_format(sourced, shell):
    line = sourced('printf %s "$LIBTPU_INIT_ARGS"', shell=shell)
    assert "\\" not in line
    assert "\n" not in line
    assert all(flag.startswith("--xla_") and "=" in flag for flag in line.split(" "))
    assert "flag" not in sourced("set | grep '^flag' || true", shell=shell)


def test_every_flag_has_comment():
    lines = SCRIPT.read_text().splitlines()
    flags = [i for i, line in enumerate(lines) if line.strip().startswith("flag --")]
    assert len(flags) > 8
    assert all(lines[i - 1].strip().startswith("# ") for i in flags)


def test_jaxlib_accepts_gpu_flags(sourced):
    """On any machine, jaxlib ends the process at an unknown flag."""
    python = f"{sys.executable} -c 'import jax; print(jax.devices()[0].platform)'"
    assert sourced(python, gpu=True).strip() == "cpu"
    assert "xla_gpu" in sourced('echo "$XLA_FLAGS"', gpu=True)
    with pytest.raises(subprocess.CalledProcessError):
        sourced(python, XLA_FLAGS="--xla_gpu_no_such_flag=true")
