"""Checks, in several processes, that each reads only its slices of a published stage, and that all name its damage."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from imagen_jax.errors import ConfigError
from imagen_jax.io.tensor_files import TensorFiles
from imagen_jax.parallel import multihost
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.stages.published import PublishedWeights


class CountingFiles(TensorFiles):
    """Tensors that count what is read of each."""

    def __init__(self, paths):
        super().__init__(paths)
        self.values_read = dict.fromkeys(self.shapes, 0)

    def read(self, name, index):
        part = super().read(name, index)
        self.values_read[name] += part.size
        return part


def check_slices(stage):
    """Asserts that a process reads, of each parameter, once what its devices hold."""
    weights = PublishedWeights(stage)
    weights._files = files = CountingFiles([stage / "model.safetensors"])
    params = weights.load(with_shardings(weights.shapes, make_mesh({"data": 1, "fsdp": 8})))
    stored = load_file(stage / "model.safetensors")
    halves = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = ".".join(entry.key for entry in path)
        parts = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
        assert files.values_read[name] == sum(parts.values()), name
        halves += files.values_read[name] == leaf.size // 2
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, stored[name][shard.index])
    assert halves > 4, halves


def check_damage(stage):
    """Asserts that a file which one of the processes verifies is named by all."""
    try:
        PublishedWeights(stage)
    except ConfigError as error:
        assert f"{stage.name}/model.safetensors" in str(error), error
    else:
        raise AssertionError(f"{stage} is damaged, and was read")


def main():
    count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    multihost.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
    whole, damaged = map(Path, sys.argv[1:])
    check_slices(whole / "stage_0")
    check_damage(damaged / "stage_0")
    assert jax.process_count() == count == 2
    multihost.shutdown(0)


if __name__ == "__main__":
    main()
