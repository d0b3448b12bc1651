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
from imagen_jax.models.unet_base import REMAT, as_they_lie
from imagen_jax.parallel.scan_params import is_stacked

COMMON = {
    "image_channels": 3,
    "patch": 1,
    "positions": 2,
    "input_skip": True,
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": (1, 1),
    "attention": ((), ("self+text",)),
    "head_channels": 8,
    "attention_mlp": 0,
    "embedding_multiplier": 2,
    "text_heads": 2,
    "norm_groups": 4,
    "skip_scale": 1.0,
    "dropout": 0.0,
    "dtype": jnp.float32,
    "out_channels": 3,
    "scan_blocks": False,
    "remat": "none",
    "lay": as_they_lie,
}
FIELDS = {UNet: {**COMMON, "middle_attention": ("text",)}, EfficientUNet: COMMON}

# Half the time to compile, and the same mathematics.
QUICKLY = {"xla_backend_optimization_level": 0}

each_network = pytest.mark.parametrize("network", [UNet, EfficientUNet])


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(length=5, shown=3, padding=0.0, seed=1, condition=True, size=8):
    """Arguments of a network for two examples, of a super-resolution stage if there is a ``condition``."""
    text = np.full((2, length, 6), padding, np.float32)
    text[:, :shown] = some(2, shown, 6, seed=seed)
    given = (some(2, size, size, 3), np.float32([0.2, 0.9]), text, np.tile(np.arange(length) < shown, (2, 1)))
    return (*given, some(2, size, size, 3, seed=5), np.float32([0.1, 0.6])) if condition else given


def build(network, **fields):
    return network(**{**FIELDS[network], **fields})


def shapes_of(module, *arguments):
    return jax.eval_shape(module.init, jax.random.key(0), *arguments)["params"]


