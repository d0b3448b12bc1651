import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.sharding import (
    MIN_SPLIT_SIZE,
    abstract_sharded,
    batch_sharding,
    check_batch,
    check_rules,
    load_parameters,
    make_mesh,
    micro_batches,
    own_rows,
    parameter_spec,
    path_of,
    put_batch,
    put_examples,
    put_whole,
    replicated,
    shard_parameters,
    slice_grid,
)


@pytest.mark.parametrize(
    "axes, sizes",
    [
        ({"data": 2, "fsdp": 4, "spatial": 1}, (2, 4, 1)),
        ({"data": -1, "fsdp": 2, "spatial": 1}, (4, 2, 1)),
        ({"data": -1, "fsdp": 1, "spatial": 4}, (2, 1, 4)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 8, "fsdp": -1}, (8, 1, 1)),
        ({"spatial": 2, "fsdp": 1, "data": 4}, (4, 1, 2)),  # the order of a config's keys means nothing
    ],
)
def test_a_mesh_has_all_devices_and_the_sizes_asked_for(axes, sizes):
    mesh = make_mesh(axes)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "spatial"), sizes, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())


def test_one_device_is_a_mesh_too():
    assert make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("data, fsdp", [(3, 2), (3, -1), (2, 2), (16, 1), (0, -1), (0, 8), (-2, -4), (-2, 4)])
def test_sizes_that_do_not_fit_the_devices_are_refused(data, fsdp):
    with pytest.raises(ConfigError, match=f"data={data}, fsdp={fsdp} does not fit 8 devices"):
        make_mesh({"data": data, "fsdp": fsdp})


def test_rows_that_do_not_fit_the_devices_are_refused():
    with pytest.raises(ConfigError, match="mesh data=2, fsdp=1, spatial=3 does not fit 8 devices"):
        make_mesh({"data": 2, "fsdp": 1, "spatial": 3})


def test_only_one_axis_can_be_what_is_left():
    with pytest.raises(ConfigError, match="more than one -1"):
        make_mesh({"data": -1, "fsdp": -1})


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 1, "model": 8}, {"data": 4, "tensor": 2}, {}])
def test_other_axes_are_refused(axes):
    with pytest.raises(ConfigError, match=f"{', '.join(axes)}: give exactly data, fsdp"):
        make_mesh(axes)


def test_a_batch_that_does_not_divide_is_refused_with_the_numbers():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    check_batch(8, mesh)
    check_batch(96, mesh)
    expected = r"batch_size 100 is not divisible by 8 devices \(mesh data=2, fsdp=4\): give 96 or 104"
    with pytest.raises(ConfigError, match=expected):
        check_batch(100, mesh)
    with pytest.raises(ConfigError, match="give 8$"):
        check_batch(3, mesh)
    with pytest.raises(ConfigError, match="batch_size 0"):
        check_batch(0, mesh)


def test_devices_that_share_images_take_one_part_of_a_batch():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    check_batch(2, mesh)
    expected = r"batch_size 3 is not divisible by 2 groups of 4 devices \(mesh data=2, fsdp=1, spatial=4\): give 2 or 4"
    with pytest.raises(ConfigError, match=expected):
        check_batch(3, mesh)


def test_micro_batches_must_divide_it_too():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    check_batch(64, mesh, accumulation=4)
    expected = r"mesh data=2, fsdp=4\) × 4 micro-batches \(training.grad_accum_steps\): give 64 or 96$"
    with pytest.raises(ConfigError, match=expected):
        check_batch(72, mesh, accumulation=4)


