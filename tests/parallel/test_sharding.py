import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from imagen_jax.errors import ConfigError
from imagen_jax.parallel.mesh import make_mesh
from imagen_jax.parallel.sharding import (
    MIN_SHARD_SIZE,
    _fsdp_spec,
    check_sharding_rules,
    device_put_global,
    key_path,
    load_params,
    param_shardings,
    replicate_conv_kernels,
    replicated,
    with_shardings,
)


@pytest.mark.parametrize("fsdp", [1, 2, 3, 8])
def test_fsdp_spec(fsdp):
    rng = np.random.default_rng(fsdp)
    num_sharded = 0
    for _ in range(300):
        shape = tuple(int(size) for size in rng.choice([1, 3, 7, 16, 24, 64, 96, 128, 512], rng.integers(0, 5)))
        spec = tuple(_fsdp_spec(shape, fsdp))
        divisible = [size for size in shape if size % fsdp == 0]
        if math.prod(shape) < MIN_SHARD_SIZE or not divisible:
            assert spec == ()
            continue
        num_sharded += 1
        assert len(spec) == len(shape)
        assert sorted(spec, key=str) == [None] * (len(shape) - 1) + ["fsdp"]
        assert shape[spec.index("fsdp")] == max(divisible)
        assert max(divisible) not in shape[spec.index("fsdp") + 1 :]  # the last one of equals
    assert num_sharded > 20


