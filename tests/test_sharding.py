import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from imagen_jax.errors import UsageError
from imagen_jax.sharding import (
    MIN_SPLIT_SIZE,
    abstract_sharded,
    batch_sharding,
    check_batch,
    load_parameters,
    make_mesh,
    parameter_spec,
    put_batch,
    replicated,
    shard_parameters,
)


@pytest.mark.parametrize(
    "axes, sizes",
    [
        ({"data": 2, "fsdp": 4}, (2, 4)),
        ({"data": -1, "fsdp": 2}, (4, 2)),
        ({"data": 1, "fsdp": -1}, (1, 8)),
        ({"data": 8, "fsdp": -1}, (8, 1)),
        ({"fsdp": 4, "data": 2}, (2, 4)),  # the order of a config's keys means nothing
    ],
)
def test_a_mesh_has_all_devices_and_the_sizes_asked_for(axes, sizes):
    mesh = make_mesh(axes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp"), sizes, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_one_device_is_a_mesh_too():
    assert make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("data, fsdp", [(3, 2), (3, -1), (2, 2), (16, 1), (0, -1), (0, 8), (-2, -4), (-2, 4)])
def test_sizes_that_do_not_fit_the_devices_are_refused(data, fsdp):
    with pytest.raises(UsageError, match=f"data={data}, fsdp={fsdp} does not fit 8 devices"):
        make_mesh({"data": data, "fsdp": fsdp})


def test_only_one_axis_can_be_what_is_left():
    with pytest.raises(UsageError, match="more than one -1"):
        make_mesh({"data": -1, "fsdp": -1})


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 1, "model": 8}, {"data": 4, "tensor": 2}, {}])
def test_other_axes_are_refused(axes):
    with pytest.raises(UsageError, match=f"{', '.join(axes)}: give exactly data, fsdp"):
        make_mesh(axes)


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    check_batch(8, mesh)
    check_batch(96, mesh)
    expected = r"batch_size 100 is not divisible by 8 devices \(mesh data=2, fsdp=4\): give 96 or 104"
    with pytest.raises(UsageError, match=expected):
        check_batch(100, mesh)
    with pytest.raises(UsageError, match="give 8$"):
        check_batch(3, mesh)
    with pytest.raises(UsageError, match="batch_size 0"):
        check_batch(0, mesh)


@pytest.mark.parametrize("fsdp", [1, 2, 3, 8])
def test_a_parameter_is_split_on_its_largest_axis_that_divides(fsdp):
    rng = np.random.default_rng(fsdp)
    split = 0
    for _ in range(300):
        shape = tuple(int(size) for size in rng.choice([1, 3, 7, 16, 24, 64, 96, 128, 512], rng.integers(0, 5)))
        spec = tuple(parameter_spec(shape, fsdp))
        divisible = [size for size in shape if size % fsdp == 0]
        if math.prod(shape) < MIN_SPLIT_SIZE or not divisible:
            assert spec == ()
            continue
        split += 1
        assert len(spec) == len(shape)
        assert sorted(spec, key=str) == [None] * (len(shape) - 1) + ["fsdp"]
        assert shape[spec.index("fsdp")] == max(divisible)
        assert max(divisible) not in shape[spec.index("fsdp") + 1 :]  # the last of equals
    assert split > 20


def test_a_tree_is_laid_out_leaf_by_leaf():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
        "norm": {"bias": jax.ShapeDtypeStruct((128,), jnp.bfloat16)},
    }
    shardings = shard_parameters(shapes, mesh)
    assert shardings["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    assert shardings["norm"]["bias"].is_fully_replicated
    assert shardings["kernel"].shard_shape((3, 3, 64, 128)) == (3, 3, 64, 32)
    abstract = abstract_sharded(shapes, mesh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert jax.tree.map(lambda leaf: leaf.sharding, abstract) == shardings


def test_parameters_are_read_part_by_part_and_no_part_twice():
    rng = np.random.default_rng(0)
    stored = {("layer", "kernel"): rng.normal(size=(96, 256)), ("bias",): rng.normal(size=256)}
    shapes = {
        "layer": {"kernel": jax.ShapeDtypeStruct((96, 256), np.float16)},
        "bias": jax.ShapeDtypeStruct((256,), np.float32),
    }
    asked = []

    def read(path, index):
        asked.append((path, index))
        return stored[path][index]

    loaded = load_parameters(shapes, read, make_mesh({"data": 2, "fsdp": 4}))
    np.testing.assert_array_equal(loaded["layer"]["kernel"], stored["layer", "kernel"].astype(np.float16))
    np.testing.assert_array_equal(loaded["bias"], stored["bias",].astype(np.float32))
    assert loaded["layer"]["kernel"].sharding.shard_shape((96, 256)) == (96, 64)
    quarters = [slice(start, start + 64) for start in range(0, 256, 64)]
    whole = (("bias",), (slice(0, 256),))
    assert asked == [whole, *((("layer", "kernel"), (slice(0, 96), quarter)) for quarter in quarters)]


def test_a_batch_is_spread_over_all_devices():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = {"image": np.arange(16 * 3, dtype=np.uint8).reshape(16, 3), "mask": np.ones((16, 2), bool)}
    placed = put_batch(batch, mesh)
    for name, array in batch.items():
        assert placed[name].sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
        assert placed[name].dtype == array.dtype
        np.testing.assert_array_equal(placed[name], array)


def test_replicated_is_whole_everywhere():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    array = jax.device_put(np.arange(5), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(5,)] * 8
