"""How much memory an action takes at its peak."""

from pathlib import Path

import pytest

from imagen_jax.parallel.runtime import malloc_trim


def rise_of_memory(action):
    """Returns the increase of peak memory in bytes; decoders allocate outside of Python's tracing."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        pytest.skip("needs Linux's /proc")

    def kilobytes(name):
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    malloc_trim()  # what other tests freed would be taken again, and nothing rise
    forget.write_text("5")  # the peak is that from now on
    before = kilobytes("VmRSS:")
    action()
    return (kilobytes("VmHWM:") - before) * 1024