def test_only_convolution_kernels_are_replicated():
    mesh = make_mesh({"data": 1, "fsdp": 2, "spatial": 4})
    shapes = {
        "conv": {"kernel": (3, 3, 64, 128), "bias": (128,)},
        "time_conv": {"kernel": (3, 64, 128)},
        "blocks_0_to_1": {"conv": {"kernel": (2, 3, 3, 64, 64)}, "dense": {"kernel": (2, 128, 256)}},
        "waves": (4, 4, 64, 64),
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    params = jax.device_put(params, param_shardings(params, mesh))
    program = jax.jit(lambda params: replicate_conv_kernels(params, mesh))
    leaves = jax.tree_util.tree_leaves_with_path(program(params))
    sharded = {key_path(path) for path, leaf in leaves if not leaf.sharding.is_fully_replicated}
    assert sharded == {"blocks_0_to_1/dense/kernel", "waves"}


def test_param_shardings():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    shapes = {
        "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
        "norm": {"bias": jax.ShapeDtypeStruct((128,), jnp.bfloat16)},
    }
    shardings = param_shardings(shapes, mesh)
    assert shardings["kernel"].spec == PartitionSpec(None, None, None, "fsdp")
    assert shardings["norm"]["bias"].is_fully_replicated
    assert shardings["kernel"].shard_shape((3, 3, 64, 128)) == (3, 3, 64, 32)
    abstract = with_shardings(shapes, mesh)
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
    """Returns shapes of stacked layers."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree)


def specs_by_path(tree):
    """Returns the specs of a pytree by path."""
    return {key_path(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class TestRules:
    def test_first_match_applies(self):
        specs = specs_by_path(param_shardings(NETWORK, make_mesh({"data": 2, "fsdp": 4}), RULES))
        assert specs == {
            "stem/kernel": PartitionSpec(),
            "down_0/conv/kernel": PartitionSpec(None, None, "fsdp"),
            "down_0/dense/kernel": PartitionSpec("data", "fsdp"),
        }

    def test_unmatched_parameters_use_fsdp(self):
        mesh = make_mesh({"data": 2, "fsdp": 4})
        default, ruled = (specs_by_path(param_shardings(NETWORK, mesh, rules)) for rules in ((), RULES[:1]))
        assert ruled.pop("stem/kernel") != default.pop("stem/kernel")
        assert ruled == default

    @pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)], ids=["adam", "adafactor"])
    def test_optimizer_state(self, optimizer):
        mesh = make_mesh({"data": 2, "fsdp": 4})
        state = {"params": NETWORK, "opt_state": jax.eval_shape(optimizer.init, NETWORK)}
        specs = specs_by_path(param_shardings(state, mesh, RULES, NETWORK))
        kernels = {path: spec for path, spec in specs.items() if path.endswith("down_0/conv/kernel")}
        # Adafactor's rows lack the output channels, its columns the input channels, which are the sharded ones
        expected = {"mu": (None, None, "fsdp"), "nu": (None, None, "fsdp"), "v_row": (None, None, "fsdp")}
        expected |= {"v_col": (None, None, None), "v": (), "params": (None, None, "fsdp")}
        assert len(kernels) > 2
        for path, spec in kernels.items():
            assert spec == PartitionSpec(*expected[path.split("/")[-4]]), path
        # JAX accepts these shardings
        shardings = param_shardings(state, mesh, RULES, NETWORK)["opt_state"]
        jax.jit(optimizer.init, out_shardings=shardings).lower(NETWORK)

    @pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3)], ids=["adam", "adafactor"])
    @pytest.mark.parametrize("rules", [(), RULES], ids=["default", "ruled"])
    def test_stacked_layers(self, optimizer, rules):
        """With 8 layers, which is divisible by fsdp too."""
        mesh = make_mesh({"data": 2, "fsdp": 4})
        stacked = {"stem": NETWORK["stem"], "down_0_blocks_0_to_7": stack(NETWORK["down_0"], 8)}
        specs, unstacked = (
            specs_by_path(
                param_shardings({"params": tree, "opt_state": jax.eval_shape(optimizer.init, tree)}, mesh, rules, tree)
            )
            for tree in (stacked, NETWORK)
        )
        num_sharded = 0
        for path, spec in specs.items():
            other = unstacked[path.replace("_blocks_0_to_7", "")]
            stacked_and_sharded = "_blocks_" in path and any(other)
            assert spec == (PartitionSpec(None, *other) if stacked_and_sharded else other), path
            num_sharded += stacked_and_sharded
        assert num_sharded > 0

    def test_rule_without_match_raises(self):
        with pytest.raises(ConfigError, match="config.sharding_rules: 'sten'"):
            param_shardings(NETWORK, make_mesh({"data": 2, "fsdp": 4}), (("sten", ()),))

    @pytest.mark.parametrize("axes", [(None,) * 4 + ("fsdp",), ("fsdp",)])
    def test_rule_that_does_not_fit_raises(self, axes):
        with pytest.raises(ConfigError, match=r"'stem' cannot shard stem/kernel of shape \(3, 3, 64, 256\) into \("):
            param_shardings(NETWORK, make_mesh({"data": 2, "fsdp": 4}), (("stem", axes),))

    @pytest.mark.parametrize(
        "rule, match",
        [
            (("(", ()), "regular expression"),
            (("stem",), "regular expression"),
            (("stem", None), "regular expression"),
            (("stem", ("model",)), "data, fsdp, spatial and None"),
            (("stem", "fsdp"), "data, fsdp, spatial and None"),
            (("stem", ("fsdp", "fsdp")), "data, fsdp, spatial and None"),
        ],
        ids=str,
    )
    def test_invalid_rule_raises(self, rule, match):
        check_sharding_rules(RULES[:3])
        with pytest.raises(ConfigError, match=rf"config.sharding_rules\[1\] .*{match}"):
            check_sharding_rules((RULES[0], rule))


def test_load_params_reads_each_slice_once():
    rng = np.random.default_rng(0)
    stored = {("layer", "kernel"): rng.normal(size=(96, 256)), ("bias",): rng.normal(size=256)}
    shapes = {
        "layer": {"kernel": jax.ShapeDtypeStruct((96, 256), np.float16)},
        "bias": jax.ShapeDtypeStruct((256,), np.float32),
    }
    requests = []

    def read(path, index):
        requests.append((path, index))
        return stored[path][index]

    loaded = load_params(shapes, read, make_mesh({"data": 2, "fsdp": 4}))
    np.testing.assert_array_equal(loaded["layer"]["kernel"], stored["layer", "kernel"].astype(np.float16))
    np.testing.assert_array_equal(loaded["bias"], stored["bias",].astype(np.float32))
    assert loaded["layer"]["kernel"].sharding.shard_shape((96, 256)) == (96, 64)
    quarters = [slice(start, start + 64) for start in range(0, 256, 64)]
    full = (("bias",), (slice(0, 256),))
    assert requests == [full, *((("layer", "kernel"), (slice(0, 96), quarter)) for quarter in quarters)]


def test_device_put_global_matches_device_put():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    tree = {"kernel": np.arange(256 * 128, dtype=np.float32).reshape(256, 128), "bias": np.arange(8)}
    shardings = param_shardings(tree, mesh)
    placed, expected = device_put_global(tree, shardings), jax.device_put(tree, shardings)
    for name, array in expected.items():
        assert placed[name].sharding == array.sharding
        for shard, other in zip(placed[name].addressable_shards, array.addressable_shards, strict=True):
            np.testing.assert_array_equal(shard.data, other.data)


def test_replicated():
    mesh = make_mesh({"data": 2, "fsdp": 4})
    array = jax.device_put(np.arange(5), replicated(mesh))
    assert [shard.data.shape for shard in array.addressable_shards] == [(5,)] * 8
