"""launch/xla_flags.sh, as a shell reads it. That libtpu knows its flags can be seen only where there is a libtpu."""

import os
import subprocess
import sys

import pytest

from tests.helpers.configs import ROOT

SCRIPT = ROOT / "launch" / "xla_flags.sh"


@pytest.fixture
def sourced(tmp_path):
    """What a command's environment is after the script, on a machine with or without a GPU."""

    def sourced(command, gpu=False, shell="sh", **environment):
        if gpu:
            (tmp_path / "nvidia-smi").touch(mode=0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        script = f"set -eu; . {SCRIPT}; {command}"
        # nothing of the tests' own XLA_FLAGS
        kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
        done = subprocess.run(
            [shell, "-c", script], env={**kept, "PATH": path, **environment}, text=True, capture_output=True, check=True
        )
        assert done.stderr == ""
        return done.stdout

    return sourced


def test_what_the_environment_has_set_stands_last(sourced):
    mine = "--xla_tpu_overlap_compute_collective_tc=false"
    flags = sourced('echo "$LIBTPU_INIT_ARGS"', LIBTPU_INIT_ARGS=mine).split()
    assert len(flags) > 5
    assert flags[-1] == mine
    mine = "--xla_dump_to=/tmp/x"
    assert sourced('echo "$XLA_FLAGS"', gpu=True, XLA_FLAGS=mine).split()[-1] == mine


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_libtpu_can_read_all_of_its_flags(sourced, shell):
    line = sourced('printf %s "$LIBTPU_INIT_ARGS"', shell=shell)
    assert "\\" not in line
    assert "\n" not in line
    assert all(flag.startswith("--xla_") and "=" in flag for flag in line.split(" "))
    assert "flag" not in sourced("set | grep '^flag' || true", shell=shell)


def test_every_flag_is_explained():
    lines = SCRIPT.read_text().splitlines()
    flags = [i for i, line in enumerate(lines) if line.strip().startswith("flag --")]
    assert len(flags) > 8
    assert all(lines[i - 1].strip().startswith("# ") for i in flags)


def test_jaxlib_knows_the_flags_for_gpus(sourced):
    """It ends the process otherwise, on any machine."""
    python = f"{sys.executable} -c 'import jax; print(jax.devices()[0].platform)'"
    assert sourced(python, gpu=True).strip() == "cpu"
    assert "xla_gpu" in sourced('echo "$XLA_FLAGS"', gpu=True)
    with pytest.raises(subprocess.CalledProcessError):
        sourced(python, XLA_FLAGS="--xla_gpu_no_such_flag=true")
