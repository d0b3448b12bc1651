import ctypes
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.parallel import runtime
from imagen_jax.parallel.mesh import abstract_mesh
from imagen_jax.parallel.runtime import MALLOC_ARENAS, compiler_options, malloc_trim
from tests.helpers.configs import ROOT, one_device


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


def compiled_convolution(options):
    """The text of a compiled convolution that YNNPACK computes by XLA's defaults."""

    def convolution(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 32, 32, 64), (3, 3, 64, 64)))
    return jax.jit(convolution, compiler_options=options).lower(*shapes).compile().as_text()


def test_compiler_options_of_cpus():
    """XLA computes convolutions by itself, where it would leave them to YNNPACK."""
    assert "__ynn_fusion" in compiled_convolution(None)
    assert "__ynn_fusion" not in compiled_convolution(compiler_options(one_device()))


def test_compiler_options_need_devices():
    assert compiler_options(abstract_mesh({"data": 1, "fsdp": 1}, 1)) is None


def test_compiler_options_keep_user_flags(monkeypatch):
    (name,) = compiler_options(one_device())
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=-individual_convolution")
    assert compiler_options(one_device()) is None


def test_unknown_compiler_options_are_left_out(monkeypatch):
    monkeypatch.setattr(runtime, "_CPU_OPTIONS", {"xla_cpu_of_another_version": "1"})
    assert compiler_options(one_device()) is None