def test_micro_batches_are_all_of_the_batch_and_nothing_travels():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    batch = put_batch({"image": np.arange(48 * 3).reshape(48, 3), "mask": np.arange(48)}, mesh)
    cut = jax.jit(lambda batch: micro_batches(batch, 3, mesh)).lower(batch).compile()
    assert not any(name in cut.as_text() for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    parts = cut(batch)
    assert parts["image"].shape == (3, 16, 3)
    np.testing.assert_array_equal(parts["image"][:, :, 0] // 3, parts["mask"])
    np.testing.assert_array_equal(np.sort(np.ravel(parts["mask"])), np.arange(48))


def slices_of(count, size):
    """What a mesh asks of the devices of several slices, each 2 chips wide, out of order."""
    devices = []
    for i in range(count * size):
        place, within = divmod(i, size)
        fields = {"slice_index": place, "coords": (within % 2, within // 2, 0), "core_on_chip": 0, "id": i}
        devices.append(types.SimpleNamespace(platform="tpu", device_kind="TPU v5", process_index=place, **fields))
    return devices[::-1]


@pytest.mark.parametrize("data, fsdp, spatial", [(2, 4, 1), (4, 2, 1), (8, 1, 1), (2, 2, 2), (2, 1, 4)])
def test_no_parameter_or_image_is_split_between_slices(data, fsdp, spatial):
    grid = slice_grid(data, fsdp, spatial, 2, slices_of(2, 4))
    assert grid.shape == (data, fsdp, spatial)
    assert {device.id for device in grid.flat} == set(range(8))
    slices = np.vectorize(lambda device: device.slice_index)(grid)
    assert (slices == slices[:, :1, :1]).all()


def test_a_mesh_that_would_split_parameters_between_slices_is_refused():
    with pytest.raises(ConfigError, match=r"fsdp=8 would split .* between 2 slices.*data must be a multiple of 2"):
        make_mesh({"data": 1, "fsdp": 8}, slices_of(2, 4))


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


NETWORK = {
    "stem": {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 256), jnp.float32)},
    "down_0": {
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 256, 512), jnp.float32)},
        "dense": {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)},
    },
}
RULES = (("stem", ()), ("conv/kernel$", (None, None, "fsdp")), ("dense", ("data", "fsdp")), ("kernel", ("fsdp",)))


