"""Whatever is wrong with a pipeline is said in one sentence, and nothing is written."""

import ast
import json
import shlex
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.conversion.from_diffusers import ConvertSettings, convert
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.find_stages import find_stages
from imagen_jax.text.encoder import SHAPES_ENCODER
from tests.conversion.folders import UNET, change_json
from tests.goldens.if_pipelines.cases import FIRST, SECOND
from tests.helpers.cli import run_command
from tests.helpers.configs import contents


def refused(tmp_path, *folders, **settings):
    """Returns the one sentence with which a conversion is refused; nothing is written."""
    before = contents(tmp_path)
    with pytest.raises(ConfigError) as error:
        convert([str(folder) for folder in folders], tmp_path / "out", ConvertSettings(**settings))
    assert contents(tmp_path) == before
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "KandinskyPipeline", 7, None, ["IFPipeline"]])
def test_other_pipelines(first, tmp_path, kind):
    (first / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    message = refused(tmp_path, first)
    assert str(kind) in message and "IFPipeline" in message


def test_wrong_order(first, tmp_path):
    assert "super-resolution stage (IFSuperResolutionPipeline) in the place of the first" in refused(
        tmp_path, SECOND, first
    )
    assert "first stage (IFPipeline) in the place of the second" in refused(tmp_path, first, FIRST)
    assert "3 pipelines" in refused(tmp_path, first, SECOND, SECOND)


def test_swapped_networks(first, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy(SECOND / "unet" / name, first / "unet" / name)
    assert "has 6 for in_channels" in refused(tmp_path, first)


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", UNET, "text_encoder/config.json"],
)
def test_missing_and_damaged_files(first, tmp_path, file):
    data = (first / file).read_bytes()
    (first / file).unlink()
    assert file.rpartition("/")[2] in refused(tmp_path, first)
    (first / file).write_bytes(data[: len(data) // 2])
    assert file.rpartition("/")[2] in refused(tmp_path, first)


def test_missing_shards(half, tmp_path):
    shard = sorted((half / "unet").glob("*.safetensors"))[2]
    shard.unlink()
    assert shard.name in refused(tmp_path, half)
    next((half / "unet").glob("*.index.*")).unlink()
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in refused(tmp_path, half)


def test_several_variants(first, tmp_path):
    half = {name: array.astype(np.float16) for name, array in load_file(first / UNET).items()}
    save_file(half, first / "unet/diffusion_pytorch_model.fp16.safetensors")
    message = refused(tmp_path, first)
    assert "--variant=fp16" in message and "none" in message
    assert "bf16" in refused(tmp_path, first, variant="bf16")
    shutil.copy(first / "text_encoder/model.safetensors", first / "text_encoder/model.fp16.safetensors")
    for variant, size in (("fp16", "F16"), ("none", "F32")):
        convert([str(first)], tmp_path / variant, ConvertSettings(variant=variant))
        kept = json.loads((tmp_path / variant / "stage_0/diffusers.json").read_text())["unet"]
        assert {dtype for file in kept.values() for dtype in file["tensors"].values()} == {size}


def test_pickled_weights(first, tmp_path):
    (first / UNET).rename(first / "unet/diffusion_pytorch_model.bin")
    message = refused(tmp_path, first)
    assert "diffusion_pytorch_model.bin" in message
    words = shlex.split(message[message.index("python -c") :])
    calls = [node for node in ast.walk(ast.parse(words[2])) if isinstance(node, ast.Call)]
    assert [call.args[0].value for call in calls] == ["first-safetensors", str(first)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]}, "ResnetDownsampleBlock2D"),
        ({"up_block_types": ["ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"]}, "in reverse"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "'UNetMidBlock2DSimpleCrossAttn'"),
        ({"only_cross_attention": True}, "True for only_cross_attention"),
        ({"norm_eps": 1e-6}, "1e-06 for norm_eps"),
        ({"act_fn": "mish"}, "'mish' for act_fn"),
        ({"addition_embed_type": "text_image"}, "'text_image' for addition_embed_type"),
        ({"class_embed_type": "timestep"}, "'timestep' for class_embed_type"),
        ({"resnet_skip_time_act": True}, "time_embedding_act_fn"),
        ({"layers_per_block": [1, 1, 1]}, "layers_per_block"),
        ({"attention_head_dim": [4, 8]}, "attention_head_dim"),
        ({"out_channels": 4}, "4 for out_channels"),
        ({"cross_attention_dim": 48}, "48 for cross_attention_dim"),
        ({"addition_embed_type_num_heads": 5}, "5 for addition_embed_type_num_heads"),
        ({"norm_num_groups": 16}, "num_groups 16"),
        ({"layers_per_block": "1"}, "layers_per_block"),
        ({"sample_size": 0}, "0 for sample_size"),
        ({"sample_size": 7}, "7"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"encoder_hid_dim": "wide"}, "encoder_hid_dim"),
        ({"new_field": {"a": 1}}, "new_field"),
        ({"_class_name": "UNet2DModel"}, "UNet2DModel"),
        ({"block_out_channels": None}, "lacks block_out_channels"),
        ({"cross_attention_norm": None}, "has no cross_attention_norm"),
    ],
    ids=str,
)
def test_unet_fields(first, tmp_path, change, message):
    change_json(first / "unet/config.json", **change)
    assert message in refused(tmp_path, first)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "'EulerDiscreteScheduler'"),
        ({"beta_schedule": "linear"}, "'linear' for beta_schedule"),
        ({"num_train_timesteps": 500}, "500 for num_train_timesteps"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"timestep_spacing": "trailing"}, "'trailing' for timestep_spacing"),
        ({"variance_type": "fixed_small_log"}, "'fixed_small_log' for variance_type"),
        ({"prediction_type": "flow"}, "'flow' for prediction_type"),
        ({"dynamic_thresholding_ratio": 2}, "2 for dynamic_thresholding_ratio"),
        ({"sample_max_value": 0.5}, "0.5 for sample_max_value"),
        ({"beta_schedule": None}, "'linear' for beta_schedule"),
    ],
    ids=str,
)
def test_scheduler_fields(first, tmp_path, change, message):
    change_json(first / "scheduler/scheduler_config.json", **change)
    assert message in refused(tmp_path, first)


