"""The processes of one run: how they find each other, which of them writes, and how they end.

Every process runs the same command on its own devices; together they are one run. A run of one process is the usual
case, and nothing here does anything then.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import sys
from importlib import util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imagen_jax.errors import ConfigError

# A process that does not answer for so long is taken for dead, and the others end: a collective would wait for it for
# ever. Compilation does not hold the answers up.
HEARTBEAT_SECONDS = 30
# How long those that have nothing to write wait at the end for the one that has.
END_SECONDS = 3600
M_ARENA_MAX = -8  # of glibc's malloc.h
MEMORY_POOLS = 4


def initialize(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the run's other processes; without arguments only where the machine itself is one host of a TPU.

    Call it before anything asks jax for devices. Only the process that writes prints from here on.

    Args:
        coordinator: HOST:PORT at which process 0 can be reached by all.
        count: of processes.
        index: which of them this is.

    Raises:
        UsageError: arguments that are not complete, or name no place among the processes; a port that is taken.
    """
    given = (coordinator, count, index)
    if any(value is not None for value in given):
        coordinator, count, index = check_process_args(coordinator, count, index)
        if index == 0:
            check_port(coordinator)
        connect(coordinator, count, index)
    elif is_tpu_host():
        connect()
    if jax.distributed.is_initialized() and not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_process_args(coordinator: str | None, count: int | None, index: int | None) -> tuple[str, int, int]:
    """The arguments of ``start`` if they are complete and fit each other. Raises UsageError otherwise."""
    if coordinator is None or count is None or index is None:
        raise ConfigError(
            f"--coordinator={coordinator}, --process_count={count}, --process_index={index}: give all three or none"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator {coordinator!r} is not HOST:PORT: give for example 10.0.0.1:8476")
    if not 0 <= index < count:
        raise ConfigError(f"--process_index {index} is not in [0, {count}): --process_count is {count}")
    return coordinator, count, index


def check_port(coordinator: str) -> None:
    """Raises UsageError if something listens already at the port where process 0, which this is, will be reached.

    Found out by jaxlib 0.10.2, a port that is taken can end the process by a segmentation fault.
    """
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was left just now is free
        try:
            here.bind(("", int(coordinator.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"process 0 cannot be reached at {coordinator} ({error}): give a free port") from error


def is_tpu_host(devices: Path = Path("/dev")) -> bool:
    """Whether this machine has TPU chips, jax can use them, and was not told to use something else."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms.split(",")) or util.find_spec("libtpu") is None:
        return False
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def connect(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Joins the processes of a run; without arguments, those that the hosts of a TPU say there are.

    Raises:
        UsageError: they do not find each other.
    """
    # what jax would say of proxies and clusters is not for those who watch the run
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            # who says where a process stands means just that, also within SLURM's or MPI's jobs
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"the processes of the run do not find each other at {coordinator or 'the address that the TPU gives'} "
            f"({str(error).splitlines()[0]}): give --coordinator=HOST:PORT, a port of process 0 that all can reach"
        ) from error


def is_main_process() -> bool:
    """Whether this is the process that writes what a run writes once: records, pictures, scores."""
    return jax.process_index() == 0


def gather(array: jax.Array) -> np.ndarray:
    """The whole of an array that lies on the devices of all processes, in its order, on every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def broadcast_from_main(values: np.ndarray) -> np.ndarray:
    """The booleans of the process that writes, on every process; each must give as many."""
    return multihost_utils.broadcast_one_to_all(values.astype(np.int32)) != 0


def barrier(name: str) -> None:
    """Returns when all processes have come to where they wait by this name."""
    multihost_utils.sync_global_devices(name)


def all_gather_strings(text: str) -> list[str]:
    """The texts of all processes, in their order, on every process; all have to call it."""
    if jax.process_count() == 1:
        return [text]
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size)).ravel()
    padded = np.zeros(max(1, *sizes), np.uint8)
    padded[: own.size] = own
    texts = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes().decode() for row, size in zip(texts, sizes, strict=True)]


class AnyProcess:
    """Whether any process says yes, known to all at the same call of each: that is a call late, so that none waits."""

    def __init__(self) -> None:
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("device",))
            self._split = NamedSharding(mesh, PartitionSpec("device"))
            self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._counted: jax.Array | None = None

    def __call__(self, yes: bool) -> bool:
        """This process's vote; all have to call it, as often. Where there is one process, its vote counts at once."""
        if jax.process_count() == 1:
            return yes
        own = np.full(jax.local_device_count(), int(yes), np.int32)
        before, self._counted = self._counted, self._any(jax.make_array_from_process_local_data(self._split, own))
        return before is not None and bool(before)


def allow_open_files(count: int, what: str, instead: str = "") -> None:
    """Lets this process have so many files open, which ``what`` needs.

    Raises:
        UsageError: it may not; ``instead`` is what else can be done.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            raise ConfigError(
                f"{what} needs {count} open files, and this process may have {hard}: run `ulimit -n {count}` "
                f"first{instead}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def limit_malloc_arenas() -> None:
    """Has glibc keep what threads have freed in ``MEMORY_POOLS`` pools, or in as many as $MALLOC_ARENA_MAX says.

    Of itself it makes up to eight for each core. Every one grows to the most that its threads ever held at once, so
    that a long run would grow for hours. Other C libraries have no such pools. Call it before threads start.
    """
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    if choose is not None and "MALLOC_ARENA_MAX" not in os.environ:
        choose(M_ARENA_MAX, MEMORY_POOLS)


def malloc_trim() -> None:
    """Gives the system what this process has freed and glibc keeps, such as copies that were made for a checkpoint."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def shutdown(code: int) -> None:
    """Ends the process; where there are several, after all of them have come so far, or at once if it failed.

    The failed one does not wait: it would keep the others waiting for it, and they are told of its death.
    """
    if jax.distributed.is_initialized():
        if code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        jax.distributed.shutdown()
    sys.exit(code)
