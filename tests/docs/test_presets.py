"""The paper's presets are consistent, and docs/presets.md has their costs."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import presets
from imagen_jax.config.load import load_config
from imagen_jax.datasets.registry import make_source
from imagen_jax.diffusion.guidance import get_threshold_fn
from imagen_jax.diffusion.schedules import get_schedule
from imagen_jax.io.changes import flatten
from imagen_jax.parallel import sharding
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.pipelines.loading import check_chain
from imagen_jax.stages import stage as stages
from imagen_jax.stages.sampling import make_sampler
from imagen_jax.training.optimizers import make_optimizer
from imagen_jax.training.state import abstract_state
from tests.helpers.configs import ROOT, as_written, one_device

CONFIGS = presets.configs()
PAPER = [name for name in CONFIGS if ":" not in name]
VARIANTS = [name for name in CONFIGS if ":" in name]
MILLIONS = {
    "configs/imagen_base_64.py": 2402,
    "configs/imagen_base_64.py:400m": 408,
    "configs/imagen_base_64.py:200m": 206,
    "configs/imagen_sr_256.py": 472,
    "configs/imagen_sr_256.py:small": 123,
    "configs/imagen_sr_1024.py": 467,
    "configs/imagen_sr_1024.py:small": 122,
}
# The keys that a smaller variant may change.
VARIANT_KEYS = {
    "model.channels",
    "model.head_channels",
    "model.scan_blocks",  # the same network, compiled in another way
    "training.batch_size",
    "training.steps",
    "mesh.fsdp",
}


def settings(name):
    return flatten(CONFIGS[name].to_dict())


@functools.cache
def table():
    return presets.format_table()


def test_document_is_current():
    assert table() in (ROOT / "docs" / "presets.md").read_text()


def test_parameter_counts():
    """Read from the printed table, so that each network is traced once."""
    rows = [[cell.strip(" `") for cell in line.split("|")] for line in table().splitlines()[2:]]
    millions = {row[1]: round(float(row[4].removesuffix(" M").replace(",", ""))) for row in rows}
    assert millions == MILLIONS


@pytest.mark.parametrize("name", CONFIGS)
def test_preset_is_valid(name):
    config = CONFIGS[name]
    make_optimizer(config.optimizer, config.training.steps)
    make_sampler(config.sampling, get_schedule(config.diffusion.schedule, config.diffusion.schedule_shift))
    get_threshold_fn(config.sampling.threshold, config.sampling.dynamic_threshold_percentile)
    for split in (config.data.split, config.data.validation_split):
        assert len(make_source(config.data, split, config.image_size)) > 0
    assert make_mesh(config.mesh.axes).size == 8
    assert config.training.batch_size % 256 == 0 or name in VARIANTS
    assert config.optimizer.decay_steps == 0  # the learning rate decays until the end of the run


@pytest.mark.parametrize("name", ["configs/imagen_base_64.py:200m", "configs/imagen_sr_256.py:small"])
def test_fsdp_divides_state_bytes(name):
    """Parameters, EMA and the states of Adafactor and Adam."""
    config = CONFIGS[name]
    network = stages.make_network(config)
    arguments = stages.network_arguments(config, 4096, config.training_hw)

    def init(key):
        return network.init(key, *(jnp.zeros(argument.shape, argument.dtype) for argument in arguments))["params"]

    abstract, _ = abstract_state(init, make_optimizer(config.optimizer, config.training.steps), 0, one_device())
    state_bytes = {}
    for fsdp in (1, 2, 4, 8):
        sharded = sharding.with_shardings(abstract, make_mesh({"data": -1, "fsdp": fsdp}))
        shards = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(sharded)]
        state_bytes[fsdp] = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shards)
        assert state_bytes[fsdp] < 1.05 * state_bytes[1] / fsdp  # small arrays are replicated
    assert state_bytes[1] > 8 * MILLIONS[name] * 1e6


def test_presets_form_a_cascade():
    check_chain([CONFIGS[name] for name in PAPER])
    assert [CONFIGS[name].image_size for name in PAPER] == [64, 256, 1024]


@pytest.mark.parametrize("name", CONFIGS)
def test_preset_has_every_key(name):
    """The keys are those of the configs that tests train; only a U-Net has a middle block."""
    expected = set(flatten(as_written("shapes_base.py").to_dict()))
    missing = {"model.middle_attention_types"} if CONFIGS[name].model.network == "efficient_unet" else set()
    assert set(settings(name)) == expected - missing


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_changes_size_only(name):
    variant, paper = settings(name), settings(name.split(":")[0])
    changed = {key for key in paper if variant[key] != paper[key]}
    assert "model.channels" in changed
    assert changed <= VARIANT_KEYS


@pytest.mark.parametrize("name", PAPER)
def test_unknown_variant_raises(name):
    module = next(preset for preset in presets.PRESETS if preset.__name__.replace(".", "/") + ".py" == name)
    with pytest.raises(ValueError, match="huge") as error_info:
        load_config(f"{name}:huge")
    assert all(f":{variant}" in str(error_info.value) for variant in module.CHANNELS if variant)
