"""worker.sh on a machine; programs that need root, a cloud or a network are recorded, not run."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from imagen_jax.training import preemption
from tests.helpers.configs import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers of TPUs run Linux")
SHARED = "/mnt/shared"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "imagen_jax"
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / ".venv" / "bin").mkdir(parents=True)
    write_program(folder / ".venv" / "bin" / "python", 'echo "venv python $*" >>"$DONE"')
    yield folder
    run_worker(folder, tmp_path, "stop")


def write_program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def record_calls(tmp_path, name, text=""):
    """Writes a program that records its arguments."""
    write_program(tmp_path / "bin" / name, f'echo "{name} $*" >>"$DONE"\n{text}')


def run_worker(folder, tmp_path, *arguments):
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DONE": f"{tmp_path}/done"}
    return subprocess.run(
        ["bash", folder / "launch" / "worker.sh", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def calls(tmp_path):
    return (tmp_path / "done").read_text().splitlines()


def test_install_uses_system_python(folder, tmp_path):
    record_calls(tmp_path, "python3")
    record_calls(tmp_path, "make")
    ended = run_worker(folder, tmp_path, "install")
    assert ended.returncode == 0, ended.stderr
    version_check, *rest = calls(tmp_path)
    assert version_check.startswith("python3 -c import sys; sys.exit(not (3, 11) <= ")
    assert rest[-2:] == [
        "make setup",
        "venv python -m pip install --no-deps --require-hashes -r launch/libtpu.lock",
    ]


def test_install_gets_python_by_uv(folder, tmp_path):
    record_calls(tmp_path, "python3", '[[ $1 != -c ]] || exit 1; [[ "$*" != *find* ]] || echo /home/uv/python3.12')
    record_calls(tmp_path, "make")
    ended = run_worker(folder, tmp_path, "install")
    assert ended.returncode == 0, ended.stderr
    assert calls(tmp_path)[1:] == [
        "python3 -m pip install --user --require-hashes -r launch/uv.lock",
        "python3 -m uv python install 3.12",
        "python3 -m uv python find --no-project 3.12",
        "make setup PYTHON=/home/uv/python3.12",
        "venv python -m pip install --no-deps --require-hashes -r launch/libtpu.lock",
    ]


def test_install_failure_exit_code(folder, tmp_path):
    record_calls(tmp_path, "python3")
    record_calls(tmp_path, "make", "exit 2")
    assert run_worker(folder, tmp_path, "install").returncode == 2


def test_mount_nfs(folder, tmp_path):
    record_calls(tmp_path, "mountpoint", "exit 1")
    record_calls(tmp_path, "sudo")
    record_calls(tmp_path, "mount.nfs")
    assert run_worker(folder, tmp_path, "mount", "10.0.0.2:/imagen").returncode == 0
    assert calls(tmp_path)[2] == f"sudo mount -t nfs -o hard 10.0.0.2:/imagen {SHARED}"


def test_mount_is_idempotent(folder, tmp_path):
    record_calls(tmp_path, "mountpoint")
    record_calls(tmp_path, "sudo", "exit 1")
    assert run_worker(folder, tmp_path, "mount", "10.0.0.2:/imagen").returncode == 0
    assert calls(tmp_path) == [f"mountpoint -q {SHARED}"]


def state(folder, tmp_path):
    return run_worker(folder, tmp_path, "state").stdout.strip()


def child_processes(folder):
    """Returns the pids of the commands that run in the folder."""
    result = subprocess.run(["pgrep", "-f", f"{folder}/work"], capture_output=True, text=True)
    return result.stdout.split()


@pytest.fixture
def working(folder):
    """Returns the folder; its python runs forever, ignores SIGTERM and has a child process."""
    write_program(folder / "work", "trap '' TERM; echo working; while :; do sleep 0.05; done")
    write_program(folder / ".venv" / "bin" / "python", f"trap '' TERM; {folder}/work $1 $2; exit 0")
    return folder


def test_stop_kills_run_with_children(working, tmp_path):
    assert state(working, tmp_path) == "idle"
    assert run_worker(working, tmp_path, "start", "train", "--x=1").returncode == 0
    assert state(working, tmp_path) == "running"
    while not child_processes(working):
        time.sleep(0.05)
    assert run_worker(working, tmp_path, "stop").returncode == 0
    while child_processes(working):
        time.sleep(0.05)
    assert state(working, tmp_path) == "exited 137"
    assert "train --x=1" in (working / "run" / "log.txt").read_text()


def test_start_replaces_running_command(working, tmp_path):
    run_worker(working, tmp_path, "start", "train")
    while not child_processes(working):
        time.sleep(0.05)
    before = child_processes(working)
    run_worker(working, tmp_path, "start", "train")
    while not child_processes(working) or set(child_processes(working)) & set(before):
        time.sleep(0.05)
    assert len(child_processes(working)) == 1
    assert (working / "run" / "log.txt").read_text().count("working") == 2


@pytest.mark.parametrize("code", [0, 2, 134])
def test_exit_code_is_kept(folder, tmp_path, code):
    write_program(folder / ".venv" / "bin" / "python", f"exit {code}")
    run_worker(folder, tmp_path, "start", "train")
    while state(folder, tmp_path) == "running":
        time.sleep(0.05)
    assert state(folder, tmp_path) == f"exited {code}"


def message_before_first_step(monkeypatch, capfd):
    monkeypatch.setattr(preemption.os, "_exit", lambda code: None)
    preemption.StopRequest().on_signal(signal.SIGTERM)
    return capfd.readouterr().err.strip().splitlines()[0]


def test_stopped_by_signal_is_not_done(folder, tmp_path, monkeypatch, capfd):
    stop_messages = [
        preemption.stop_message("runs/base", "SIGTERM", 12),
        message_before_first_step(monkeypatch, capfd),
    ]
    for message, expected in [*((text, "stopped") for text in stop_messages), ("runs/base: trained", "exited 0")]:
        write_program(folder / ".venv" / "bin" / "python", f"echo '{message}'")
        run_worker(folder, tmp_path, "start", "train")
        while state(folder, tmp_path) == "running":
            time.sleep(0.05)
        assert state(folder, tmp_path) == expected, message


def test_reused_pid_is_not_the_run(folder, tmp_path):
    (folder / "run").mkdir()
    (folder / "run" / "pid").write_text(str(os.getpid()))
    assert state(folder, tmp_path) == "exited 137"
    run_worker(folder, tmp_path, "stop")  # and is not killed


def test_usage_error(folder, tmp_path):
    ended = run_worker(folder, tmp_path, "begin")
    assert ended.returncode == 2
    assert "launch/worker.sh start COMMAND" in ended.stderr
