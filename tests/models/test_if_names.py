"""Names and layouts of tensors in files of diffusers, there and back."""

import numpy as np
import pytest

from imagen_jax.io.tensor_files import TensorFiles
from imagen_jax.io.torch_layout import from_torch, stored_shape, to_torch
from imagen_jax.models.if_names import parameter_path, tensor_name
from tests.conversion.folders import UNET
from tests.goldens.if_pipelines.cases import FIRST, SECOND


@pytest.mark.parametrize(
    "name, rank, path",
    [
        ("down_blocks.0.resnets.1.conv1.weight", 4, "down_blocks_0_resnets_1/conv1/kernel"),
        ("down_blocks.10.downsamplers.0.norm1.weight", 1, "down_blocks_10_downsamplers_0/norm1/scale"),
        ("up_blocks.1.attentions.0.to_out.0.bias", 1, "up_blocks_1_attentions_0/to_out_0/bias"),
        ("mid_block.resnets.0.time_emb_proj.weight", 2, "mid_block_resnets_0/time_emb_proj/kernel"),
        ("mid_block.attentions.0.to_out.0.weight", 2, "mid_block_attentions_0/to_out_0/kernel"),
        ("time_embedding.linear_1.weight", 2, "time_embedding/linear_1/kernel"),
        ("add_embedding.pool.positional_embedding", 2, "add_embedding/pool/positional_embedding"),
        ("encoder_hid_proj.weight", 2, "encoder_hid_proj/kernel"),
        ("conv_norm_out.weight", 1, "conv_norm_out/scale"),
    ],
)
def test_names(name, rank, path):
    assert "/".join(parameter_path(name, rank)) == path
    assert tensor_name(tuple(path.split("/"))) == name


@pytest.mark.parametrize("folder", [FIRST, SECOND], ids=["first", "second"])
def test_names_of_files_come_back(folder):
    shapes = TensorFiles([folder / UNET]).shapes
    assert [tensor_name(parameter_path(name, len(shape))) for name, shape in shapes.items()] == list(shapes)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 4)])
def test_layouts(shape):
    tensor = np.random.default_rng(0).normal(size=shape)
    path = ("module", "kernel" if len(shape) > 1 else "bias")
    parameter = from_torch(path, tensor)
    expected = {1: (5,), 2: (3, 5), 4: (2, 4, 3, 5)}[len(shape)]
    assert parameter.shape == expected and stored_shape(path, expected) == shape
    np.testing.assert_array_equal(to_torch(path, parameter), tensor)
    if len(shape) == 4:
        assert parameter[1, 2, 0, 4] == tensor[4, 0, 1, 2]
