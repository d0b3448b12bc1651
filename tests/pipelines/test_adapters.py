"""Adapters are loaded into a pipeline, scaled, combined and removed, without compiling and with exact files."""

import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages.adapter import split_adapter
from imagen_jax.stages.lora_files import FILE, write_lora
from imagen_jax.stages.stage import build
from imagen_jax.training.loop import train
from imagen_jax.training.to_lora import to_lora
from tests.helpers.configs import base_config

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "a small blue ring"]


@pytest.fixture(scope="module")
def run(base_folder, tmp_path_factory):
    """An adapter of all kernels of the base."""
    changes = {"adapter.kind": "lora", "adapter.rank": 3, "training.steps": 3, "optimizer.learning_rate": 0.1}
    folder = tmp_path_factory.mktemp("run") / "all"
    train(base_config(**changes, **{"training.init_from": str(base_folder)}), folder)
    return folder


@pytest.fixture(scope="module")
def files(run, base_stage, sr_stage, tmp_path_factory):
    """Files of that adapter, of a random one of one kernel of the base, and of one of super-resolution."""
    folder = tmp_path_factory.mktemp("files")
    to_lora(run, folder / "all")
    write_random(folder / "out", base_stage, **{"adapter.targets": ("^out$",), "adapter.alpha": 6.0})
    write_random(folder / "sr", sr_stage)
    return folder


def write_random(folder, stage, **changes):
    """Writes an adapter of rank 3 with random factors, for a stage."""
    config = stage.config.with_changes(
        {"adapter.kind": "lora", "adapter.rank": 3, "training.init_from": "base", **changes}
    )
    params = jax.eval_shape(build(config, stage.text_width).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), split_adapter(params)[0])
    write_lora(folder, adapter, config, "", 1)


@pytest.fixture
def pipe(base_folder, sr_folder):
    return ImagenPipeline.from_pretrained([base_folder, sr_folder])


def images(pipe, seed=0):
    return pipe(PROMPTS, seed=seed).stages


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_file_samples_what_the_run_samples(pipe, run, files, sr_folder):
    before = images(pipe)
    after = images(pipe.load_lora(files / "all"))
    assert not np.array_equal(before[0], after[0])
    assert_same(after, images(ImagenPipeline.from_pretrained([run, sr_folder])))


def test_scale_0_and_unloading_are_the_pipeline_without(pipe, files):
    before, params, checksum = images(pipe), pipe.stages[0].params, pipe.stages[0].checksum
    pipe.load_lora(files / "all", scale=0)
    assert_same(images(pipe), before)
    assert pipe.stages[0].checksum == checksum
    pipe.set_lora_scale("all", 1)
    assert not np.array_equal(images(pipe)[0], before[0]) and pipe.stages[0].checksum != checksum
    pipe.unload_lora("all")
    assert pipe.lora_scales == {} and pipe.stages[0].params is params
    assert_same(images(pipe), before)


def test_changes_add_up(pipe, files):
    """The kernel with two adapters is the kernel plus both products, each with its scale and alpha / rank."""
    kernel = np.asarray(pipe.stages[0].params["out"]["kernel"], np.float64)
    pipe.load_lora(files / "all", 0.5).load_lora(files / "out", -2.0, name="other")
    assert pipe.lora_scales == {"all": 0.5, "other": -2.0}
    expected = kernel
    for name, scale in (("all", 0.5), ("out", -2.0 * 2)):
        tensors = load_file(files / name / FILE)
        a, b = (tensors[f"unet.out.lora_{half}.weight"].astype(np.float64) for half in "AB")
        expected = expected + scale * np.einsum("rihw,or->hwio", a, b[:, :, 0, 0])
    np.testing.assert_allclose(np.asarray(pipe.stages[0].params["out"]["kernel"]), expected, rtol=0, atol=1e-6)
    pipe.unload_lora()
    np.testing.assert_array_equal(np.asarray(pipe.stages[0].params["out"]["kernel"]), kernel)


def test_nothing_is_compiled_for_other_scales(pipe, files, monkeypatch):
    pipe.load_lora(files / "all").load_lora(files / "sr")
    images(pipe)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    for scale in (0.3, 0.9):
        pipe.set_lora_scale("all", scale).set_lora_scale("sr", -scale)
        images(pipe, seed=3)
    assert compiled == []


def test_one_folder_for_all_stages(pipe, files, tmp_path):
    for index, name in enumerate(("all", "sr")):
        shutil.copytree(files / name, tmp_path / "both" / f"stage_{index}")
    both = images(pipe.load_lora(tmp_path / "both", 0.7))
    pipe.unload_lora()
    assert_same(both, images(pipe.load_lora(files / "all", 0.7).load_lora(files / "sr", 0.7)))


