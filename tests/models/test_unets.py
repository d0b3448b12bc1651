import functools
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models import layers
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.models.unet_base import REMAT_POLICIES, no_constraint
from imagen_jax.parallel.scan_params import is_stacked

COMMON = {
    "image_channels": 3,
    "patch_size": 1,
    "positions": 2,
    "input_skip": True,
    "channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": (1, 1),
    "attention_types": ((), ("self+text",)),
    "head_channels": 8,
    "mlp_ratio": 0,
    "cond_dim_mult": 2,
    "text_pool_heads": 2,
    "num_groups": 4,
    "skip_scale": 1.0,
    "dropout": 0.0,
    "dtype": jnp.float32,
    "out_channels": 3,
    "scan_blocks": False,
    "remat": "none",
    "constrain": no_constraint,
}
FIELDS = {UNet: {**COMMON, "middle_attention_types": ("text",)}, EfficientUNet: COMMON}

# Halves compile time; results are the same.
FAST_COMPILE = {"xla_backend_optimization_level": 0}

each_network = pytest.mark.parametrize("network", [UNet, EfficientUNet])


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(length=5, shown=3, padding=0.0, seed=1, condition=True, size=8):
    """Returns arguments of a network for two examples, for super-resolution if there is a `condition`."""
    text = np.full((2, length, 6), padding, np.float32)
    text[:, :shown] = random_array(2, shown, 6, seed=seed)
    arguments = (
        random_array(2, size, size, 3),
        np.float32([0.2, 0.9]),
        text,
        np.tile(np.arange(length) < shown, (2, 1)),
    )
    return (*arguments, random_array(2, size, size, 3, seed=5), np.float32([0.1, 0.6])) if condition else arguments


def build(network, **fields):
    return network(**{**FIELDS[network], **fields})


