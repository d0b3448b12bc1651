"""Resources of this process: open files, memory that glibc keeps; how XLA compiles, and where it keeps programs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
from pathlib import Path

import jax
from jax.sharding import AbstractMesh, Mesh

from imagen_jax.errors import ConfigError

MALLOC_ARENAS = 4
# YNNPACK for sums alone: it computes convolutions of large images, and small products of a batch, on one core
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
}
COMPILATION_CACHE = "~/.cache/imagen_jax/xla"
# jax's own limit leaves out the programs of a small cascade on a fast machine
_JAX_MIN_COMPILE_SECONDS, _MIN_COMPILE_SECONDS = 1.0, 0.2
_M_ARENA_MAX = -8  # from glibc's malloc.h


def raise_open_file_limit(count: int, purpose: str, alternative: str = "") -> None:
    """Raises this process's limit of open files.

    Args:
        count: number of files.
        purpose: what needs them, for the error message.
        alternative: what else can be done, appended to the error message.

    Raises:
        ConfigError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise ConfigError(
                f"{purpose} needs {count} open files, but the limit of this process is {hard}: run `ulimit -n {count}` "
                f"first{alternative}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def limit_malloc_arenas() -> None:
    """Limits glibc to `MALLOC_ARENAS` malloc arenas, or to $MALLOC_ARENA_MAX.

    By default it makes up to eight per core. Each one grows to the peak memory of its threads, so that a long run would
    grow for hours. Does nothing with other C libraries. Call it before threads start.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, MALLOC_ARENAS)


def malloc_trim() -> None:
    """Returns freed memory that glibc keeps to the system, such as that of copies made for a checkpoint."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str] | None:
    """Returns the options with which XLA's programs for a mesh are fastest, for `jax.jit(compiler_options=…)`.

    None but on CPUs. Options that are set in $XLA_FLAGS, or that this jaxlib does not know, are left out.
    """
    if isinstance(mesh, AbstractMesh) or mesh.devices.flat[0].platform != "cpu":
        return None
    flags = os.environ.get("XLA_FLAGS", "")
    options = {name: value for name, value in _CPU_OPTIONS.items() if f"--{name}=" not in flags}
    return {name: value for name, value in options.items() if _is_known_option(name, value)} or None


@functools.cache
def _is_known_option(name: str, value: str) -> bool:
    """Returns whether XLA's compiler for CPUs accepts an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk for later processes, in $JAX_COMPILATION_CACHE_DIR or COMPILATION_CACHE.

    Those are kept that took XLA over `_MIN_COMPILE_SECONDS`, unless jax is told otherwise, by
    $JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS or by its config.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    if name.upper() not in os.environ and getattr(jax.config, name) == _JAX_MIN_COMPILE_SECONDS:
        jax.config.update(name, _MIN_COMPILE_SECONDS)
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # known at run time only
        # without a writable home, each process compiles again; RuntimeError: there is no home at all
        with contextlib.suppress(OSError, RuntimeError):
            folder = Path(COMPILATION_CACHE).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
