"""What a process does where it is alone, and what it refuses; `launch/` has the tests of several."""

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.parallel import multihost
from imagen_jax.parallel.sharding import batch_sharding, put_whole
from tests.helpers.configs import ROOT, eight_devices


def test_one_process_is_alone_and_writes(capfd):
    multihost.initialize(None, None, None)
    assert not jax.distributed.is_initialized()
    assert multihost.is_main_process()
    print("heard")
    assert capfd.readouterr().out == "heard\n"


def test_what_is_gathered_is_the_array():
    rows = np.arange(48).reshape(16, 3)
    np.testing.assert_array_equal(multihost.gather(put_whole(rows, batch_sharding(eight_devices()))), rows)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_process_ends_with_its_code(code):
    with pytest.raises(SystemExit) as ended:
        multihost.shutdown(code)
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
    with pytest.raises(ConfigError, match=said) as refused:
        multihost.initialize(*place)
    assert "\n" not in str(refused.value)
    assert not jax.distributed.is_initialized()


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"process 0 cannot be reached at {address} .*: give a free port"):
            multihost.initialize(address, 2, 0)
    multihost.check_port(address)
    with pytest.raises(ConfigError, match="cannot be reached at host:70000"):
        multihost.check_port("host:70000")


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
    monkeypatch.setattr(multihost.util, "find_spec", lambda name: object() if libtpu and name == "libtpu" else None)
    assert multihost.is_tpu_host(tmp_path) is expected


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is resident in this way")
def test_what_was_freed_is_given_back():
    """Pieces too small to be given back by themselves, between others that stay."""
    pieces = [bytes(60_000) for _ in range(4000)]
    kept = pieces[::40]
    most = resident_bytes()
    del pieces
    assert most - resident_bytes() < 0.1 * 4000 * 60_000
    multihost.malloc_trim()
    assert most - resident_bytes() > 0.6 * 4000 * 60_000
    assert len(kept) == 100


THREADS = """
import ctypes, threading
from imagen_jax import processes

processes.few_memory_pools()
together = threading.Barrier(32)

def work():
    together.wait()
    held = [bytes(2000) for _ in range(1000)]
    together.wait()

threads = [threading.Thread(target=work) for _ in range(32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()  # to stderr, glibc's pools are "arenas"
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="not glibc")
@pytest.mark.parametrize("wanted", [None, 2])
def test_many_threads_use_few_pools_of_memory(wanted):
    variables = {} if wanted is None else {"MALLOC_ARENA_MAX": str(wanted)}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr.count("Arena ") == (wanted or multihost.MEMORY_POOLS), done.stderr
