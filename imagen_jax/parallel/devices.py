"""The devices that JAX has found: their kind and number for logs, and a sentence where it cannot use them."""

from __future__ import annotations

import collections
import contextlib
import difflib
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from imagen_jax.errors import ConfigError, first_line

# names in $JAX_PLATFORMS -> the extra of this package that installs them
_EXTRAS = {"cpu": "", "gpu": "gpu", "cuda": "gpu", "rocm": "", "tpu": "tpu"}
_GOOGLE = "0x1ae0"  # vendor of TPUs on the PCI bus
_FAILED = re.compile(r"Unable to initialize backend '(\w*)': ([^\n]*)")
_JAX_ADVICE = re.compile(r" \((set JAX_PLATFORMS|you may need).*$")
# how JAX, CUDA's plugin and libtpu say that a kind of device is not supported, or not there
_ABSENT = ("not in the list of known backends", "Failed to open libtpu", "no supported devices", "No visible")

logger = logging.getLogger(__name__)


def describe_devices(devices: Iterable[jax.Device] | None = None) -> str:
    """Returns the number and kind of devices, such as `8 × TPU v4 in 2 process(es)`; by default of all devices."""
    kinds = collections.Counter(device.device_kind for device in (jax.devices() if devices is None else devices))
    return f"{', '.join(f'{n} × {kind}' for kind, n in kinds.items())} in {jax.process_count()} process(es)"


def log_devices(activity: str) -> None:
    """Logs, in the main process, which devices are used, and a warning if others are not."""
    if jax.process_index() == 0:
        logger.info("%s on %s", activity, describe_devices())
    if warning := unused_accelerator():
        logger.warning(warning)


def unused_accelerator(root: Path = Path("/")) -> str:
    """Returns a sentence about a GPU or TPU of this machine that JAX does not use; "" if there is none.

    Nor is there one to speak of if $JAX_PLATFORMS names the platforms to use.

    Args:
        root: the folder that has the system's `dev` and `sys`.
    """
    if jax.config.jax_platforms or jax.default_backend() != "cpu":  # type: ignore[attr-defined]
        return ""
    for name, extra, platform in (("NVIDIA GPU", "gpu", "cuda"), ("TPU", "tpu", "tpu")):
        if _has_device(extra, root):
            reason = _backend_errors().get(platform, "")
            because = f" ({first_line(reason)})" if reason else ""
            return (
                f"this machine has a {name}, but JAX uses the CPU alone{because}: "
                f"pip install 'imagen_jax[{extra}]', or set JAX_PLATFORMS=cpu if that is intended"
            )
    return ""


def backend_error(error: Exception, root: Path = Path("/")) -> ConfigError | None:
    """Returns the sentence for an error of JAX at its first use of devices; None for any other error.

    Args:
        error: what was raised.
        root: the folder that has the system's `dev` and `sys`.
    """
    failure = _backend_failure(error)
    if failure is None:
        return None
    given = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    setting = f"JAX_PLATFORMS={given}" if given else f"the platform {failure.platform}"
    names = [name for name in given.split(",") if name]
    unknown = [name for name in names if name not in _EXTRAS]
    if not any(text in failure.reason for text in _ABSENT):
        return ConfigError(
            f"JAX cannot use {failure.platform}: {first_line(failure.reason)}; end the process that uses it, mend its "
            "driver, or set JAX_PLATFORMS=cpu"
        )
    if unknown:
        nearest = difflib.get_close_matches(unknown[0].lower(), _EXTRAS, n=1, cutoff=0.0)[0]
        return ConfigError(
            f"{setting} is not a platform that JAX has here: choose one of {', '.join(_EXTRAS)} (did you mean "
            f"{nearest!r}?)"
        )
    wanted = next((name for name in names if name != "cpu"), failure.platform)
    extra = _EXTRAS.get(wanted, "")
    where = "JAX cannot use that of this machine" if extra and _has_device(extra, root) else "JAX finds none"
    advice = f"pip install 'imagen_jax[{extra}]'" if extra else f"install JAX for {wanted}"
    return ConfigError(f"{setting} asks for a {wanted} device, and {where}: {advice}, or set JAX_PLATFORMS=cpu")


class _Failure(NamedTuple):
    """The platform that could not be initialized, and why."""

    platform: str
    reason: str


def _backend_failure(error: Exception) -> _Failure | None:
    """Returns what JAX could not initialize; None if that is not what the error is about."""
    if isinstance(error, AssertionError):
        # JAX's own, if $JAX_PLATFORMS is "cuda" and there is no GPU
        with contextlib.suppress(AssertionError, RuntimeError):
            jax.devices()
            return None
        return _Failure("cuda", "No visible GPU")
    match = _FAILED.search(str(error)) if isinstance(error, RuntimeError) else None
    return _Failure(match[1], _JAX_ADVICE.sub("", match[2])) if match else None


def _backend_errors() -> dict[str, str]:
    """Returns why JAX went on without a platform that it tried, by platform; {} if this JAX does not tell."""
    return getattr(jax._src.xla_bridge, "_backend_errors", {})


def _has_device(extra: str, root: Path) -> bool:
    """Returns whether the system shows a device for which the package has an extra."""
    if extra == "gpu":
        return any((root / "dev").glob("nvidia[0-9]*"))
    # files of these names belong to other devices too, such as neural processors and those given to virtual machines
    shown = any((root / "dev").glob("accel[0-9]*")) or any((root / "dev/vfio").glob("[0-9]*"))
    vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
    return shown and any(file.read_text().strip() == _GOOGLE for file in vendors)