def test_noising_scheduler(tmp_path):
    second = shutil.copytree(SECOND, tmp_path / "second")
    change_json(second / "image_noising_scheduler/scheduler_config.json", beta_schedule="linear")
    assert "image_noising_scheduler" in refused(tmp_path, second)


def test_older_files_lack_fields(first, tmp_path):
    """The first files of DeepFloyd IF do not say how the text is projected."""
    change_json(first / "unet/config.json", encoder_hid_dim_type=None)
    convert([str(first)], tmp_path / "out")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "dtype"])
def test_tensors(first, tmp_path, change):
    tensors = load_file(first / UNET)
    name = "mid_block.attentions.0.to_out.0.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["mid_block.attentions.0.to_out.9.weight"] = np.zeros(3, np.float32)
    elif change == "shape":
        tensors[name] = np.zeros((16, 8), np.float32)
    else:
        tensors[name] = np.zeros((16, 16), np.int32)
    save_file(tensors, first / UNET)
    message = refused(tmp_path, first)
    assert (
        "to_out" in message and {"shape": "[16, 8], expected [16, 16]", "dtype": "I32"}.get(change, change) in message
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(first, tmp_path, value):
    tensors = load_file(first / UNET)
    tensors["conv_in.bias"][3] = value
    save_file(tensors, first / UNET)
    assert f"conv_in.bias in {first / UNET}" in refused(tmp_path, first)


def test_a_license_in_another_encoding(first, tmp_path):
    (first / "LICENSE").write_bytes("für Forschung".encode("latin-1"))
    convert([str(first)], tmp_path / "out")
    assert (tmp_path / "out/LICENSE").read_bytes() == (first / "LICENSE").read_bytes()
    shutil.rmtree(tmp_path / "out")
    path = first / "feature_extractor/preprocessor_config.json"
    path.write_bytes(path.read_bytes() + b"\xff")
    assert str(path) in refused(tmp_path, first)


def test_without_a_text_encoder(first, tmp_path):
    shutil.rmtree(first / "text_encoder")
    assert "has no text encoder" in refused(tmp_path, first)
    change_json(first / "model_index.json", text_encoder=None)
    assert f"{first / 'model_index.json'} names no text_encoder" in refused(tmp_path, first)


def test_a_second_stage_without_weights_of_its_text_encoder(first, tmp_path, caplog):
    second = shutil.copytree(SECOND, tmp_path / "second")
    (second / "text_encoder/model.safetensors").unlink()
    change_json(second / "text_encoder/config.json", num_layers=3)
    assert "num_layers 3 instead of 1" in refused(tmp_path, first, second)
    change_json(second / "text_encoder/config.json", num_layers=1)
    convert([str(first), str(second)], tmp_path / "out")
    assert any("were not compared" in record.getMessage() for record in caplog.records)


def test_text_encoders_that_do_not_fit(first, tmp_path):
    shutil.rmtree(first / "text_encoder")
    shutil.copytree(SHAPES_ENCODER, first / "text_encoder")
    message = refused(tmp_path, first)
    assert "width 64" in message and "takes 24" in message
    change_json(first / "text_encoder/config.json", d_model=32)
    message = refused(tmp_path, first)
    assert str(first / "text_encoder") in message and "unfinished" not in message


def test_a_pipeline_is_no_cascade(tmp_path):
    """Where stages are expected, the sentence says how to convert it."""
    with pytest.raises(ConfigError, match="imagen convert --from"):
        find_stages(FIRST)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--from"),
        ([f"--from={FIRST}"], "--out"),
        ([f"--from={FIRST}", "--stages=shapes", "--out=OUT"], "either --from"),
        (["--stages=shapes", "--out=OUT"], "--to=diffusers"),
        (["--stages=shapes", "--to=diffusers", "--out=OUT"], "if_unet"),
        (["--stages=shapes", "--to=onnx", "--out=OUT"], "onnx"),
        ([f"--from={FIRST}", "--to=diffusers", "--out=OUT"], "--to"),
        ([f"--from={FIRST}", "--out=gs://bucket/out"], "bucket"),
        ([f"--from={FIRST / 'unet'}", "--out=OUT"], "one part of a pipeline"),
        ([f"--from={FIRST / 'README.md'}", "--out=OUT"], "is a file"),
        (["--from=nowhere", "--out=OUT"], "neither a folder nor ORG/NAME"),
        ([f"--from={FIRST},{SECOND}", "--low_res_size=8", "--out=OUT"], "--low_res_size=8 is for"),
        ([f"--from={SECOND}", "--low_res_size=32", "--out=OUT"], "32"),
        (["--stages=shapes", "--to=diffusers", "--low_res_size=8", "--out=OUT"], "are for --from"),
    ],
    ids=str,
)
def test_wrong_use_is_one_sentence(tmp_path, capsys, arguments, message):
    assert run_command("convert", *(argument.replace("OUT", str(tmp_path / "out")) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert contents(tmp_path) == {}
