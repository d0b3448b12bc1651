"""Multi-host runs: how processes connect, communicate and shut down.

Every process runs the same command on its own devices; together they are one run. In a run of one process, the usual
case, these functions return at once.
"""

from __future__ import annotations

import logging
import os
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

# A process without a heartbeat for this long is considered dead, and the others exit instead of waiting for it in a
# collective. Compilation does not block heartbeats.
HEARTBEAT_SECONDS = 30
# How long processes wait at shutdown for the main process, which may still be writing.
_SHUTDOWN_TIMEOUT_SECONDS = 3600


def initialize(coordinator: str | None, process_count: int | None, process_index: int | None) -> None:
    """Connects to the other processes of the run; without arguments, only on a TPU host.

    Call it before anything asks JAX for devices. Afterwards, stdout of all but the main process is discarded.

    Args:
        coordinator: HOST:PORT at which all processes can reach process 0.
        process_count: number of processes.
        process_index: index of this process.

    Raises:
        ConfigError: arguments are missing or out of range, the port is in use, or the processes cannot connect.
    """
    if any(value is not None for value in (coordinator, process_count, process_index)):
        coordinator, process_count, process_index = _check_process_args(coordinator, process_count, process_index)
        if process_index == 0:
            _check_port(coordinator)
        _connect(coordinator, process_count, process_index)
    elif _is_tpu_host():
        _connect()
    if jax.distributed.is_initialized() and not is_main_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_process_args(
    coordinator: str | None, process_count: int | None, process_index: int | None
) -> tuple[str, int, int]:
    """Returns the arguments of `initialize` if they are complete and consistent. Raises ConfigError otherwise."""
    if coordinator is None or process_count is None or process_index is None:
        raise ConfigError(
            f"--coordinator={coordinator}, --process_count={process_count}, --process_index={process_index}: "
            "give all three or none"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--coordinator {coordinator!r} is not HOST:PORT: give for example 10.0.0.1:8476")
    if not 0 <= process_index < process_count:
        raise ConfigError(
            f"--process_index {process_index} is not in [0, {process_count}): --process_count is {process_count}"
        )
    return coordinator, process_count, process_index


def _check_port(coordinator: str) -> None:
    """Raises ConfigError if the port of process 0, which is this process, is in use.

    In jaxlib 0.10.2 a port in use can end the process with a segmentation fault.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just released is free
        try:
            listener.bind(("", int(coordinator.rpartition(":")[2])))
        except (OSError, OverflowError) as error:
            raise ConfigError(f"process 0 cannot listen at {coordinator} ({error}): give a free port") from error


def _is_tpu_host(devices: Path = Path("/dev")) -> bool:
    """Returns whether this machine has TPU chips that JAX can use and $JAX_PLATFORMS does not exclude."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms.split(",")) or util.find_spec("libtpu") is None:
        return False
    return any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))


def _connect(
    coordinator: str | None = None, process_count: int | None = None, process_index: int | None = None
) -> None:
    """Connects to the processes of a run; without arguments, to those of the TPU's hosts.

    Raises:
        ConfigError: they cannot connect.
    """
    # hides JAX's warnings about proxies and cluster detection
    logging.getLogger("jax._src.distributed").setLevel(logging.ERROR)
    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_index,
            # explicit arguments take precedence over SLURM and MPI
            cluster_detection_method=None if coordinator is None else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"the processes of the run cannot connect at {coordinator or 'the address of the TPU'} "
            f"({str(error).splitlines()[0]}): give --coordinator=HOST:PORT, a port of process 0 that all can reach"
        ) from error


def is_main_process() -> bool:
    """Returns whether this process is the one that writes metrics, images and scores."""
    return jax.process_index() == 0


def all_gather(array: jax.Array | np.ndarray) -> np.ndarray:
    """Returns the full array, sharded over the devices of all processes, on every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def broadcast_from_main(values: np.ndarray) -> np.ndarray:
    """Returns the main process's booleans on every process; shapes must be equal."""
    return multihost_utils.broadcast_one_to_all(values.astype(np.int32)) != 0


def barrier(name: str) -> None:
    """Waits until all processes reach the barrier with this name."""
    multihost_utils.sync_global_devices(name)


def all_gather_strings(text: str) -> list[str]:
    """Returns the texts of all processes, in order, on every process; all have to call it."""
    return [data.decode() for data in all_gather_bytes(text.encode())]


def all_gather_bytes(data: bytes) -> list[bytes]:
    """Returns the bytes of all processes, in order, on every process; all have to call it."""
    if jax.process_count() == 1:
        return [data]
    own = np.frombuffer(data, np.uint8)
    sizes = multihost_utils.process_allgather(np.array(own.size)).ravel()
    padded = np.zeros(max(1, *sizes), np.uint8)
    padded[: own.size] = own
    gathered = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(gathered, sizes, strict=True)]


class AnyProcess:
    """Logical OR over processes, one call late to stay asynchronous."""

    # jax's reached_preemption_sync_point reacts only to a SIGTERM trapped in C++, and not to SIGINT

    def __init__(self) -> None:
        if jax.process_count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("device",))
            self._sharding = NamedSharding(mesh, PartitionSpec("device"))
            self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._pending: jax.Array | None = None

    def __call__(self, value: bool) -> bool:
        """Returns whether any process passed True in the previous call; all have to call it equally often.

        With one process, returns its argument at once.
        """
        if jax.process_count() == 1:
            return value
        own = np.full(jax.local_device_count(), int(value), np.int32)
        previous, self._pending = self._pending, self._any(jax.make_array_from_process_local_data(self._sharding, own))
        return previous is not None and bool(previous)


def shutdown(code: int) -> None:
    """Ends the process with an exit code; in a run of several, after all of them have called it.

    A process that failed does not wait for the others, which detect its exit.
    """
    if jax.distributed.is_initialized():
        if code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        jax.distributed.shutdown()
    sys.exit(code)
