"""One sentence where JAX cannot use a device, or does not use one that is there."""

import os
import subprocess
import sys

import jax
import pytest

from imagen_jax.parallel import devices
from imagen_jax.parallel.devices import backend_error, describe_devices, unused_accelerator
from tests.helpers.configs import ROOT

UNKNOWN = "Unable to initialize backend '{}': Backend '{}' is not in the list of known backends: ['cpu', 'tpu']. {}"
ADVICE = "(set JAX_PLATFORMS='' to automatically choose an available backend)"


@pytest.fixture
def platforms(monkeypatch):
    """Sets $JAX_PLATFORMS as JAX sees it."""
    before = jax.config.jax_platforms
    yield lambda names: jax.config.update("jax_platforms", names)
    jax.config.update("jax_platforms", before)


def machine(root, *names, vendor="0x1ae0"):
    """A file system that shows devices of these names."""
    for name in names:
        (root / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "dev" / name).touch()
    pci = root / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True, exist_ok=True)
    (pci / "vendor").write_text(f"{vendor}\n")
    return root


def test_devices_have_kind_and_number():
    assert describe_devices() == f"{jax.device_count()} × cpu in 1 process(es)"
    assert describe_devices(jax.devices()[:3]) == "3 × cpu in 1 process(es)"


@pytest.mark.parametrize(
    "given, platform, expected",
    [
        ("gpu", "rocm", "imagen_jax[gpu]"),
        ("cuda", "cuda", "imagen_jax[gpu]"),
        ("tpu", "tpu", "imagen_jax[tpu]"),
        ("rocm", "rocm", "rocm"),
        ("cudda", "cudda", "'cuda'"),
        ("CPU", "CPU", "'cpu'"),
        ("tpu,cpu", "tpu", "imagen_jax[tpu]"),
    ],
)
def test_absent_platform(platforms, tmp_path, given, platform, expected):
    platforms(given)
    error = backend_error(RuntimeError(UNKNOWN.format(platform, platform, ADVICE)), tmp_path)
    assert expected in str(error) and f"JAX_PLATFORMS={given}" in str(error) and "\n" not in str(error)
    assert ADVICE not in str(error)


@pytest.mark.parametrize(
    "platform, reason",
    [
        ("tpu", "ABORTED: The TPU is already in use by process with pid 4711. Not attempting to load libtpu.so"),
        ("cuda", "INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    ],
)
def test_device_that_fails(platforms, platform, reason):
    platforms("")
    error = backend_error(RuntimeError(f"Unable to initialize backend '{platform}': {reason} {ADVICE}\n more"))
    assert reason in str(error) and "JAX_PLATFORMS=cpu" in str(error) and "\n" not in str(error)


def test_other_errors_are_not_explained():
    assert backend_error(RuntimeError("out of memory")) is None
    assert backend_error(AssertionError()) is None
    assert backend_error(ValueError(UNKNOWN.format("tpu", "tpu", ADVICE))) is None


def test_unused_accelerator(platforms, tmp_path, monkeypatch):
    gpu, tpu, pods = (tmp_path / name for name in ("gpu", "tpu", "pods"))
    machine(gpu, "nvidiactl", "nvidia0", vendor="0x10de")
    machine(tpu, "accel0")
    machine(pods, "vfio/0", "vfio/vfio")
    platforms("cpu")
    assert unused_accelerator(gpu) == ""
    platforms(None)
    assert "imagen_jax[gpu]" in unused_accelerator(gpu)
    assert "imagen_jax[tpu]" in unused_accelerator(tpu) and "imagen_jax[tpu]" in unused_accelerator(pods)
    monkeypatch.setattr(devices, "_backend_errors", lambda: {"tpu": "in use by process with pid 4711.\nmore"})
    assert "(in use by process with pid 4711)" in unused_accelerator(tpu)


def test_no_accelerator(platforms, tmp_path):
    platforms(None)
    assert unused_accelerator(machine(tmp_path / "none", "null")) == ""
    # a neural processor of another vendor; a graphics card that is given to a virtual machine
    assert unused_accelerator(machine(tmp_path / "other", "accel/accel0", "accel0", "vfio/3", vendor="0x8086")) == ""


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.skipif(os.path.exists("/dev/nvidia0") or os.path.exists("/dev/accel0"), reason="has the device")
def test_command_without_the_device(platform, tmp_path):
    command = ["train", "--config=tests/faults/tiny.py", f"--workdir={tmp_path / 'run'}"]
    variables = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run(
        [sys.executable, "-m", "imagen_jax", *command], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and f"JAX_PLATFORMS={platform}" in done.stderr
    assert not (tmp_path / "run").exists()
