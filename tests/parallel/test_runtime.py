import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagen_jax.parallel.runtime import MALLOC_ARENAS, malloc_trim
from tests.helpers.configs import ROOT


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_malloc_trim():
    """Frees blocks that are too small to be returned on their own, between others that stay allocated."""
    blocks = [bytes(60_000) for _ in range(4000)]
    kept = blocks[::40]
    peak = resident_bytes()
    del blocks
    assert peak - resident_bytes() < 0.1 * 4000 * 60_000
    malloc_trim()
    assert peak - resident_bytes() > 0.6 * 4000 * 60_000
    assert len(kept) == 100


THREADS = """
import ctypes, threading
from imagen_jax.parallel.runtime import limit_malloc_arenas

limit_malloc_arenas()
barrier = threading.Barrier(32)

def work():
    barrier.wait()
    allocated = [bytes(2000) for _ in range(1000)]
    barrier.wait()

threads = [threading.Thread(target=work) for _ in range(32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()  # to stderr
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="not glibc")
@pytest.mark.parametrize("limit", [None, 2])
def test_limit_malloc_arenas(limit):
    variables = {} if limit is None else {"MALLOC_ARENA_MAX": str(limit)}
    result = subprocess.run(
        [sys.executable, "-c", THREADS], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True
    )
    assert result.stderr.count("Arena ") == (limit or MALLOC_ARENAS), result.stderr
