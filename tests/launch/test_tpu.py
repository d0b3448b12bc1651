"""tpu.sh against a mock gcloud: its calls, the arguments that arrive on workers, and when a run is started again."""

import subprocess
import sys
import time
from importlib import metadata

import pytest

from imagen_jax.training.preemption import stop_message
from tests.helpers.configs import ROOT
from tests.launch.cloud import Cloud, make_project

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers of TPUs run Linux")
TPU = ["--name=imagen", "--project=my-project-123", "--zone=us-central2-b"]
V4 = [*TPU, "--accelerator=v4-32"]
LOCATION = ["--project=my-project-123", "--zone=us-central2-b", "--quiet"]
TRAIN = ["train", "--config=configs/imagen_base_64.py", "--workdir=gs://my-imagen/runs/base"]
SECRET = "hunter2-in-the-environment"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Creates a repository with the files that a worker needs, without the package."""
    return make_project(tmp_path_factory.mktemp("project"), "launch")


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path / "world").build()
    yield cloud
    cloud.end_workers()


@pytest.fixture
def environment(cloud):
    return cloud.environment() | {"HF_TOKEN": SECRET}


@pytest.fixture
def tpu(project, cloud, environment, tmp_path):
    """Returns a function that runs tpu.sh and returns the ended process."""

    def tpu(*arguments):
        return subprocess.run(
            [project / "launch" / "tpu.sh", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return tpu


def ssh(worker, command):
    return ["compute", "tpus", "tpu-vm", "ssh", "imagen", *LOCATION, f"--worker={worker}", f"--command={command}"]


QUEUED = ["compute", "tpus", "queued-resources"]
NODE = ["compute", "tpus", "tpu-vm"]
READ_STATE = "if test -e imagen_jax/launch/worker.sh; then bash imagen_jax/launch/worker.sh state; else echo absent; fi"


@pytest.mark.parametrize(
    "arguments, calls",
    [
        (
            ["create", *V4],
            [
                [*QUEUED, "create", "imagen", *LOCATION, "--node-id=imagen"]
                + ["--runtime-version=tpu-ubuntu2204-base", "--accelerator-type=v4-32"]
            ],
        ),
        (
            ["create", *TPU, "--accelerator=v5litepod-16", "--spot=yes"],
            [
                [*QUEUED, "create", "imagen", *LOCATION, "--node-id=imagen"]
                + ["--runtime-version=v2-alpha-tpuv5-lite", "--accelerator-type=v5litepod-16", "--spot"]
            ],
        ),
        (
            ["create", *TPU, "--accelerator=v6e-16", "--spot=yes", "--queue=no"],
            [
                [*NODE, "create", "imagen", *LOCATION, "--version=v2-alpha-tpuv6e"]
                + ["--accelerator-type=v6e-16", "--spot"]
            ],
        ),
        (
            ["create", *TPU, "--accelerator=v5p-8", "--image=v2-alpha-tpuv5", "--queue=no"],
            [[*NODE, "create", "imagen", *LOCATION, "--version=v2-alpha-tpuv5", "--accelerator-type=v5p-8"]],
        ),
        (["delete", *TPU], [[*QUEUED, "delete", "imagen", *LOCATION, "--force"]]),
        (["delete", *TPU, "--queue=no"], [[*NODE, "delete", "imagen", *LOCATION]]),
        (["state", *TPU], [[*QUEUED, "describe", "imagen", *LOCATION, "--format=value(state.state)"]]),
        (["state", *TPU, "--queue=no"], [[*NODE, "describe", "imagen", *LOCATION, "--format=value(state)"]]),
        (
            ["run", *TPU, "--", "train", "--config=a b.py", "--config.seed=$(id)"],
            [ssh("all", r"bash imagen_jax/launch/worker.sh start train --config=a\ b.py --config.seed=\$\(id\)")],
        ),
        (["logs", *TPU, "--worker=3"], [ssh(3, "bash imagen_jax/launch/worker.sh log 100")]),
        (
            ["copy", *TPU, "--from=/mnt/shared/runs/base", "--to=my runs"],
            [[*NODE, "scp", "--recurse", "imagen:/mnt/shared/runs/base", "my runs", *LOCATION, "--worker=0"]],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else "",
)
def test_gcloud_calls(cloud, tpu, arguments, calls):
    tpu(*arguments)
    assert cloud.calls == calls


def test_install_sends_last_commit(cloud, tpu, project):
    cloud.start_workers("ACTIVE")
    (project / "not_committed").write_text("")
    ended = tpu("install", *TPU)
    (project / "not_committed").unlink()
    assert ended.returncode == 0, ended.stderr
    assert "uncommitted changes" in ended.stderr
    archive = f"{project}/.cache/launch/imagen_jax.tar.gz"
    assert cloud.calls == [
        [*NODE, "scp", archive, "imagen:", *LOCATION, "--worker=all"],
        ssh("all", "mkdir -p imagen_jax && tar -xzf imagen_jax.tar.gz -C imagen_jax"),
        ssh("all", "bash imagen_jax/launch/worker.sh install"),
    ]
    for worker in (0, 1):
        folder = cloud.home(worker) / "imagen_jax"
        assert (folder / "launch" / "worker.sh").read_bytes() == (project / "launch" / "worker.sh").read_bytes()
        assert not (folder / "not_committed").exists()
        pip = ["-m", "pip", "install", "--no-deps", "--require-hashes", "-r", "launch/libtpu.lock"]
        assert cloud.python_calls(worker) == [pip]
    assert (cloud.world / "made").read_text() == "make setup\n" * 2


@pytest.mark.parametrize("command", ["create", "delete", "state", "install", "run", "logs", "copy"])
def test_dry_run_prints_commands(cloud, tpu, environment, tmp_path, command):
    words = [command, *V4, "--shared=10.0.0.2:/imagen", "--from=runs/a", f"--to={tmp_path}/b c"]
    words += ["--", "train", "--workdir=it's $HOME"] if command == "run" else []
    (cloud.world / "only_records").touch()
    cloud.start_workers("ACTIVE")
    dry = tpu(*words[:1], "--dry-run", *words[1:])
    assert (dry.returncode, dry.stderr) == (0, "")
    assert cloud.calls == []
    subprocess.run(["bash", "-c", dry.stdout], env=environment, check=True)
    printed = cloud.calls
    assert tpu(*words).returncode == 0
    assert printed
    assert cloud.calls == [*printed, *printed]


def test_dry_watch_prints_all_commands(cloud, tpu):
    dry = tpu("watch", *V4, "--spot=yes", "--dry-run", "--", *TRAIN)
    assert dry.returncode == 0
    assert cloud.calls == []
    expected = ["describe", "describe", "ssh", "scp", "ssh", "ssh", "ssh", "create", "delete", "create"]
    verbs = [line.split()[4] for line in dry.stdout.splitlines() if line.startswith("gcloud")]
    assert verbs == expected


BAD = [
    "",
    " ",
    "x;touch canary",
    "$(touch canary)",
    "`touch canary`",
    "x touch",
    "x\ntouch canary",
    "'",
    '"',
    "-x",
    "&",
    "|x",
    "x>y",
    "*",
    "x/../y:z",
]


@pytest.mark.parametrize(
    "setting", ["name", "project", "zone", "accelerator", "image", "shared", "from", "worker", "spot"]
)
@pytest.mark.parametrize("value", BAD)
def test_unsafe_setting_is_refused(cloud, tpu, tmp_path, setting, value):
    if (setting, value) == ("from", "x/../y:z"):
        value = "x:y"
    ended = tpu("create", *V4, f"--{setting}={value}")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: --{setting} '{value}' ")
    assert cloud.calls == []
    (tmp_path / "settings").write_text(f"{setting}={value}\n")
    ended = tpu("delete", "--settings=settings", *V4)
    assert ended.returncode == 2
    assert cloud.calls == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings", "world"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["creat", *V4], "'creat' is not a command"),
        (["create", *TPU], "--accelerator is missing"),
        (["delete", *TPU[1:]], "--name is missing"),
        (["delete", *TPU, "--spott=yes"], "--spott is not a setting"),
        (["delete", *TPU, "imagen"], "'imagen' is not a setting"),
        (["delete", *TPU, "--settings=none"], "--settings 'none' cannot be read"),
        (["delete", *TPU, "--", "train"], "'train' is not an argument of delete"),
        (["run", *TPU], "the command to run is missing"),
        (["run", *TPU, "--", "--config=x"], "the command to run is missing"),
        (["run", *TPU, "--", "train;id"], "the command to run is missing"),
        (["watch", *TPU, "--", "train"], "--accelerator is missing"),
        (["copy", *TPU, "--from=runs"], "--to is missing"),
        (["copy", *TPU, "--from=runs", "--to=other:runs"], "--to 'other:runs'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_error(cloud, tpu, arguments, message):
    ended = tpu(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {message}")
    assert ended.stderr.count("\n") == 1
    assert cloud.calls == []


def test_flags_override_settings_file(cloud, tpu, tmp_path):
    (tmp_path / "pod.settings").write_text("# a pod\n\nname=imagen\nproject=my-project-123\nzone=us-east1-d\nqueue=no")
    tpu("delete", "--zone=us-central2-b", "--settings=pod.settings")
    assert cloud.calls == [[*NODE, "delete", "imagen", *LOCATION]]


def test_home_in_paths(cloud, tpu, environment, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment["HOME"] = str(home)
    (home / "pod.settings").write_text("name=imagen\nproject=my-project-123\nzone=us-central2-b\nqueue=no")
    tpu("copy", "--settings=~/pod.settings", "--from=~/run", "--to=~/runs")
    assert str(home / "runs") in cloud.calls[0]
    assert "imagen:~/run" in cloud.calls[0]  # of the worker


ODD = [
    "--config=a b.py:c",
    "--config.x='\"",
    "--y=$(touch canary)`touch canary`",
    "--z=*;&|<>#~!",
    "--n=1\n2",
    "--e=",
    "--ü=é",
]


def test_arguments_arrive_unchanged(cloud, tpu):
    cloud.start_workers("ACTIVE")
    assert tpu("install", *TPU).returncode == 0
    ended = tpu("run", *TPU, "--", "train", *ODD)
    assert ended.returncode == 0, ended.stderr
    wait_for(lambda: tpu("state", *TPU).stdout == "TPU READY, run exited 0\n")
    for worker in (0, 1):
        assert cloud.python_calls(worker)[1:] == [["-m", "imagen_jax", "train", *ODD]]
    assert not list(cloud.world.rglob("canary"))
    copied = tpu("copy", *TPU, "--from=imagen_jax/run", f"--to={cloud.world}")
    assert copied.returncode == 0, copied.stderr
    assert (cloud.world / "run" / "exit_code").read_text() == "0\n"
    assert "train --config=a b.py:c" in (cloud.world / "run" / "log.txt").read_text()


def wait_for(condition):
    """Waits until a condition holds; fails after a time."""
    for _ in range(4000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("the condition did not come true in time")


@pytest.fixture
def watch(project, environment, tmp_path):
    """Returns a function that starts `tpu.sh watch` and returns the process."""
    started = []

    def watch(*arguments):
        command = [project / "launch" / "tpu.sh", "watch", *V4, "--poll=0", *arguments, "--", *TRAIN]
        with (tmp_path / "watch.txt").open("w") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path))
        return started[-1]

    yield watch
    for process in started:
        process.kill()
        process.wait()


# A run that waits for the file `finish` and ends with the exit code in it.
WAIT_FOR_FINISH = 'until [[ -e {world}/finish ]]; do sleep 0.05; done; exit "$(cat {world}/finish)"'
INSTALL = ["tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
MOUNT, START = "tpu-vm ssh", "tpu-vm ssh"


def finish(cloud, code):
    """Ends the run; the file appears with its content, or a worker would read it while it is empty."""
    (cloud.world / "finish.part").write_text(code)
    (cloud.world / "finish.part").rename(cloud.world / "finish")


def is_running(cloud):
    """Returns whether both workers run the command."""
    return all(len(cloud.python_calls(worker)) == 2 for worker in (0, 1))


@pytest.mark.parametrize("queue", ["yes", "no"])
def test_preempted_run_is_started_again(cloud, watch, tmp_path, queue):
    cloud.python(WAIT_FOR_FINISH.format(world=cloud.world))
    watcher = watch("--spot=yes", f"--queue={queue}")
    python_calls = []
    for _ in range(2):
        wait_for(lambda: cloud.state["node"] == "READY" and is_running(cloud))
        python_calls += [cloud.python_calls(worker)[1] for worker in (0, 1)]
        cloud.preempt()
    wait_for(lambda: "run running" in (tmp_path / "watch.txt").read_text())
    finish(cloud, "0")
    assert watcher.wait() == 0
    assert python_calls == [["-m", "imagen_jax", *TRAIN]] * 4
    kind = "queued-resources" if queue == "yes" else "tpu-vm"
    cycle = [f"{kind} create", *INSTALL, START]
    assert cloud.verbs == [*cycle, f"{kind} delete", *cycle, f"{kind} delete", *cycle]
    log = (tmp_path / "watch.txt").read_text()
    assert log.splitlines()[-1].endswith("TPU READY, run exited 0")
    assert SECRET not in log + str(cloud.calls) + str(python_calls)


def test_usage_error_is_not_retried(cloud, watch):
    cloud.python("exit 2")
    assert watch().wait() == 2
    assert cloud.verbs == ["queued-resources create", *INSTALL, START]


def test_stopped_run_is_not_a_failure(cloud, watch, tmp_path):
    once = f"[[ ! -e {cloud.world}/once$JAX_PROCESS_ID ]] || exit 0; touch {cloud.world}/once$JAX_PROCESS_ID"
    cloud.python(f"{once}; echo '{stop_message('runs/base', 'SIGTERM', 7)}'")
    assert watch("--attempts=0").wait() == 0
    assert cloud.verbs == ["queued-resources create", *[*INSTALL, START] * 2]
    log = (tmp_path / "watch.txt").read_text()
    assert log.splitlines()[-1].endswith("TPU READY, run exited 0")
    assert "TPU READY, run stopped" in log


def test_failed_run_is_retried(cloud, watch, tmp_path):
    cloud.python("exit 1")
    assert watch("--attempts=2").wait() == 1
    assert cloud.verbs == ["queued-resources create", *[*INSTALL, START] * 3]
    assert "failed 3 times" in (tmp_path / "watch.txt").read_text()


def test_failed_install_is_retried(cloud, watch):
    cloud.command(cloud.bin_of_workers, "make", "exit 1")
    assert watch("--attempts=1").wait() == 1
    assert cloud.verbs == ["queued-resources create", *INSTALL * 2]


def test_failure_by_preemption_does_not_count(cloud, watch):
    preempted = '{"queued": "SUSPENDED", "node": null}'
    once = f"[[ ! -e {cloud.world}/once ]] || exit 0; touch {cloud.world}/once; "
    once += f"echo '{preempted}' >{cloud.world}/state.json"
    cloud.command(
        cloud.bin_of_workers, "make", f"mkdir -p .venv/bin; ln -sf {cloud.world}/python .venv/bin; {once}; exit 1"
    )
    assert watch("--attempts=0").wait() == 0
    create, delete = "queued-resources create", "queued-resources delete"
    assert cloud.verbs == [create, *INSTALL, delete, create, *INSTALL, START]


def test_unavailable_cloud_is_polled_again(cloud, watch):
    cloud.python(WAIT_FOR_FINISH.format(world=cloud.world))
    watcher = watch()
    wait_for(lambda: cloud.state["node"] == "READY" and is_running(cloud))
    (cloud.world / "broken").touch()
    num_calls = len(cloud.calls)
    wait_for(lambda: len(cloud.calls) > num_calls + 3)
    (cloud.world / "broken").unlink()
    finish(cloud, "0")
    assert watcher.wait() == 0
    assert cloud.verbs == ["queued-resources create", *INSTALL, START]


def test_watch_finds_running_run(cloud, watch):
    cloud.python(WAIT_FOR_FINISH.format(world=cloud.world))
    first = watch()
    wait_for(lambda: cloud.state["node"] == "READY" and is_running(cloud))
    first.kill()
    first.wait()
    finish(cloud, "0")
    assert watch().wait() == 0
    assert cloud.verbs == ["queued-resources create", *INSTALL, START]


def test_libtpu_lock_matches_jax():
    (requirement,) = (line for line in metadata.requires("jax") if line.startswith("libtpu"))
    version = requirement.partition("==")[2].partition(";")[0].strip().removesuffix("*")
    assert (ROOT / "launch" / "libtpu.lock").read_text().startswith(f"libtpu=={version}")
