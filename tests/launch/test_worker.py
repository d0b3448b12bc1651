"""What worker.sh does on a machine; the programs that need root, a cloud or a network are written down, not run."""

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
    program(folder / ".venv" / "bin" / "python", 'echo "venv python $*" >>"$DONE"')
    yield folder
    worker(folder, tmp_path, "stop")


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def recorded(tmp_path, name, text=""):
    """A program that writes down how it was called."""
    program(tmp_path / "bin" / name, f'echo "{name} $*" >>"$DONE"\n{text}')


def worker(folder, tmp_path, *arguments):
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "DONE": f"{tmp_path}/done"}
    return subprocess.run(
        ["bash", folder / "launch" / "worker.sh", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def done(tmp_path):
    return (tmp_path / "done").read_text().splitlines()


def test_a_new_enough_python_is_used_as_it_is(folder, tmp_path):
    recorded(tmp_path, "python3")
    recorded(tmp_path, "make")
    ended = worker(folder, tmp_path, "install")
    assert ended.returncode == 0, ended.stderr
    asked, *rest = done(tmp_path)
    assert asked.startswith("python3 -c import sys; sys.exit(not (3, 11) <= ")
    assert rest[-2:] == [
        "make setup",
        "venv python -m pip install --no-deps --require-hashes -r launch/libtpu.lock",
    ]


def test_uv_brings_a_python_where_there_is_none_that_is_new_enough(folder, tmp_path):
    recorded(tmp_path, "python3", '[[ $1 != -c ]] || exit 1; [[ "$*" != *find* ]] || echo /home/uv/python3.12')
    recorded(tmp_path, "make")
    ended = worker(folder, tmp_path, "install")
    assert ended.returncode == 0, ended.stderr
    assert done(tmp_path)[1:] == [
        "python3 -m pip install --user --require-hashes -r launch/uv.lock",
        "python3 -m uv python install 3.12",
        "python3 -m uv python find --no-project 3.12",
        "make setup PYTHON=/home/uv/python3.12",
        "venv python -m pip install --no-deps --require-hashes -r launch/libtpu.lock",
    ]


def test_an_install_that_fails_says_so(folder, tmp_path):
    recorded(tmp_path, "python3")
    recorded(tmp_path, "make", "exit 2")
    assert worker(folder, tmp_path, "install").returncode == 2


def test_a_bucket_is_mounted_without_a_cache_of_names(folder, tmp_path):
    recorded(tmp_path, "mountpoint", "exit 1")
    recorded(tmp_path, "sudo")
    recorded(tmp_path, "gcsfuse")
    ended = worker(folder, tmp_path, "mount", "gs://my-bucket")
    assert ended.returncode == 0, ended.stderr
    assert done(tmp_path) == [
        f"mountpoint -q {SHARED}",
        f"sudo mkdir -p {SHARED}",
        f"sudo chown {os.getuid()}:{os.getgid()} {SHARED}",
        f"gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 my-bucket {SHARED}",
    ]


def test_a_folder_of_a_file_server_is_mounted(folder, tmp_path):
    recorded(tmp_path, "mountpoint", "exit 1")
    recorded(tmp_path, "sudo")
    recorded(tmp_path, "mount.nfs")
    assert worker(folder, tmp_path, "mount", "10.0.0.2:/imagen").returncode == 0
    assert done(tmp_path)[2] == f"sudo mount -t nfs -o hard 10.0.0.2:/imagen {SHARED}"


def test_what_is_mounted_is_left_alone(folder, tmp_path):
    recorded(tmp_path, "mountpoint")
    recorded(tmp_path, "sudo", "exit 1")
    assert worker(folder, tmp_path, "mount", "gs://my-bucket").returncode == 0
    assert done(tmp_path) == [f"mountpoint -q {SHARED}"]


def state(folder, tmp_path):
    return worker(folder, tmp_path, "state").stdout.strip()


def children(folder):
    """The commands that run in the folder."""
    found = subprocess.run(["pgrep", "-f", f"{folder}/work"], capture_output=True, text=True)
    return found.stdout.split()


@pytest.fixture
def working(folder):
    """The folder; its python is a program that works for ever, heeds no SIGTERM and has a child."""
    program(folder / "work", "trap '' TERM; echo working; while :; do sleep 0.05; done")
    program(folder / ".venv" / "bin" / "python", f"trap '' TERM; {folder}/work $1 $2; exit 0")
    return folder


def test_a_run_is_idle_and_runs_and_is_killed_with_all_that_it_started(working, tmp_path):
    assert state(working, tmp_path) == "idle"
    assert worker(working, tmp_path, "start", "train", "--x=1").returncode == 0
    assert state(working, tmp_path) == "running"
    while not children(working):
        time.sleep(0.05)
    assert worker(working, tmp_path, "stop").returncode == 0
    while children(working):
        time.sleep(0.05)
    assert state(working, tmp_path) == "exited 137"
    assert "train --x=1" in (working / "run" / "log.txt").read_text()


def test_what_runs_makes_way_for_what_is_started(working, tmp_path):
    worker(working, tmp_path, "start", "train")
    while not children(working):
        time.sleep(0.05)
    before = children(working)
    worker(working, tmp_path, "start", "train")
    while not children(working) or set(children(working)) & set(before):
        time.sleep(0.05)
    assert len(children(working)) == 1
    assert (working / "run" / "log.txt").read_text().count("working") == 2


@pytest.mark.parametrize("code", [0, 2, 134])
def test_an_exit_code_stays_known(folder, tmp_path, code):
    program(folder / ".venv" / "bin" / "python", f"exit {code}")
    worker(folder, tmp_path, "start", "train")
    while state(folder, tmp_path) == "running":
        time.sleep(0.05)
    assert state(folder, tmp_path) == f"exited {code}"


def said_before_the_first_step(monkeypatch, capfd):
    monkeypatch.setattr(preemption.os, "_exit", lambda code: None)
    preemption.Stop().take(signal.SIGTERM)
    return capfd.readouterr().err.strip().splitlines()[0]


def test_a_run_that_a_signal_stopped_is_not_done(folder, tmp_path, monkeypatch, capfd):
    sentences = [
        preemption.stopped_at("runs/base", "SIGTERM", 12),
        said_before_the_first_step(monkeypatch, capfd),
    ]
    for said, expected in [*((sentence, "stopped") for sentence in sentences), ("runs/base: trained", "exited 0")]:
        program(folder / ".venv" / "bin" / "python", f"echo '{said}'")
        worker(folder, tmp_path, "start", "train")
        while state(folder, tmp_path) == "running":
            time.sleep(0.05)
        assert state(folder, tmp_path) == expected, said


def test_another_process_of_the_same_number_is_not_the_run(folder, tmp_path):
    (folder / "run").mkdir()
    (folder / "run" / "pid").write_text(str(os.getpid()))
    assert state(folder, tmp_path) == "exited 137"
    worker(folder, tmp_path, "stop")  # and is not killed


def test_wrong_use_is_told_what_there_is(folder, tmp_path):
    ended = worker(folder, tmp_path, "begin")
    assert ended.returncode == 2
    assert "launch/worker.sh start COMMAND" in ended.stderr
