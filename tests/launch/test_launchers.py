"""local.sh and gpu.sh: the environment of the processes, their exit codes, and that they end together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.configs import ROOT

PRINT_PLACE = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS on ${CUDA_VISIBLE_DEVICES-all}"'
IGNORE_SIGTERM = "trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def launch(tmp_path):
    """Returns a function that runs a launcher; programs in `tmp_path` come first in the PATH."""

    def launch(script, *arguments, **variables):
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
        return subprocess.run(
            [ROOT / "launch" / script, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    return launch


def write_program(tmp_path, name, text):
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / name).chmod(0o755)


def places(ended):
    """Returns (place, " on ", GPUs) as each process has printed them, by index."""
    assert ended.returncode == 0, ended.stderr
    lines = sorted(line.split("] ")[-1] for line in ended.stdout.splitlines())
    return [line.rpartition(" on ") for line in lines]


def test_local_sets_environment(launch):
    ended = launch("local.sh", "--processes=3", "--", "bash", "-c", PRINT_PLACE)
    printed = [place for place, _, _ in places(ended)]
    coordinator = printed[0].rpartition(" at ")[2]
    assert coordinator.startswith("127.0.0.1:")
    assert printed == [f"{index} of 3 at {coordinator}" for index in range(3)]
    assert sorted(line[:3] for line in ended.stdout.splitlines())[1:] == ["[1]", "[2]"]


def test_local_simulates_devices(launch):
    command = 'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $JAX_ENABLE_COMPILATION_CACHE $NPROC"'
    ended = launch("local.sh", "--processes=2", "--devices=4", "--", "bash", "-c", command)
    assert ended.stdout.splitlines()[0].split("] ")[-1] == f"cpu 4 false {os.environ['NPROC']}"


@pytest.mark.parametrize("codes, worst", [("0 0 0", 0), ("0 2 1", 2), ("3 0 0", 3), ("0 0 1", 1)])
def test_exit_code_is_highest(launch, codes, worst):
    command = f'codes=({codes}); exit "${{codes[JAX_PROCESS_ID]}}"'
    assert launch("local.sh", "--processes=3", "--", "bash", "-c", command).returncode == worst


@pytest.mark.parametrize("failing", [0, 1])
def test_failure_kills_other_processes(launch, tmp_path, failing):
    write_program(tmp_path, "deaf", IGNORE_SIGTERM)
    command = f"[[ $JAX_PROCESS_ID == {failing} ]] && exit 3; trap '' TERM; {tmp_path}/deaf; exit 0"
    ended = launch("local.sh", "--processes=3", "--grace=1", "--", "bash", "-c", command)
    assert ended.returncode == 3
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/deaf"], capture_output=True).stdout == b""


def test_grace_period(launch, tmp_path):
    command = f"[[ $JAX_PROCESS_ID == 1 ]] && exit 3; sleep 0.5; echo mine >{tmp_path}/last; exit 4"
    assert launch("local.sh", "--processes=2", "--grace=60", "--", "bash", "-c", command).returncode == 4
    assert (tmp_path / "last").read_text() == "mine\n"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_all_processes(tmp_path, number, code):
    write_program(tmp_path, "deaf", f"echo started >>{tmp_path}/started; trap '' INT; {IGNORE_SIGTERM}")
    command = [ROOT / "launch" / "local.sh", "--processes=2", "--grace=0", "--", tmp_path / "deaf"]
    # a test that runs in the background ignores SIGINT, and so would its child processes
    restore_sigint = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", restore_sigint, *command])
    while not (tmp_path / "started").exists() or (tmp_path / "started").read_text().count("\n") < 2:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == code
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/deaf"], capture_output=True).stdout == b""


def test_gpu_one_host_runs_plain_command(launch):
    ended = launch("gpu.sh", "--", "bash", "-c", 'echo "${JAX_NUM_PROCESSES-none} ${CUDA_VISIBLE_DEVICES-all}"')
    assert ended.stdout == "none all\n"


def test_gpu_process_per_host(launch):
    flags = ["--hosts=2", "--host=1", "--coordinator=10.0.0.1:8476"]
    ended = launch("gpu.sh", *flags, "--", "bash", "-c", PRINT_PLACE)
    assert places(ended) == [("1 of 2 at 10.0.0.1:8476", " on ", "all")]


def test_gpu_process_per_gpu(launch, tmp_path):
    write_program(tmp_path, "nvidia-smi", "printf '0\\n1\\n2\\n'")
    place = ["--hosts=2", "--host=1", "--coordinator=10.0.0.1:8476", "--process_per_gpu"]
    expected = [(f"{3 + gpu} of 6 at 10.0.0.1:8476", " on ", str(gpu)) for gpu in range(3)]
    assert places(launch("gpu.sh", *place, "--", "bash", "-c", PRINT_PLACE)) == expected
    expected = [(f"{2 + place} of 4 at 10.0.0.1:8476", " on ", gpu) for place, gpu in enumerate("57")]
    assert places(launch("gpu.sh", *place, "--", "bash", "-c", PRINT_PLACE, CUDA_VISIBLE_DEVICES="5,7")) == expected


SLURM = {"SLURM_JOB_ID": "12345", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]"}


def test_gpu_uses_slurm(launch, tmp_path):
    write_program(tmp_path, "scontrol", '[[ "$*" == "show hostnames node[7-8]" ]] && printf "node7\\nnode8\\n"')
    ended = launch("gpu.sh", "--", "bash", "-c", PRINT_PLACE, **SLURM, SLURM_NTASKS="2")
    assert places(ended) == [("1 of 2 at node7:20345", " on ", "all")]


@pytest.mark.parametrize(
    "arguments, variables, error",
    [
        (["local.sh", "--", "true"], {}, "--processes ''"),
        (["local.sh", "--processes=0", "--", "true"], {}, "--processes '0'"),
        (["local.sh", "--processes=09", "--", "true"], {}, "--processes '09'"),
        (["local.sh", "--processes=a[$(id)]", "--", "true"], {}, "--processes 'a[$(id)]'"),
        (["local.sh", "--processes=2", "--devices=0", "--", "true"], {}, "--devices '0'"),
        (["local.sh", "--processes=2", "--grace=x", "--", "true"], {}, "--grace 'x'"),
        (["local.sh", "--processes=2", "true"], {}, "'true'"),
        (["local.sh", "--processes=2"], {}, "the command is missing"),
        (["gpu.sh"], {}, "the command is missing"),
        (["gpu.sh", "--hosts=2", "--", "true"], {}, "--host ''"),
        (["gpu.sh", "--hosts=2", "--host=2", "--", "true"], {}, "--host '2'"),
        (["gpu.sh", "--hosts=2", "--host=0", "--", "true"], {}, "--coordinator ''"),
        (["gpu.sh", "--", "true"], SLURM | {"SLURM_NTASKS": "16"}, "SLURM runs 16 tasks on 2 nodes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_error(launch, arguments, variables, error):
    ended = launch(*arguments, **variables)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {error}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


@pytest.mark.parametrize("script", ["local.sh", "gpu.sh", "tpu.sh"])
def test_help_is_script_comment(launch, script):
    ended = launch(script, "--help")
    assert ended.returncode == 0
    assert f"launch/{script} " in ended.stdout
    assert "set -euo" not in ended.stdout
