"""Files of adapters: those that diffusers and PEFT wrote give what diffusers' network predicts with them."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.stages.adapter import split_adapter
from imagen_jax.stages.lora import add_product, factor_shapes, fold_lora
from imagen_jax.stages.lora_files import FILE, read_lora
from tests.goldens.deepfloyd_if.cases import params_of
from tests.goldens.if_lora import cases


@pytest.mark.parametrize("name", cases.NAMES)
def test_adapters_of_diffusers(name):
    with np.load(cases.GOLDEN) as goldens:
        golden = goldens[name]
    path = cases.folder(name) / FILE
    assert np.abs(cases.output(name, path, 0.0) - golden).max() > 0.1
    np.testing.assert_allclose(cases.output(name, path), golden, rtol=0, atol=cases.TOLERANCE)


def test_tensors_have_the_names_of_diffusers(tmp_path):
    ours = load_file(cases.write_ours("second stage", tmp_path))
    theirs = load_file(cases.folder("second stage") / FILE)
    assert {name: tensor.shape for name, tensor in theirs.items()}.items() <= {
        name: tensor.shape for name, tensor in ours.items()
    }.items()
    assert ours["unet.down_blocks.0.resnets.0.conv1.lora_A.weight"].shape[2:] == (3, 3)
    assert ours["unet.down_blocks.0.resnets.0.conv1.lora_B.weight"].shape[2:] == (1, 1)


def test_what_is_written_is_read(tmp_path):
    stage = cases.stage_of(*cases.UNETS["second stage"][:2], True)
    params = params_of(jax.eval_shape(stage.init, jax.random.key(0)))
    path = cases.write_ours("second stage", tmp_path)
    lora, tensors = read_lora(path), load_file(path)
    assert lora.stage is None and lora.origin.image_size == (16, 16) and lora.origin.step == 1
    factors = lora.factors(params, "if_unet")["down_blocks_0_resnets_0/conv1"]
    assert factors.scale == cases.ALPHA / cases.RANK
    name = "unet.down_blocks.0.resnets.0.conv1"
    np.testing.assert_array_equal(factors.a, tensors[f"{name}.lora_A.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(factors.b, tensors[f"{name}.lora_B.weight"][:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("path", "kernel"),
    [("out", (5, 7)), ("conv", (3, 3, 5, 7)), ("b_0_to_2/d", (2, 5, 7)), ("b_0_to_2/c", (2, 3, 3, 5, 7))],
)
def test_products_of_all_kinds_of_kernels(path, kernel):
    """Of dense layers and convolutions, and of each layer in a stack."""
    rng = np.random.default_rng(0)
    a_shape, b_shape = factor_shapes(path, kernel, 4)
    assert a_shape == (*kernel[:-1], 4) and b_shape == ((2, 4, 7) if "_to_" in path else (4, 7))
    w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in (kernel, a_shape, b_shape))
    tree = {"module": {"kernel": w, "bias": w[..., 0], "lora_a": a, "lora_b": b}, "other": {"kernel": w}}
    expected = w + 0.5 * (np.einsum("l...r,lro->l...o", a, b) if "_to_" in path else np.einsum("...r,ro->...o", a, b))
    folded = fold_lora(tree, 0.5)
    np.testing.assert_allclose(folded["module"]["kernel"], expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(add_product(w, a, b, 0.0), w)
    assert folded["other"]["kernel"] is w and set(folded["module"]) == {"kernel", "bias"}
    adapter, rest = split_adapter(tree)
    assert adapter == {"module": {"lora_a": a, "lora_b": b}} and set(rest) == {"module", "other"}
