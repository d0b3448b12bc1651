"""The environment of every test, and of every command that a test starts. Set before jax is imported."""

import os
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "jax"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# Eight simulated devices on two cores can wait for each other for ever; a thread pool of this size prevents it.
os.environ["NPROC"] = "16"
# No test asks the network for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

# A second run of the tests compiles nothing again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
