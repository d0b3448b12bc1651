"""local.sh and gpu.sh: processes that are told where they stand, and that live and die together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.configs import ROOT

SAY = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS on ${CUDA_VISIBLE_DEVICES-all}"'
DEAF = "trap '' TERM; while :; do sleep 0.05; done"


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher: the ended process. Programs in ``tmp_path`` come before those of the system."""

    def launch(script, *arguments, **variables):
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | variables
        return subprocess.run(
            [ROOT / "launch" / script, *arguments], env=environment, capture_output=True, text=True, timeout=60
        )

    return launch


def program(tmp_path, name, text):
    (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
    (tmp_path / name).chmod(0o755)


def said(ended):
    """What each member said, in order of their numbers."""
    assert ended.returncode == 0, ended.stderr
    lines = sorted(line.split("] ")[-1] for line in ended.stdout.splitlines())
    return [line.rpartition(" on ") for line in lines]


def test_each_process_is_told_where_it_stands(launch):
    ended = launch("local.sh", "--processes=3", "--", "bash", "-c", SAY)
    places = [place for place, _, _ in said(ended)]
    coordinator = places[0].rpartition(" at ")[2]
    assert coordinator.startswith("127.0.0.1:")
    assert places == [f"{index} of 3 at {coordinator}" for index in range(3)]
    assert sorted(line[:3] for line in ended.stdout.splitlines())[1:] == ["[1]", "[2]"]


def test_simulated_devices_are_the_cpu_s(launch):
    command = 'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $JAX_ENABLE_COMPILATION_CACHE $NPROC"'
    ended = launch("local.sh", "--processes=2", "--devices=4", "--", "bash", "-c", command)
    assert ended.stdout.splitlines()[0].split("] ")[-1] == f"cpu 4 false {os.environ['NPROC']}"


@pytest.mark.parametrize("codes, worst", [("0 0 0", 0), ("0 2 1", 2), ("3 0 0", 3), ("0 0 1", 1)])
def test_the_exit_code_is_the_worst_of_all(launch, codes, worst):
    command = f'codes=({codes}); exit "${{codes[JAX_PROCESS_ID]}}"'
    assert launch("local.sh", "--processes=3", "--", "bash", "-c", command).returncode == worst


@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_fails_the_others_end_with_all_that_they_started(launch, tmp_path, failing):
    program(tmp_path, "deaf", DEAF)
    command = f"[[ $JAX_PROCESS_ID == {failing} ]] && exit 3; trap '' TERM; {tmp_path}/deaf; exit 0"
    ended = launch("local.sh", "--processes=3", "--grace=1", "--", "bash", "-c", command)
    assert ended.returncode == 3
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/deaf"], capture_output=True).stdout == b""


def test_others_may_end_by_themselves_first(launch, tmp_path):
    command = f"[[ $JAX_PROCESS_ID == 1 ]] && exit 3; sleep 0.5; echo mine >{tmp_path}/last; exit 4"
    assert launch("local.sh", "--processes=2", "--grace=60", "--", "bash", "-c", command).returncode == 4
    assert (tmp_path / "last").read_text() == "mine\n"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_launcher_that_is_ended_ends_its_processes(tmp_path, number, code):
    program(tmp_path, "deaf", f"echo started >>{tmp_path}/started; trap '' INT; {DEAF}")
    command = [ROOT / "launch" / "local.sh", "--processes=2", "--grace=0", "--", tmp_path / "deaf"]
    # a test run in the background does not hear SIGINT, nor would the programs that it starts
    hearing = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", hearing, *command])
    while not (tmp_path / "started").exists() or (tmp_path / "started").read_text().count("\n") < 2:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == code
    assert subprocess.run(["pgrep", "-f", f"{tmp_path}/deaf"], capture_output=True).stdout == b""


def test_one_host_is_one_process_of_all_its_gpus(launch):
    ended = launch("gpu.sh", "--", "bash", "-c", 'echo "${JAX_NUM_PROCESSES-none} ${CUDA_VISIBLE_DEVICES-all}"')
    assert ended.stdout == "none all\n"


def test_hosts_are_a_process_each(launch):
    place = ["--hosts=2", "--host=1", "--coordinator=10.0.0.1:8476"]
    assert said(launch("gpu.sh", *place, "--", "bash", "-c", SAY)) == [("1 of 2 at 10.0.0.1:8476", " on ", "all")]


def test_a_process_for_each_gpu(launch, tmp_path):
    program(tmp_path, "nvidia-smi", "printf '0\\n1\\n2\\n'")
    place = ["--hosts=2", "--host=1", "--coordinator=10.0.0.1:8476", "--process_per_gpu"]
    wanted = [(f"{3 + gpu} of 6 at 10.0.0.1:8476", " on ", str(gpu)) for gpu in range(3)]
    assert said(launch("gpu.sh", *place, "--", "bash", "-c", SAY)) == wanted
    wanted = [(f"{2 + place} of 4 at 10.0.0.1:8476", " on ", gpu) for place, gpu in enumerate("57")]
    assert said(launch("gpu.sh", *place, "--", "bash", "-c", SAY, CUDA_VISIBLE_DEVICES="5,7")) == wanted


SLURM = {"SLURM_JOB_ID": "12345", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[7-8]"}


def test_slurm_says_where_a_host_stands(launch, tmp_path):
    program(tmp_path, "scontrol", '[[ "$*" == "show hostnames node[7-8]" ]] && printf "node7\\nnode8\\n"')
    ended = launch("gpu.sh", "--", "bash", "-c", SAY, **SLURM, SLURM_NTASKS="2")
    assert said(ended) == [("1 of 2 at node7:20345", " on ", "all")]


@pytest.mark.parametrize(
    "arguments, variables, error",
    [
        (["local.sh", "--", "true"], {}, "--processes '' is not a number of at least 1"),
        (["local.sh", "--processes=0", "--", "true"], {}, "--processes '0' is not a number of at least 1"),
        (["local.sh", "--processes=09", "--", "true"], {}, "--processes '09' is not a number"),
        (["local.sh", "--processes=a[$(id)]", "--", "true"], {}, "--processes 'a[$(id)]' is not a number"),
        (["local.sh", "--processes=2", "--devices=0", "--", "true"], {}, "--devices '0' is not a number of at least 1"),
        (["local.sh", "--processes=2", "--grace=x", "--", "true"], {}, "--grace 'x' is not a number"),
        (["local.sh", "--processes=2", "true"], {}, "'true' is not known here: see --help, and put -- before"),
        (["local.sh", "--processes=2"], {}, "there is no command to run: give it after --"),
        (["gpu.sh"], {}, "there is no command to run"),
        (["gpu.sh", "--hosts=2", "--", "true"], {}, "--host '' is not a number"),
        (["gpu.sh", "--hosts=2", "--host=2", "--", "true"], {}, "--host '2' is not one of the 2 hosts: give 0 to 1"),
        (["gpu.sh", "--hosts=2", "--host=0", "--", "true"], {}, "--coordinator '' is not HOST:PORT"),
        (["gpu.sh", "--", "true"], SLURM | {"SLURM_NTASKS": "16"}, "SLURM runs 16 tasks on 2 nodes: give srun"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_sentence(launch, arguments, variables, error):
    ended = launch(*arguments, **variables)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {error}")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


@pytest.mark.parametrize("script", ["local.sh", "gpu.sh", "tpu.sh"])
def test_help_is_the_script_s_own_comment(launch, script):
    ended = launch(script, "--help")
    assert ended.returncode == 0
    assert f"launch/{script} " in ended.stdout
    assert "set -euo" not in ended.stdout
