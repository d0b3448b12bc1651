import jax
import numpy as np
import pytest

from imagen_jax.parallel.batching import (
    batch_sharding,
    local_rows,
    micro_batches,
    pad_batch,
    padded_size,
    shard_host_batch,
    shard_local_batch,
)
from imagen_jax.parallel.mesh import make_mesh


def test_micro_batches_need_no_communication():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = shard_local_batch({"image": np.arange(48 * 3).reshape(48, 3), "mask": np.arange(48)}, mesh)
    compiled = jax.jit(lambda batch: micro_batches(batch, 3, mesh)).lower(batch).compile()
    assert not any(
        name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    )
    result = compiled(batch)
    assert result["image"].shape == (3, 16, 3)
    np.testing.assert_array_equal(result["image"][:, :, 0] // 3, result["mask"])
    np.testing.assert_array_equal(np.sort(np.ravel(result["mask"])), np.arange(48))


def test_shard_local_batch():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "mask": np.ones((16, 2), bool)}
    placed = shard_local_batch(batch, mesh)
    for name, array in batch.items():
        assert placed[name].sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
        assert placed[name].dtype == array.dtype
        np.testing.assert_array_equal(placed[name], array)


def test_images_are_sharded_by_rows():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 8, 5, 3), np.uint8), "tokens": np.arange(6 * 7).reshape(6, 7)}
    for placed in (shard_local_batch(batch, mesh), shard_host_batch(batch, mesh)):
        assert {shard.data.shape for shard in placed["image"].addressable_shards} == {(3, 2, 5, 3)}
        assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(3, 7)}
        for name, array in batch.items():
            np.testing.assert_array_equal(placed[name], array)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 1, "spatial": 4}])
def test_local_rows(axes):
    np.testing.assert_array_equal(local_rows(16, make_mesh(axes)), np.arange(16))


@pytest.mark.parametrize("size, multiple, expected", [(0, 4, 0), (1, 4, 4), (4, 4, 4), (5, 4, 8), (7, 1, 7)])
def test_padded_size(size, multiple, expected):
    assert padded_size(size, multiple) == expected


def test_pad_batch():
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3)
    padded = pad_batch(rows, 4, fill=1)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded, [[0, 1, 2], [3, 4, 5], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(pad_batch(rows, 2), rows)
    assert pad_batch(("a", "b"), 4, "") == ["a", "b", "", ""]
    with pytest.raises(ValueError, match="size 1"):
        pad_batch(rows, 1)
