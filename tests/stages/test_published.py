"""Published folders: whatever a damaged or hostile one has, it is refused with one sentence, or is the same."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest

from imagen_jax.config.load import to_json
from imagen_jax.errors import ConfigError
from imagen_jax.io import checksums
from imagen_jax.parallel.sharding import with_shardings
from imagen_jax.pipelines.find_stages import CASCADES, find_stages
from imagen_jax.publishing.stage_files import write_stage
from imagen_jax.stages.published import INDEX, PublishedWeights, config_digest
from imagen_jax.stages.stage_folder import read_config
from tests.helpers.configs import one_device

FLIPS = 3  # in each file, and one in its last byte


def loaded(folder):
    """Returns all that a published cascade is read for: configs, steps, and the bytes of every parameter."""
    result = []
    for stage in find_stages(folder):
        weights = PublishedWeights(stage)
        params = weights.load(with_shardings(weights.shapes, one_device()))
        leaves = jax.tree_util.tree_leaves_with_path(params)
        arrays = [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]
        result.append((to_json(read_config(stage)), weights.step, weights.kind, weights.checksum, arrays))
    return result


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory):
    """The cascade that ships, with its weights in several files."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    for stage in find_stages("shapes"):
        weights = PublishedWeights(stage)
        params = weights.load(with_shardings(weights.shapes, one_device()))
        write_stage(folder / stage.name, read_config(stage), params, max_shard_size=500_000)
    for name in (INDEX, "README.md", "samples.png"):
        shutil.copy(CASCADES / "shapes" / name, folder)
    sign(folder)
    return folder


@pytest.fixture
def folder(split_folder, tmp_path):
    return shutil.copytree(split_folder, tmp_path / "tiny")


def refused(folder):
    """Returns the sentence with which a folder is refused."""
    with pytest.raises(ConfigError) as error:
        loaded(folder)
    assert "\n" not in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 800
    return str(error.value)