def test_split_devices(pipe, files, base_folder, sr_folder):
    expected = images(pipe.load_lora(files / "all"))
    split = ImagenPipeline.from_pretrained([base_folder, sr_folder], mesh={"data": 2, "fsdp": 4})
    for one, other in zip(images(split.load_lora(files / "all")), expected, strict=True):
        np.testing.assert_allclose(one.astype(int), other.astype(int), atol=1)


def test_names(pipe, files):
    pipe.load_lora(files / "all")
    with pytest.raises(ConfigError, match="'all' is loaded already"):
        pipe.load_lora(files / "all")
    for act in (lambda: pipe.set_lora_scale("al", 1), lambda: pipe.unload_lora("al")):
        with pytest.raises(ConfigError, match=r"adapter 'al'.*all"):
            act()
    for scale in (float("nan"), 1e9, "1", True):
        with pytest.raises(ConfigError, match="is not a number in"):
            pipe.set_lora_scale("all", scale)
    with pytest.raises(ConfigError, match="there is no stage 2"):
        pipe.load_lora(files / "out", stage=2)
    with pytest.raises(ConfigError, match="images of 16 by the network.*has no conditioning"):
        pipe.load_lora(files / "sr", stage=0)
    with pytest.raises(ConfigError, match="has no adapter"):
        pipe.load_lora(files)


def write_foreign(path, tensors, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("names", ["peft", "lora.down", "processor"])
def test_files_of_other_programs(names, pipe, files, tmp_path):
    """With the names and settings that PEFT, diffusers and its earlier versions write, the images are the same."""
    tensors = load_file(files / "out" / FILE)
    expected = images(pipe.load_lora(files / "out"))
    pipe.unload_lora()
    ends = {"peft": ("lora_A", "lora_B"), "lora.down": ("lora.down", "lora.up"), "processor": ("lora_A", "lora_B")}
    renamed = {}
    for name, tensor in tensors.items():
        for end, other in zip(("lora_A", "lora_B"), ends[names], strict=True):
            name = name.replace(end, other)
        renamed[f"base_model.model.{name.removeprefix('unet.')}" if names == "processor" else name] = tensor
    if names == "lora.down":
        renamed["unet.out.alpha"] = np.array(6, np.float32)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"out": 6.0}})}
    path = write_foreign(tmp_path / "foreign.safetensors", renamed, None if names == "lora.down" else metadata)
    assert_same(images(pipe.load_lora(path)), expected)


def test_files_that_are_no_adapter_of_the_stage(pipe, files, tmp_path):
    tensors = load_file(files / "out" / FILE)
    a, b = "unet.out.lora_A.weight", "unet.out.lora_B.weight"
    nan = tensors[a].copy()
    nan.flat[3] = np.nan
    cases = {
        "not finite": {**tensors, a: nan},
        "no unet_2.out|no down.9": {a.replace("out", "down.9"): tensors[a], b.replace("out", "down.9"): tensors[b]},
        "one half": {a: tensors[a]},
        r"has \(": {a: tensors[a][:, :-1], b: tensors[b]},
        "text_encoder": {**tensors, "text_encoder.layers.0.lora_A.weight": tensors[a]},
        "lora_magnitude_vector": {**tensors, "unet.out.lora_magnitude_vector": tensors[b]},
    }
    for message, changed in cases.items():
        path = write_foreign(tmp_path / "foreign.safetensors", {key: value.copy() for key, value in changed.items()})
        with pytest.raises(ConfigError, match=message):
            pipe.load_lora(path, stage=0)
    assert pipe.lora_scales == {}


def test_any_flipped_bit_is_refused(pipe, files, tmp_path):
    """In a file of ours, one bit in each of 60 bytes of the header and of the tensors."""
    data = (files / "out" / FILE).read_bytes()
    header = struct.unpack("<Q", data[:8])[0] + 8
    rng, expected = np.random.default_rng(0), pipe.load_lora(files / "out").stages[0].checksum
    pipe.unload_lora()
    same = 0
    for position in [*rng.integers(0, header, 40), *rng.integers(header, len(data), 20)]:
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / "flipped.safetensors"
        path.write_bytes(flipped)
        try:
            pipe.load_lora(path, stage=0)
        except ConfigError as error:
            assert re.search("flipped.safetensors", str(error))
            continue
        same += 1  # the format's name in the header, which is not read
        assert expected and flipped[:header] != data[:header] and position < header
        pipe.unload_lora()
    assert same < 4