def shapes_of(module, *arguments):
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def random_like(shapes):
    """Returns parameters as after some training: none is zero. Made without jax, where init is slow to compile."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        std = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return np.float32((path[-1].key == "scale") + std * rng.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.cache
def trained(network, **fields):
    return random_like(shapes_of(build(network, **fields), *inputs()))


@functools.cache
def compiled(network, **fields):
    module = build(network, **fields)
    return jax.jit(
        lambda params, *arguments: module.apply({"params": params}, *arguments), compiler_options=FAST_COMPILE
    )


def param_names(tree):
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


@each_network
@pytest.mark.parametrize("condition, patch_size", [(False, 2), (True, 1)], ids=["base", "super-resolution"])
def test_output_is_zero_at_init(network, condition, patch_size):
    """For any values of the other parameters: only the last layers are initialized, which is fast to compile."""
    module, arguments = build(network, patch_size=patch_size), inputs(condition=condition)
    shapes = shapes_of(module, *arguments)
    assert ("aug_level" in shapes["conditioning"]) == condition
    params = random_like(shapes)
    run = compiled(network) if condition else compiled(network, patch_size=patch_size)
    out = run(params, *arguments)
    assert out.shape == arguments[0].shape
    assert np.abs(out).max() > 0.1
    last = jax.jit(lambda key: {name: module.init(key, *arguments)["params"][name] for name in ("out", "input_skip")})
    params |= last(jax.random.key(0))
    np.testing.assert_array_equal(run(params, *arguments), 0)


@each_network
def test_init_returns_parameters_only(network):
    assert set(jax.eval_shape(build(network).init, jax.random.key(0), *inputs())) == {"params"}


@each_network
def test_every_parameter_has_a_gradient(network):
    fields = {"mlp_ratio": 2} if network is EfficientUNet else {}
    module, params = build(network, **fields), trained(network, **fields)

    def loss(params, *arguments):
        return jnp.mean((module.apply({"params": params}, *arguments) - 1) ** 2)

    gradients = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(params, *inputs())
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradients)]
    assert {name for name, norm in zip(param_names(params), norms, strict=True) if norm < 1e-6} == set()


@each_network
@pytest.mark.trap("text padding")
def test_depends_on_text_but_not_on_padding(network):
    params, run = trained(network), compiled(network)
    out = run(params, *inputs())
    np.testing.assert_allclose(run(params, *inputs(padding=30.0)), out, atol=2e-5)
    np.testing.assert_allclose(run(params, *inputs(length=9, padding=-3.0)), out, atol=2e-5)
    assert np.abs(run(params, *inputs(seed=2)) - out).max() > 1e-2


@each_network
@pytest.mark.trap("NaN in batches")
def test_dropped_text_is_finite_at_any_length(network):
    params, run = trained(network), compiled(network)
    out = run(params, *inputs(shown=0))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(run(params, *inputs(shown=0, length=9)), out, atol=2e-5)
    assert np.abs(out - run(params, *inputs())).max() > 1e-2


@each_network
@pytest.mark.parametrize("index, name", [(0, "z"), (1, "noise_level"), (4, "low_res"), (5, "aug_level")])
def test_depends_on_every_input(network, index, name):
    arguments = list(inputs())
    out = compiled(network)(trained(network), *arguments)
    arguments[index] = arguments[index] + np.float32(0.07)
    assert np.abs(compiled(network)(trained(network), *arguments) - out).max() > 1e-3


@each_network
@pytest.mark.trap("NaN in batches")
def test_examples_are_independent(network):
    arguments = inputs()
    swapped = [argument[::-1] for argument in arguments]
    out = compiled(network)(trained(network), *arguments)
    np.testing.assert_allclose(compiled(network)(trained(network), *swapped), out[::-1], atol=2e-5)


@each_network
@pytest.mark.trap("color tint")
def test_constant_image_has_no_checkerboard(network):
    """Far from the borders the output is constant: upsampling adds no pattern."""
    arguments = list(inputs(size=80))
    for index in (0, 4):
        arguments[index] = np.broadcast_to(arguments[index][:, :1, :1], arguments[index].shape)
    out = np.asarray(compiled(network, positions=0)(trained(network, positions=0), *arguments))
    assert np.ptp(out, axis=(1, 2)).min() > 1e-2
    np.testing.assert_allclose(np.ptp(out[:, 36:44, 36:44], axis=(1, 2)), 0, atol=1e-4)


@each_network
def test_bfloat16_compute(network):
    params = shapes_of(build(network, dtype=jnp.bfloat16), *inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = compiled(network)(trained(network), *inputs())
    out = compiled(network, dtype=jnp.bfloat16)(trained(network), *inputs())
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05  # bfloat16 has 3 digits; the upper limit bounds accumulated errors


@each_network
def test_skip_scale(network):
    """With two levels: the last norm of an Efficient U-Net nearly cancels the scale of the first skip."""
    fields = {"attention_types": ((), ()), **({"middle_attention_types": ()} if network is UNet else {})}
    params = trained(network, **fields)
    full, halved = (compiled(network, **fields, skip_scale=scale)(params, *inputs(size=4)) for scale in (1.0, 0.5))
    assert np.abs(full - halved).max() > 1e-2


class Unnormed(nn.Module):
    """Replaces GroupNorm: preserves the scale of activations without statistics of the image."""

    groups: int

    @nn.compact
    def __call__(self, x, scale_shift=None):
        if scale_shift is None:
            return 0.7 * x
        scale, shift = (values[:, None, None] for values in scale_shift)
        return 0.7 * x * (1 + scale) + shift


def crop_difference(network, row, column, positions=0):
    """Returns the difference between outputs on a crop and on the full image, far from the crop's borders.

    It is the root mean square, relative to the standard deviation of the output.
    """
    fields = {"attention_types": ((), ("text",)), "positions": positions}
    arguments, crop, margin = inputs(size=96), 72, 30
    module = build(network, **fields)
    params = random_like(shapes_of(module, *arguments))
    run = jax.jit(lambda *arguments: module.apply({"params": params}, *arguments), compiler_options=FAST_COMPILE)
    window = np.s_[:, row : row + crop, column : column + crop]
    cropped = [argument[window] if argument.ndim == 4 else argument for argument in arguments]
    full = np.asarray(run(*arguments))
    difference = np.asarray(run(*cropped)) - full[window]
    return np.sqrt(np.mean(difference[:, margin:-margin, margin:-margin] ** 2)) / full.std()


@each_network
def test_crop_matches_the_full_image_without_norms(network, monkeypatch):
    """If the crop is aligned with the patches and levels."""
    monkeypatch.setattr(layers, "GroupNorm32", Unnormed)
    assert crop_difference(network, 8, 12) < 1e-3
    assert crop_difference(network, 9, 13) > 0.05


def test_crop_differs_slightly_with_norms():
    assert 1e-4 < crop_difference(UNet, 8, 12) < 0.1


def test_crop_differs_with_positions(monkeypatch):
    monkeypatch.setattr(layers, "GroupNorm32", Unnormed)
    assert crop_difference(UNet, 8, 12, positions=4) > 0.02


def num_params(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@each_network
def test_mlp_ratio(network):
    plain, wide = (shapes_of(build(network, mlp_ratio=mlp_ratio), *inputs()) for mlp_ratio in (0, 2))
    added = set(param_names(wide)) - set(param_names(plain))
    assert added and all("/mlp/" in name for name in added)
    layers = sum(name.endswith("mlp/hidden/kernel") for name in added)
    c = 16  # channels where there is attention: hidden and out, their biases, and a norm
    assert num_params(wide) - num_params(plain) == layers * (2 * c * 2 * c + 2 * c + c + 2 * c)


@each_network
@pytest.mark.parametrize("attention_types", [("self",), ("text",), ("self+text",), ("self", "text"), ()], ids=str)
def test_attention_types(network, attention_types):
    module = build(network, attention_types=((), attention_types))
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs())
    assert out.shape == (2, 8, 8, 3)
    names = {name.split("/")[1] for name in param_names(variables["params"]) if name.startswith("up_1_attend")}
    assert names == {f"{name.replace('+', '_')}_{index}" for index, name in enumerate(attention_types)}


@each_network
def test_parameter_names_are_explicit(network):
    """Names are the checkpoint's API: automatic names (Conv_0) would depend on the order of the code."""
    everything = {"attention_types": (("self",), ("self+text", "text")), "mlp_ratio": 2, "dropout": 0.1}
    for name in param_names(shapes_of(build(network, **everything), *inputs())):
        assert re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*", name), name


