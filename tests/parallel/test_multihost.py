"""Tests with a single process; `launch/` has those with several."""

import socket

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.parallel import multihost
from imagen_jax.parallel.axes import TOKENS
from imagen_jax.parallel.batching import batch_sharding
from imagen_jax.parallel.sharding import device_put_global
from tests.helpers.configs import eight_devices


def test_single_process(capfd):
    multihost.initialize(None, None, None)
    assert not jax.distributed.is_initialized()
    assert multihost.is_main_process()
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_all_gather():
    rows = np.arange(48).reshape(16, 3)
    placed = device_put_global(rows, batch_sharding(eight_devices(), TOKENS))
    np.testing.assert_array_equal(multihost.all_gather(placed), rows)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_shutdown_exits_with_code(code):
    with pytest.raises(SystemExit) as exit_info:
        multihost.shutdown(code)
    assert exit_info.value.code == code


@pytest.mark.parametrize(
    "args, match",
    [
        (("host:1", None, None), "--coordinator=host:1, --process_count=None, --process_index=None"),
        ((None, 2, 0), "--coordinator=None, --process_count=2"),
        ((None, None, 0), "--coordinator=None.*--process_index=0"),
        (("host", 2, 0), "--coordinator 'host'"),
        ((":80", 2, 0), "--coordinator ':80'"),
        (("host:http", 2, 0), "--coordinator 'host:http'"),
        (("host:1", 2, 2), "--process_index 2 .*--process_count is 2"),
        (("host:1", 2, -1), "--process_index -1"),
        (("host:1", 0, 0), "--process_index 0"),
    ],
    ids=str,
)
def test_invalid_args_raise_before_connecting(args, match):
    with pytest.raises(ConfigError, match=match) as error:
        multihost.initialize(*args)
    assert "\n" not in str(error.value)
    assert not jax.distributed.is_initialized()


def test_port_in_use_raises():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"process 0 .*{address}"):
            multihost.initialize(address, 2, 0)
    multihost._check_port(address)
    with pytest.raises(ConfigError, match="host:70000"):
        multihost._check_port("host:70000")


@pytest.mark.parametrize(
    "devices, libtpu, platforms, expected",
    [
        (["accel0"], True, "", True),
        (["vfio/0"], True, "", True),
        (["vfio/0"], True, "tpu,cpu", True),
        (["vfio/vfio"], True, "", False),
        ([], True, "", False),
        (["accel0"], False, "", False),
        # the tests themselves, on a TPU
        (["accel0"], True, "cpu", False),
    ],
)
def test_is_tpu_host(tmp_path, monkeypatch, devices, libtpu, platforms, expected):
    for device in devices:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(multihost.util, "find_spec", lambda name: object() if libtpu and name == "libtpu" else None)
    assert multihost._is_tpu_host(tmp_path) is expected
