import math

import jax
import numpy as np
import pytest

from imagen_jax.parallel.axes import IMAGE, TOKENS, VECTOR
from imagen_jax.parallel.batching import (
    batch_sharding,
    batch_shardings,
    constrain_batch,
    local_rows,
    micro_batches,
    pad_batch,
    padded_size,
    shard_host_batch,
    shard_local_batch,
)
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.stages.loss import DIFFUSION_BATCH_AXES, DiffusionBatch
from tests.helpers.configs import eight_devices

AXES = {
    "image": IMAGE,
    "video": "batch time rows columns channels",
    "tokens": TOKENS,
    "latents": f"{TOKENS} ...",
    "frames": "batch time tokens channels",
    "vector": VECTOR,
}


def test_micro_batches_need_no_communication():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = {"vector": np.arange(48), "image": np.arange(48 * 12).reshape(48, 2, 2, 3)}
    placed = shard_local_batch(batch, AXES, mesh)
    compiled = jax.jit(lambda batch: micro_batches(batch, AXES, 3, mesh)).lower(placed).compile()
    assert not any(
        name in compiled.as_text() for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce")
    )
    result = compiled(placed)
    assert result["image"].shape == (3, 16, 2, 2, 3)
    np.testing.assert_array_equal(result["image"][:, :, 0, 0, 0] // 12, result["vector"])
    np.testing.assert_array_equal(np.sort(np.ravel(result["vector"])), np.arange(48))


def test_micro_batches_keep_rows_sharded():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    videos = shard_local_batch({"video": np.zeros((6, 3, 8, 5, 3))}, AXES, mesh)
    result = jax.jit(lambda batch: micro_batches(batch, AXES, 3, mesh))(videos)["video"]
    assert result.sharding.shard_shape(result.shape) == (3, 1, 3, 2, 5, 3)


def test_shard_local_batch():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 1, 1, 3), "tokens": np.ones((16, 2), bool)}
    placed = shard_local_batch(batch, AXES, mesh)
    for name, array in batch.items():
        assert placed[name].sharding.is_equivalent_to(batch_sharding(mesh, AXES[name]), array.ndim)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
        assert placed[name].dtype == array.dtype
        np.testing.assert_array_equal(placed[name], array)


# of arrays with four axes only the images are sharded by rows
SHAPES = {
    "image": ((6, 8, 5, 3), (3, 2, 5, 3)),
    "video": ((6, 4, 8, 5, 3), (3, 4, 2, 5, 3)),
    "tokens": ((6, 8), (3, 8)),
    "latents": ((6, 8, 4, 4), (3, 8, 4, 4)),
    "frames": ((6, 4, 8, 5), (3, 4, 8, 5)),
    "vector": ((6,), (3,)),
}


def test_arrays_are_sharded_by_axis_names():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    batch = {name: np.arange(math.prod(shape)).reshape(shape) for name, (shape, _) in SHAPES.items()}
    constrained = jax.jit(lambda batch: constrain_batch(batch, AXES, mesh))(batch)
    for placed in (shard_local_batch(batch, AXES, mesh), shard_host_batch(batch, AXES, mesh), constrained):
        for name, array in batch.items():
            assert {shard.data.shape for shard in placed[name].addressable_shards} == {SHAPES[name][1]}, name
            np.testing.assert_array_equal(placed[name], array)


def test_shardings_of_nested_batch():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    batch = DiffusionBatch(
        x=np.zeros((4, 8, 8, 3)),
        text=(np.zeros((4, 8, 6)), np.ones((4, 8), bool)),
        condition={},
        t=np.zeros(4),
        eps=np.zeros((4, 8, 8, 3)),
    )
    rows, examples = batch_sharding(mesh, IMAGE), batch_sharding(mesh, "batch")
    shardings = batch_shardings(batch, DIFFUSION_BATCH_AXES, mesh)
    assert shardings == batch._replace(x=rows, text=(examples, examples), t=examples, eps=rows)


@pytest.mark.parametrize(
    "name, shape", [("image", (2, 3, 8, 8, 3)), ("latents", (2,)), ("vector", (2, 1)), ("audio", (2,))]
)
def test_wrong_axes(name, shape):
    with pytest.raises(ValueError, match="axes"):
        batch_shardings({name: np.zeros(shape)}, AXES, eight_devices())


@pytest.mark.parametrize("axes", ["batch row", "batch rows rows", "batch ... rows"])
def test_unknown_axes(axes):
    with pytest.raises(ValueError, match="axes"):
        batch_sharding(eight_devices(), axes)


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