@each_network
def test_parameters_do_not_depend_on_runtime_settings(network):
    params = shapes_of(build(network), *inputs())
    for other in (
        shapes_of(build(network, dtype=jnp.bfloat16, dropout=0.2, skip_scale=0.5), *inputs()),
        shapes_of(build(network), *inputs(size=16, length=9)),
        shapes_of(build(network, remat="dots"), *inputs()),
        shapes_of(build(network, remat="full"), *inputs()),
    ):
        assert jax.tree.map(lambda leaf: leaf.shape, other) == jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.mark.slow
def test_remat_preserves_loss_and_gradients():
    """With dropout too: recomputation uses the same mask."""
    small = {"channel_mult": (1,), "num_res_blocks": (1,), "attention_types": (("self+text",),), "dropout": 0.1}
    params, arguments = trained(EfficientUNet, **small), inputs()
    keys = jax.random.split(jax.random.key(0), 2)

    def loss_and_gradients(remat):
        module = build(EfficientUNet, remat=remat, **small)

        def loss(params):
            return jnp.mean((module.apply({"params": params}, *arguments, dropout_keys=keys) - arguments[0]) ** 2)

        return jax.jit(jax.value_and_grad(loss), compiler_options=FAST_COMPILE)(params)

    expected, gradients = loss_and_gradients("none")
    for remat in set(REMAT_POLICIES) - {"none"}:
        loss, others = loss_and_gradients(remat)
        assert loss == pytest.approx(float(expected), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), others, gradients)


@pytest.mark.slow
@each_network
def test_remat_saves_memory(network):
    """Counts the bytes saved for the backward pass, without the parameters; nothing is compiled."""
    arguments, saved = inputs(size=32), {}
    params = shapes_of(build(network), *arguments)
    for remat in REMAT_POLICIES:
        module = build(network, remat=remat)
        run = functools.partial(lambda module, params: module.apply({"params": params}, *arguments), module)
        _, backward = jax.eval_shape(functools.partial(jax.vjp, run), params)
        saved[remat] = num_bytes(backward) - num_bytes(params)
    assert 0 < saved["full"] < saved["dots"] < 0.6 * saved["none"]