def sign(folder):
    """Writes the checksums of a folder's files anew."""
    checksums.write_shard(folder, 0, checksums.list_files(folder))
    checksums.merge_shards(folder, 1)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(folder):
    expected, unread = loaded(folder), {"README.md", "samples.png"}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        harmless = 0
        for position in {*range(0, len(data), len(data) // FLIPS + 1), len(data) - 1}:
            flipped = bytearray(data)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            try:
                assert loaded(folder) == expected
                harmless += 1
            except ConfigError as error:
                # a checksum that is flipped is one of another file; both are named
                assert name in str(error) or (name == checksums.MANIFEST and "checksum" in str(error))
        assert harmless == 0 or name in unread | {checksums.MANIFEST}
        path.write_bytes(data)
    assert loaded(folder) == expected


@pytest.mark.parametrize(
    "name", ["model_index.json", "stage_0/config.json", "stage_1/model.safetensors.index.json", "SHA256SUMS"]
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refused(folder)


def test_a_truncated_file_is_named(folder):
    path = next((folder / "stage_1").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    assert f"stage_1/{path.name}" in refused(folder)


def test_an_unlisted_file_is_named(folder):
    (folder / "stage_0" / "model-00009-of-00009.safetensors").write_bytes(b"")
    assert "stage_0/model-00009-of-00009.safetensors" in refused(folder)


def test_pickled_weights_are_refused(folder):
    for path in (folder / "stage_0").glob("model*"):
        path.unlink()
    (folder / "stage_0" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    sign(folder)
    assert "unpickling can run code" in refused(folder)


def test_pickled_weights_beside_others_are_refused(folder):
    (folder / "stage_0" / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    sign(folder)
    assert "pytorch_model.bin" in refused(folder)


@pytest.mark.parametrize("target", ["../stage_1/model.safetensors", "/etc/passwd", "config.json", "\x1b[2J"])
def test_weight_map_leads_nowhere_else(folder, target):
    index = folder / "stage_0" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={name: target for name in weight_map})
    sign(folder)
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("stage", ["..", "../tiny/stage_0", "/etc", "stage_0/../stage_1", "stage_00", "stage_\x1b"])
def test_index_leads_nowhere_else(folder, stage):
    stages = json.loads((folder / INDEX).read_text())["stages"]
    change(folder / INDEX, stages=[{**stages[0], "folder": stage}])
    sign(folder)
    assert INDEX in refused(folder)


@pytest.mark.parametrize("encoder", ["..", "/etc", "stage_0", "text_encoder/.."])
def test_text_encoder_is_inside(folder, encoder):
    stages = json.loads((folder / INDEX).read_text())["stages"]
    stages[0]["text_encoder"]["folder"] = encoder
    change(folder / INDEX, stages=stages)
    sign(folder)
    assert INDEX in refused(folder)


def test_checksums_lead_nowhere_else(folder):
    manifest = folder / checksums.MANIFEST
    manifest.write_text(manifest.read_text() + f"{'0' * 64}  stage_0/../../secret\n")
    assert "secret" in refused(folder)


def test_later_formats_ask_for_an_upgrade(folder):
    change(folder / INDEX, format=2, stages="of another kind")
    sign(folder)
    assert "upgrade" in refused(folder)


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0", "unet": ["diffusers", "UNet"]},
        {"_class_name": "\x1b[31m" * 100},
        ["unet"],
        {},
    ],
    ids=["diffusers", "control characters", "list", "empty"],
)
def test_folders_of_other_programs_are_refused(tmp_path, index):
    (tmp_path / "unet").mkdir()
    (tmp_path / INDEX).write_text(json.dumps(index))
    message = refused(tmp_path)
    assert INDEX in message and "imagen publish" in message


@pytest.mark.parametrize("value", [None, 0, "1", True, [], "x" * 10_000])
@pytest.mark.parametrize("key", ["format", "stages", "name", "_imagen_jax_version"])
def test_index_is_typed(folder, key, value):
    change(folder / INDEX, **{key: value})
    sign(folder)
    if key in ("name", "_imagen_jax_version") and isinstance(value, str):
        assert loaded(folder)
    else:
        assert INDEX in refused(folder)


def test_a_header_of_gigabytes_is_refused(folder):
    path = next((folder / "stage_0").glob("*.safetensors"))
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    sign(folder)
    assert path.name in refused(folder)


def test_split_weights_are_those_of_one_file(split_folder):
    configs, shipped = zip(*((config, arrays) for config, _, _, _, arrays in loaded("shapes")), strict=True)
    assert (configs, shipped) == tuple(zip(*((c, arrays) for c, _, _, _, arrays in loaded(split_folder)), strict=True))
    assert len(list((split_folder / "stage_0").glob("*.safetensors"))) > 2


def test_only_what_was_published_can_be_chosen(split_folder):
    stage = split_folder / "stage_0"
    step = PublishedWeights(stage, kind="ema").step
    with pytest.raises(ConfigError, match=f"step {step} alone, not 3"):
        PublishedWeights(stage, step=3)
    with pytest.raises(ConfigError, match="ema weights alone"):
        PublishedWeights(stage, kind="raw")
    assert PublishedWeights(stage, kind="ema", step=step).step == step


def test_weights_of_another_network_are_refused(folder):
    stage = PublishedWeights(folder / "stage_0")
    shapes = dict(stage.shapes)
    shapes.pop("conditioning")
    with pytest.raises(ConfigError, match="stage_0"):
        stage.load(with_shardings(shapes, one_device()))


@pytest.mark.parametrize("stage, digest", [("stage_0", "a1cdaab642eac711"), ("stage_1", "515cf226e43e5b43")])
def test_keys_that_are_younger_leave_the_digest_of_a_config(stage, digest):
    """Samples of an earlier version name it, and their folder is continued."""
    config = read_config(CASCADES / "shapes" / stage)
    assert config_digest(to_json(config)).startswith(digest)
    for key, value in [("diffusion.never_dropped", "star"), ("optimizer.skip_norm", 1.0), ("codec.scale_images", 2)]:
        assert not config_digest(to_json(config.with_changes({key: value}))).startswith(digest)
    refines = {"diffusion.low_res_vae": "vae", "low_res_size": config.image_size}
    assert not config_digest(to_json(config.with_changes(refines))).startswith(digest)