def random_like(shapes):
    """Parameters as after some training: none is zero. Drawn without jax, where init takes long to compile."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        spread = 1 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return np.float32((path[-1].key == "scale") + spread * rng.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(value, shapes)


@functools.cache
def trained(network, **fields):
    return random_like(shapes_of(build(network, **fields), *inputs()))


@functools.cache
def compiled(network, **fields):
    module = build(network, **fields)
    return jax.jit(lambda params, *arguments: module.apply({"params": params}, *arguments), compiler_options=QUICKLY)


def names_of(tree):
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


@each_network
@pytest.mark.parametrize("condition, patch", [(False, 2), (True, 1)], ids=["base", "super-resolution"])
def test_a_fresh_network_says_exactly_zero(network, condition, patch):
    """Whatever its other parameters are: of all that init draws, only the last layers are made, quick to compile."""
    module, arguments = build(network, patch=patch), inputs(condition=condition)
    shapes = shapes_of(module, *arguments)
    assert ("aug_level" in shapes["conditioning"]) == condition
    params = random_like(shapes)
    run = compiled(network) if condition else compiled(network, patch=patch)
    out = run(params, *arguments)
    assert out.shape == arguments[0].shape
    assert np.abs(out).max() > 0.1
    last = jax.jit(lambda key: {name: module.init(key, *arguments)["params"][name] for name in ("out", "input_skip")})
    params |= last(jax.random.key(0))
    np.testing.assert_array_equal(run(params, *arguments), 0)


@each_network
def test_init_makes_parameters_and_nothing_else(network):
    assert set(jax.eval_shape(build(network).init, jax.random.key(0), *inputs())) == {"params"}


@each_network
def test_every_parameter_learns(network):
    fields = {"attention_mlp": 2} if network is EfficientUNet else {}
    module, params = build(network, **fields), trained(network, **fields)

    def loss(params, *arguments):
        return jnp.mean((module.apply({"params": params}, *arguments) - 1) ** 2)

    gradients = jax.jit(jax.grad(loss), compiler_options=QUICKLY)(params, *inputs())
    norms = [np.linalg.norm(leaf) for leaf in jax.tree.leaves(gradients)]
    assert {name for name, norm in zip(names_of(params), norms, strict=True) if norm < 1e-6} == set()


@each_network
def test_padding_changes_nothing_and_the_text_does(network):
    params, run = trained(network), compiled(network)
    out = run(params, *inputs())
    np.testing.assert_allclose(run(params, *inputs(padding=30.0)), out, atol=2e-5)
    np.testing.assert_allclose(run(params, *inputs(length=9, padding=-3.0)), out, atol=2e-5)
    assert np.abs(run(params, *inputs(seed=2)) - out).max() > 1e-2


@each_network
def test_a_dropped_caption_is_finite_and_of_no_length(network):
    params, run = trained(network), compiled(network)
    out = run(params, *inputs(shown=0))
    assert np.isfinite(out).all()
    np.testing.assert_allclose(run(params, *inputs(shown=0, length=9)), out, atol=2e-5)
    assert np.abs(out - run(params, *inputs())).max() > 1e-2


@each_network
@pytest.mark.parametrize("place, name", [(0, "z"), (1, "noise_level"), (4, "low_res"), (5, "aug_level")])
def test_every_input_counts(network, place, name):
    arguments = list(inputs())
    out = compiled(network)(trained(network), *arguments)
    arguments[place] = arguments[place] + np.float32(0.07)
    assert np.abs(compiled(network)(trained(network), *arguments) - out).max() > 1e-3


@each_network
def test_examples_do_not_look_at_each_other(network):
    arguments = inputs()
    swapped = [argument[::-1] for argument in arguments]
    out = compiled(network)(trained(network), *arguments)
    np.testing.assert_allclose(compiled(network)(trained(network), *swapped), out[::-1], atol=2e-5)


@each_network
def test_a_plain_picture_has_no_checkerboard(network):
    """What is alike far from the edges stays alike: upsampling makes no pattern of its own."""
    arguments = list(inputs(size=80))
    for place in (0, 4):
        arguments[place] = np.broadcast_to(arguments[place][:, :1, :1], arguments[place].shape)
    out = np.asarray(compiled(network, positions=0)(trained(network, positions=0), *arguments))
    assert np.ptp(out, axis=(1, 2)).min() > 1e-2
    np.testing.assert_allclose(np.ptp(out[:, 36:44, 36:44], axis=(1, 2)), 0, atol=1e-4)


@each_network
def test_bfloat16_is_for_compute_alone(network):
    params = shapes_of(build(network, dtype=jnp.bfloat16), *inputs())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    exact = compiled(network)(trained(network), *inputs())
    out = compiled(network, dtype=jnp.bfloat16)(trained(network), *inputs())
    assert out.dtype == jnp.float32
    off = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < off < 0.05  # bfloat16 has 3 digits; the upper limit, that no more is lost on the way


@each_network
def test_skips_are_scaled(network):
    """With two levels: the scale of the first level's skip an Efficient U-Net's last norm all but takes back."""
    fields = {"attention": ((), ()), **({"middle_attention": ()} if network is UNet else {})}
    params = trained(network, **fields)
    full, halved = (compiled(network, **fields, skip_scale=scale)(params, *inputs(size=4)) for scale in (1.0, 0.5))
    assert np.abs(full - halved).max() > 1e-2


class Unnormed(nn.Module):
    """In the place of a GroupNorm: keeps numbers of the same size, and does not look at the rest of the image."""

    groups: int

    @nn.compact
    def __call__(self, x):
        return 0.7 * x


def inner_difference(network, row, column, positions=0):
    """Between what a network says of a crop and of the whole, far from the crop's borders.

    The root of the mean square, relative to the deviation of what it says.
    """
    fields = {"attention": ((), ("text",)), "positions": positions}
    arguments, crop, margin = inputs(size=96), 72, 30
    module = build(network, **fields)
    params = random_like(shapes_of(module, *arguments))
    run = jax.jit(lambda *arguments: module.apply({"params": params}, *arguments), compiler_options=QUICKLY)
    place = np.s_[:, row : row + crop, column : column + crop]
    cropped = [argument[place] if argument.ndim == 4 else argument for argument in arguments]
    whole = np.asarray(run(*arguments))
    difference = np.asarray(run(*cropped)) - whole[place]
    return np.sqrt(np.mean(difference[:, margin:-margin, margin:-margin] ** 2)) / whole.std()


@each_network
def test_convolutions_see_a_crop_as_they_see_it_in_the_whole(network, monkeypatch):
    """If it begins where squares of pixels and levels do."""
    monkeypatch.setattr(layers, "Norm", Unnormed)
    assert inner_difference(network, 8, 12) < 1e-3
    assert inner_difference(network, 9, 13) > 0.05


def test_norms_measure_a_crop_a_little_otherwise():
    assert 1e-4 < inner_difference(UNet, 8, 12) < 0.1


def test_positions_see_a_crop_at_another_place(monkeypatch):
    monkeypatch.setattr(layers, "Norm", Unnormed)
    assert inner_difference(UNet, 8, 12, positions=4) > 0.02


def count(shapes):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@each_network
def test_attention_mlp_adds_a_hidden_layer_to_each_attention(network):
    plain, wide = (shapes_of(build(network, attention_mlp=mlp), *inputs()) for mlp in (0, 2))
    added = set(names_of(wide)) - set(names_of(plain))
    assert added and all("/mlp/" in name for name in added)
    places = sum(name.endswith("mlp/hidden/kernel") for name in added)
    c = 16  # channels where there is attention: hidden and out, their biases, and a norm
    assert count(wide) - count(plain) == places * (2 * c * 2 * c + 2 * c + c + 2 * c)


@each_network
@pytest.mark.parametrize("kinds", [("self",), ("text",), ("self+text",), ("self", "text"), ()], ids=str)
def test_each_kind_of_attention_fits_each_network(network, kinds):
    module = build(network, attention=((), kinds))
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs())
    assert out.shape == (2, 8, 8, 3)
    places = {name.split("/")[1] for name in names_of(variables["params"]) if name.startswith("up_1_attend")}
    assert places == {f"{kind.replace('+', '_')}_{index}" for index, kind in enumerate(kinds)}


@each_network
def test_every_parameter_has_a_name_that_was_given(network):
    """Names are the checkpoint's API: automatic ones (Conv_0) would change with the order of the code."""
    everything = {"attention": (("self",), ("self+text", "text")), "attention_mlp": 2, "dropout": 0.1}
    for name in names_of(shapes_of(build(network, **everything), *inputs())):
        assert re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z][a-z0-9_]*)*", name), name