def num_bytes(tree):
    """Returns the size of a pytree in bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_unet_block_names():
    assert set(shapes_of(build(UNet, attention_types=((), ("self",))), *inputs())) == {
        "conditioning", "stem", "positions",
        "down_0_res_0", "down_0_halve", "down_1_res_0", "down_1_attend_0",
        "middle_res_0", "middle_attend", "middle_res_1",
        "up_1_res_0", "up_1_attend_0", "up_1_res_1", "up_1_attend_1", "up_1_double", "up_0_res_0", "up_0_res_1",
        "out_norm", "out", "input_skip",
    }  # fmt: skip


def test_efficient_unet_block_names():
    assert set(shapes_of(build(EfficientUNet), *inputs())) == {
        "conditioning", "stem", "positions",
        "down_0_halve", "down_0_res_0", "down_1_halve", "down_1_res_0", "down_1_attend",
        "up_1_res_0", "up_1_attend", "up_1_double", "up_0_res_0", "up_0_double",
        "out_norm", "out", "input_skip",
    }  # fmt: skip


def unstack_blocks(params):
    """Returns the parameters of a network with scanned blocks as those of the same network without scan."""
    unstacked = {}
    for name, block in params.items():
        if match := re.fullmatch(r"(\w+)_blocks_(\d+)_to_(\d+)", name):
            level, first, last = match[1], int(match[2]), int(match[3])
            for part, i in itertools.product(block, range(first, last + 1)):
                unstacked[f"{level}_{part}_{i}"] = jax.tree.map(lambda leaf, i=i - first: leaf[i], block[part])
        else:
            unstacked[name] = block
    return unstacked


@pytest.mark.parametrize(
    "network, remat", [(UNet, "dots"), pytest.param(EfficientUNet, "none", marks=pytest.mark.slow)]
)
def test_scan_blocks_preserves_outputs_and_gradients(network, remat):
    """Also with dropout."""
    fields = {
        "channel_mult": (1,),
        "num_res_blocks": (2,),
        "attention_types": (("self+text",),),
        "dropout": 0.1,
        "remat": remat,
    }
    scanned, plain = (build(network, **fields, scan_blocks=scan) for scan in (True, False))
    arguments, keys = inputs(size=4), jax.random.split(jax.random.key(0), 2)
    params = random_like(shapes_of(scanned, *arguments))

    def output_and_gradients(module, params):
        def loss(params):
            out = module.apply({"params": params}, *arguments, dropout_keys=keys)
            return jnp.mean((out - arguments[0]) ** 2), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)(params)
        return out, gradients

    out, gradients = output_and_gradients(scanned, params)
    expected, others = output_and_gradients(plain, unstack_blocks(params))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    gradients = unstack_blocks(gradients)
    assert gradients.keys() == others.keys()
    for name, other in others.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients[name], other)


SCANNED = {"num_res_blocks": (3, 2), "attention_types": ((), ("self+text",))}


@each_network
def test_scan_blocks_groups_equal_blocks(network):
    expected = {
        UNet: {"down_0_blocks_0_to_2", "up_1_blocks_0_to_1", "up_0_blocks_1_to_3"},
        EfficientUNet: {"down_0_blocks_0_to_2", "down_1_blocks_0_to_1", "up_1_blocks_0_to_1", "up_0_blocks_1_to_2"},
    }
    shapes = shapes_of(build(network, **SCANNED, scan_blocks=True), *inputs())
    assert {name for name in shapes if is_stacked(f"{name}/")} == expected[network]


@each_network
def test_scanned_blocks_are_initialized_independently(network):
    """Each has its own parameters, with the same scale as without scan."""
    module, plain = (build(network, **SCANNED, scan_blocks=scan) for scan in (True, False))
    assert num_params(shapes_of(module, *inputs())) == num_params(shapes_of(plain, *inputs()))
    init = jax.jit(lambda key: module.init(key, *inputs())["params"]["down_0_blocks_0_to_2"]["res"]["conv_0"]["kernel"])
    kernels = np.asarray(init(jax.random.key(0)))
    assert kernels.shape == (3, 3, 3, 8, 8)
    assert np.abs(np.corrcoef(kernels.reshape(3, -1)) - np.eye(3)).max() < 0.2
    np.testing.assert_allclose(kernels.std(axis=(1, 2, 3, 4)), 1 / math.sqrt(3 * 3 * 8), rtol=0.15)


PAPER = {
    "positions": 0,
    "input_skip": False,
    "cond_dim_mult": 4,
    "text_pool_heads": 8,
    "num_groups": 32,
    "dtype": jnp.bfloat16,
}
BASE = UNet(
    **{
        **FIELDS[UNet],
        **PAPER,
        "channels": 512,
        "channel_mult": (1, 2, 3, 4),
        "num_res_blocks": (3, 3, 3, 3),
        "attention_types": ((), ("self+text",), ("self+text",), ("self+text",)),
        "middle_attention_types": ("self+text",),
        "head_channels": 64,
    }
)


def super_resolution(attention_type):
    return EfficientUNet(
        **{
            **FIELDS[EfficientUNet],
            **PAPER,
            "channels": 128,
            "channel_mult": (1, 2, 4, 8),
            "num_res_blocks": (2, 4, 8, 8),
            "attention_types": ((), (), (), (attention_type,)),
            "head_channels": 128,
            "mlp_ratio": 2,
            "skip_scale": 1 / math.sqrt(2),
        }
    )


@pytest.mark.parametrize(
    "module, size, million",
    [(BASE, 64, 2000), (super_resolution("self+text"), 256, 600), (super_resolution("text"), 1024, 400)],
    ids=["64", "256", "1024"],
)
def test_parameter_counts_of_the_paper(module, size, million):
    """Up to 35 %: 2402, 472 and 467 million parameters with T5-XXL's embeddings of width 4096.

    Nothing is allocated, and the forward pass is traced at full size.
    """
    image, level = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    text, mask = jax.ShapeDtypeStruct((1, 128, 4096), jnp.float32), jax.ShapeDtypeStruct((1, 128), bool)
    condition = () if module is BASE else (image, level)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image, level, text, mask, *condition)
    assert out.shape == image.shape
    assert num_params(variables["params"]) / 1e6 == pytest.approx(million, rel=0.35)
