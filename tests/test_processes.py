"""What a process does where it is alone, and what it refuses; `launch/` has the tests of several."""

import socket

import jax
import numpy as np
import pytest

from imagen_jax import processes
from imagen_jax.errors import UsageError
from imagen_jax.sharding import batch_sharding, put_whole
from tests.tiny import eight_devices


def test_one_process_is_alone_and_writes(capfd):
    processes.start(None, None, None)
    assert not jax.distributed.is_initialized()
    assert processes.writes()
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_what_is_gathered_is_the_array():
    rows = np.arange(48).reshape(16, 3)
    np.testing.assert_array_equal(processes.gather(put_whole(rows, batch_sharding(eight_devices()))), rows)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_process_ends_with_its_code(code):
    with pytest.raises(SystemExit) as ended:
        processes.end(code)
    assert ended.value.code == code


@pytest.mark.parametrize(
    "place, said",
    [
        (("host:1", None, None), "--coordinator=host:1, --process_count=None, --process_index=None: give all three"),
        ((None, 2, 0), "give all three or none"),
        ((None, None, 0), "give all three or none"),
        (("host", 2, 0), "--coordinator 'host' is not HOST:PORT"),
        ((":80", 2, 0), "is not HOST:PORT"),
        (("host:http", 2, 0), "is not HOST:PORT"),
        (("host:1", 2, 2), "--process_index 2 is not in .0, 2.: --process_count is 2"),
        (("host:1", 2, -1), "--process_index -1 is not in"),
        (("host:1", 0, 0), "--process_index 0 is not in .0, 0."),
    ],
    ids=str,
)
def test_a_place_that_is_none_is_refused_before_anything_is_waited_for(place, said):
    with pytest.raises(UsageError, match=said) as refused:
        processes.start(*place)
    assert "\n" not in str(refused.value)
    assert not jax.distributed.is_initialized()


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"process 0 cannot be reached at {address} .*: give a free port"):
            processes.start(address, 2, 0)
    processes.check_port(address)
    with pytest.raises(UsageError, match="cannot be reached at host:70000"):
        processes.check_port("host:70000")


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
def test_a_tpu_is_its_chips_and_the_library_that_jax_needs(tmp_path, monkeypatch, devices, libtpu, platforms, expected):
    for device in devices:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(processes.util, "find_spec", lambda name: object() if libtpu and name == "libtpu" else None)
    assert processes.is_tpu_host(tmp_path) is expected