@each_network
def test_names_and_shapes_do_not_depend_on_how_the_network_is_run(network):
    params = shapes_of(build(network), *inputs())
    for other in (
        shapes_of(build(network, dtype=jnp.bfloat16, dropout=0.2, skip_scale=0.5), *inputs()),
        shapes_of(build(network), *inputs(size=16, length=9)),
        shapes_of(build(network, remat="dots"), *inputs()),
        shapes_of(build(network, remat="full"), *inputs()),
    ):
        assert jax.tree.map(lambda leaf: leaf.shape, other) == jax.tree.map(lambda leaf: leaf.shape, params)


def test_what_is_made_again_is_the_same():
    """Dropout too: what is dropped must be the same when it is made again."""
    small = {"multipliers": (1,), "blocks": (1,), "attention": (("self+text",),), "dropout": 0.1}
    params, given = trained(EfficientUNet, **small), inputs()
    keys = jax.random.split(jax.random.key(0), 2)

    def loss_and_gradients(remat):
        module = build(EfficientUNet, remat=remat, **small)

        def loss(params):
            return jnp.mean((module.apply({"params": params}, *given, dropout_keys=keys) - given[0]) ** 2)

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICKLY)(params)

    expected, gradients = loss_and_gradients("none")
    for remat in set(REMAT) - {"none"}:
        found, others = loss_and_gradients(remat)
        assert found == pytest.approx(float(expected), rel=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), others, gradients)


@each_network
def test_what_is_made_again_need_not_be_kept(network):
    """Counted are the bytes that the backward pass is given, beside the parameters; nothing is compiled."""
    given, kept = inputs(size=32), {}
    params = shapes_of(build(network), *given)
    for remat in REMAT:
        module = build(network, remat=remat)
        run = functools.partial(lambda module, params: module.apply({"params": params}, *given), module)
        _, backward = jax.eval_shape(functools.partial(jax.vjp, run), params)
        kept[remat] = size_of(backward) - size_of(params)
    assert 0 < kept["full"] < kept["dots"] < 0.6 * kept["none"]