def stack(tree, count):
    """The parameters of layers that are alike."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree)


def specs_of(tree):
    """By path."""
    return {path_of(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class TestRules:
    def test_the_first_that_is_found_counts(self):
        found = specs_of(shard_parameters(NETWORK, make_mesh({"data": 2, "fsdp": 4}), RULES))
        assert found == {
            "stem/kernel": PartitionSpec(),
            "down_0/conv/kernel": PartitionSpec(None, None, "fsdp"),
            "down_0/dense/kernel": PartitionSpec("data", "fsdp"),
        }

    def test_what_none_is_found_for_is_split_as_without_rules(self):
        mesh = make_mesh({"data": 2, "fsdp": 4})
        usual, ruled = (specs_of(shard_parameters(NETWORK, mesh, rules)) for rules in ((), RULES[:1]))
        assert ruled.pop("stem/kernel") != usual.pop("stem/kernel")
        assert ruled == usual

    @pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)], ids=["adam", "adafactor"])
    def test_an_optimizer_state_lies_as_its_parameters_do(self, optimizer):
        mesh = make_mesh({"data": 2, "fsdp": 4})
        state = {"params": NETWORK, "opt_state": jax.eval_shape(optimizer.init, NETWORK)}
        found = specs_of(shard_parameters(state, mesh, RULES, NETWORK))
        kernels = {path: spec for path, spec in found.items() if path.endswith("down_0/conv/kernel")}
        # Adafactor's rows have lost the output channels, its columns the input channels, which alone are split
        expected = {"mu": (None, None, "fsdp"), "nu": (None, None, "fsdp"), "v_row": (None, None, "fsdp")}
        expected |= {"v_col": (None, None, None), "v": (), "params": (None, None, "fsdp")}
        assert len(kernels) > 2
        for path, spec in kernels.items():
            assert spec == PartitionSpec(*expected[path.split("/")[-4]]), path
        # and jax can make it so
        shardings = shard_parameters(state, mesh, RULES, NETWORK)["opt_state"]
        jax.jit(optimizer.init, out_shardings=shardings).lower(NETWORK)

    @pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)], ids=["adam", "adafactor"])
    @pytest.mark.parametrize("rules", [(), RULES], ids=["usual", "ruled"])
    def test_layers_of_a_stack_lie_as_one_alone(self, optimizer, rules):
        """Eight of them, which fsdp divides too."""
        mesh = make_mesh({"data": 2, "fsdp": 4})
        stacked = {"stem": NETWORK["stem"], "down_0_blocks_0_to_7": stack(NETWORK["down_0"], 8)}
        found, alone = (
            specs_of(
                shard_parameters({"params": tree, "opt_state": jax.eval_shape(optimizer.init, tree)}, mesh, rules, tree)
            )
            for tree in (stacked, NETWORK)
        )
        split = 0
        for path, spec in found.items():
            other = alone[path.replace("_blocks_0_to_7", "")]
            stacked_and_split = "_blocks_" in path and any(other)
            assert spec == (PartitionSpec(None, *other) if stacked_and_split else other), path
            split += stacked_and_split
        assert split > 0

    def test_one_that_is_found_nowhere_is_refused(self):
        with pytest.raises(ConfigError, match="'sten' is found in the path of no parameter: they are such as "):
            shard_parameters(NETWORK, make_mesh({"data": 2, "fsdp": 4}), (("sten", ()),))

    @pytest.mark.parametrize("axes", [(None,) * 4 + ("fsdp",), ("fsdp",)])
    def test_one_that_does_not_fit_is_refused_with_the_numbers(self, axes):
        with pytest.raises(ConfigError, match=r"'stem' cannot split stem/kernel of shape \(3, 3, 64, 256\) into \("):
            shard_parameters(NETWORK, make_mesh({"data": 2, "fsdp": 4}), (("stem", axes),))

    @pytest.mark.parametrize(
        "rule, said",
        [
            (("(", ()), "is no regular expression with an axis for each dimension"),
            (("stem",), "is no regular expression with an axis for each dimension"),
            (("stem", None), "is no regular expression with an axis for each dimension"),
            (("stem", ("model",)), "has other axes than data, fsdp, spatial and None, or one of them twice"),
            (("stem", "fsdp"), "has other axes than data, fsdp, spatial and None, or one of them twice"),
            (("stem", ("fsdp", "fsdp")), "has other axes than data, fsdp, spatial and None, or one of them twice"),
        ],
        ids=str,
    )
    def test_what_is_no_rule_is_refused(self, rule, said):
        check_rules(RULES[:3])
        with pytest.raises(ConfigError, match=rf"config.sharding_rules\[1\] .*{said}"):
            check_rules((RULES[0], rule))


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


def test_rows_of_images_are_spread_too():
    mesh = make_mesh({"data": 2, "fsdp": 1, "spatial": 4})
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (6, 8, 5, 3), np.uint8), "tokens": np.arange(6 * 7).reshape(6, 7)}
    for placed in (put_batch(batch, mesh), put_examples(batch, mesh)):
        assert {shard.data.shape for shard in placed["image"].addressable_shards} == {(3, 2, 5, 3)}
        assert {shard.data.shape for shard in placed["tokens"].addressable_shards} == {(3, 7)}
        for name, array in batch.items():
            np.testing.assert_array_equal(placed[name], array)


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 1, "spatial": 4}])
def test_one_process_reads_every_row(axes):
    np.testing.assert_array_equal(own_rows(16, make_mesh(axes)), np.arange(16))


def test_what_is_put_whole_lies_as_if_jax_had_put_it():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    tree = {"kernel": np.arange(256 * 128, dtype=np.float32).reshape(256, 128), "bias": np.arange(8)}
    shardings = shard_parameters(tree, mesh)
    placed, expected = put_whole(tree, shardings), jax.device_put(tree, shardings)
    for name, array in expected.items():
        assert placed[name].sharding == array.sharding
        for shard, other in zip(placed[name].addressable_shards, array.addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, other.data)


def test_replicated_is_whole_everywhere():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    array = jax.device_put(np.arange(5), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(5,)] * 8
