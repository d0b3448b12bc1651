"""Checks, in several processes, that a global batch is the concatenation of the rows that each process has read."""

import os

import jax
import numpy as np

from imagen_jax.parallel import multihost
from imagen_jax.parallel.axes import IMAGE, TOKENS
from imagen_jax.parallel.batching import local_rows, shard_local_batch
from imagen_jax.parallel.mesh import make_mesh

# (data, fsdp, spatial) of 8 devices: how many of 4 examples each of two processes reads
EXAMPLES_READ = {(4, 1, 2): 2, (1, 2, 4): 2, (2, 2, 2): 2, (1, 1, 8): 4}


def main():
    count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
    multihost.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, index)
    batch = {"image": np.arange(4 * 16 * 3).reshape(4, 16, 1, 3), "tokens": np.arange(4 * 5).reshape(4, 5)}
    axes = {"image": IMAGE, "tokens": TOKENS}
    for (data, fsdp, spatial), examples in EXAMPLES_READ.items():
        mesh = make_mesh({"data": data, "fsdp": fsdp, "spatial": spatial})
        rows = local_rows(4, mesh)
        assert len(rows) == examples, rows
        placed = shard_local_batch({name: array[rows] for name, array in batch.items()}, axes, mesh)
        for name, array in batch.items():
            assert placed[name].shape == array.shape
            for shard in placed[name].addressable_shards:
                np.testing.assert_array_equal(shard.data, array[shard.index])
        height = {shard.data.shape[1] for shard in placed["image"].addressable_shards}
        assert height == {16 // spatial}, height
    assert jax.process_count() == count == 2
    multihost.shutdown(0)


if __name__ == "__main__":
    main()