def size_of(tree):
    """Its bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_places_of_a_unet():
    assert set(shapes_of(build(UNet, attention=((), ("self",))), *inputs())) == {
        "conditioning", "stem", "positions",
        "down_0_res_0", "down_0_halve", "down_1_res_0", "down_1_attend_0",
        "middle_res_0", "middle_attend", "middle_res_1",
        "up_1_res_0", "up_1_attend_0", "up_1_res_1", "up_1_attend_1", "up_1_double", "up_0_res_0", "up_0_res_1",
        "out_norm", "out", "input_skip",
    }  # fmt: skip


def test_the_places_of_an_efficient_unet():
    assert set(shapes_of(build(EfficientUNet), *inputs())) == {
        "conditioning", "stem", "positions",
        "down_0_halve", "down_0_res_0", "down_1_halve", "down_1_res_0", "down_1_attend",
        "up_1_res_0", "up_1_attend", "up_1_double", "up_0_res_0", "up_0_double",
        "out_norm", "out", "input_skip",
    }  # fmt: skip


def unstacked(params):
    """The parameters of a network with runs of blocks as those of the same network, each block by itself."""
    found = {}
    for name, block in params.items():
        if run := re.fullmatch(r"(\w+)_blocks_(\d+)_to_(\d+)", name):
            level, first, last = run[1], int(run[2]), int(run[3])
            for part, i in itertools.product(block, range(first, last + 1)):
                found[f"{level}_{part}_{i}"] = jax.tree.map(lambda leaf, i=i - first: leaf[i], block[part])
        else:
            found[name] = block
    return found


@pytest.mark.parametrize("network, remat", [(UNet, "dots"), (EfficientUNet, "none")])
def test_a_network_of_runs_is_the_network(network, remat):
    """In what it says, with dropout, and in what it learns."""
    fields = {"multipliers": (1,), "blocks": (2,), "attention": (("self+text",),), "dropout": 0.1, "remat": remat}
    scanned, plain = (build(network, **fields, scan_blocks=scan) for scan in (True, False))
    given, keys = inputs(size=4), jax.random.split(jax.random.key(0), 2)
    params = random_like(shapes_of(scanned, *given))

    def output_and_gradients(module, params):
        def loss(params):
            out = module.apply({"params": params}, *given, dropout_keys=keys)
            return jnp.mean((out - given[0]) ** 2), out

        (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)(params)
        return out, gradients

    out, gradients = output_and_gradients(scanned, params)
    expected, others = output_and_gradients(plain, unstacked(params))
    np.testing.assert_allclose(out, expected, atol=1e-5)
    found = unstacked(gradients)
    assert found.keys() == others.keys()
    for name, other in others.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[name], other)


RUNS = {"blocks": (3, 2), "attention": ((), ("self+text",))}


@each_network
def test_runs_are_of_blocks_that_are_alike(network):
    expected = {
        UNet: {"down_0_blocks_0_to_2", "up_1_blocks_0_to_1", "up_0_blocks_1_to_3"},
        EfficientUNet: {"down_0_blocks_0_to_2", "down_1_blocks_0_to_1", "up_1_blocks_0_to_1", "up_0_blocks_1_to_2"},
    }
    found = shapes_of(build(network, **RUNS, scan_blocks=True), *inputs())
    assert {name for name in found if is_stacked(f"{name}/")} == expected[network]


@each_network
def test_blocks_of_a_run_begin_as_different_as_others(network):
    """Each has its own parameters, as large as if it stood alone."""
    module, plain = (build(network, **RUNS, scan_blocks=scan) for scan in (True, False))
    assert count(shapes_of(module, *inputs())) == count(shapes_of(plain, *inputs()))
    init = jax.jit(lambda key: module.init(key, *inputs())["params"]["down_0_blocks_0_to_2"]["res"]["conv_0"]["kernel"])
    kernels = np.asarray(init(jax.random.key(0)))
    assert kernels.shape == (3, 3, 3, 8, 8)
    assert np.abs(np.corrcoef(kernels.reshape(3, -1)) - np.eye(3)).max() < 0.2
    np.testing.assert_allclose(kernels.std(axis=(1, 2, 3, 4)), 1 / math.sqrt(3 * 3 * 8), rtol=0.15)


PAPER = {
    "positions": 0,
    "input_skip": False,
    "embedding_multiplier": 4,
    "text_heads": 8,
    "norm_groups": 32,
    "dtype": jnp.bfloat16,
}
BASE = UNet(
    **{
        **FIELDS[UNet],
        **PAPER,
        "channels": 512,
        "multipliers": (1, 2, 3, 4),
        "blocks": (3, 3, 3, 3),
        "attention": ((), ("self+text",), ("self+text",), ("self+text",)),
        "middle_attention": ("self+text",),
        "head_channels": 64,
    }
)


def super_resolution(kind):
    return EfficientUNet(
        **{
            **FIELDS[EfficientUNet],
            **PAPER,
            "channels": 128,
            "multipliers": (1, 2, 4, 8),
            "blocks": (2, 4, 8, 8),
            "attention": ((), (), (), (kind,)),
            "head_channels": 128,
            "attention_mlp": 2,
            "skip_scale": 1 / math.sqrt(2),
        }
    )


@pytest.mark.parametrize(
    "module, size, million",
    [(BASE, 64, 2000), (super_resolution("self+text"), 256, 600), (super_resolution("text"), 1024, 400)],
    ids=["64", "256", "1024"],
)
def test_the_stages_of_the_paper_are_fields_of_the_networks(module, size, million):
    """To 35 %: with T5-XXL's 4096 wide embeddings 2402, 472 and 467 million parameters; the paper's table has no more.

    Nothing is allocated, and the forward pass is traced at full size.
    """
    image, level = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    text, mask = jax.ShapeDtypeStruct((1, 128, 4096), jnp.float32), jax.ShapeDtypeStruct((1, 128), bool)
    condition = () if module is BASE else (image, level)
    out, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), image, level, text, mask, *condition)
    assert out.shape == image.shape
    assert count(variables["params"]) / 1e6 == pytest.approx(million, rel=0.35)
