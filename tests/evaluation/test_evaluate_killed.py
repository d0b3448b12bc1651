"""`imagen evaluate` in processes: killed by SIGKILL and started again, or in two processes, it has the same figures."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from imagen_jax.evaluation.progress import RECORDS
from imagen_jax.evaluation.sample_metrics import STATES
from tests.conftest import CACHE, xla_flags
from tests.goldens.encoders import cases
from tests.helpers.configs import ROOT
from tests.launch.test_several_processes import run_in_two_processes

pytest_plugins = ("tests.helpers.fixtures",)
pytestmark = pytest.mark.slow
COUNT, BATCH, TIMEOUT = 24, 4, 300
ENVIRONMENT = os.environ | {"XLA_FLAGS": xla_flags(devices=1), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}


@pytest.fixture(scope="module")
def command(base_folder, tmp_path_factory):
    weights = cases.write_weights(tmp_path_factory.mktemp("weights"), cases.LITE0)
    return [
        *("evaluate", f"--stages={base_folder}", f"--config={ROOT}/configs/shapes_eval.py", f"--lite0={weights}"),
        *("--metrics=fd_lite0,kid_lite0", f"--config.num_samples={COUNT}", f"--config.batch_size={BATCH}"),
    ]


def start(command, out):
    return subprocess.Popen(
        [sys.executable, "-m", "imagen_jax", *command, f"--out={out}"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(command, out):
    process = start(command, out)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    return run(command, tmp_path_factory.mktemp("unbroken") / "out")


def assert_same(scores, expected, rel):
    metrics = scores.pop("metrics")
    assert metrics.keys() == expected["metrics"].keys() == {"fd_lite0", "kid_lite0"}
    for name, row in metrics.items():
        assert row["value"] == pytest.approx(expected["metrics"][name]["value"], rel=rel)
        assert row["reference"] == expected["metrics"][name]["reference"]
    assert scores == {name: row for name, row in expected.items() if name != "metrics"}


def test_sigkill_changes_nothing(command, unbroken, tmp_path):
    out = tmp_path / "out"
    process = start(command, out)
    deadline = time.monotonic() + TIMEOUT
    records = out / RECORDS
    while not ((out / STATES).exists() and records.exists() and records.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "scores.json").exists()
    done = records.read_bytes().count(b"\n")
    assert 3 <= done < COUNT // BATCH
    scores = run(command, out)
    assert scores["metrics"]["fd_lite0"]["images"] == unbroken["metrics"]["fd_lite0"]["images"]
    assert_same(scores, unbroken, rel=1e-9)


def test_two_processes_agree_with_one(command, unbroken, tmp_path):
    run_in_two_processes("imagen_jax", *command, f"--out={tmp_path / 'out'}")
    # float32 of other sizes of batches; a pixel may be rounded the other way
    assert_same(json.loads((tmp_path / "out" / "scores.json").read_text()), unbroken, rel=1e-3)
