"""A pytest plugin: each tiny stage is built, and trained, once a session."""

import pytest

from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.stages import stage as stages
from imagen_jax.training.loop import train
from tests.helpers import small_network
from tests.helpers.configs import base_config, codec_config, latent_config, sr_config


@pytest.fixture(scope="session")
def base_stage():
    return stages.build(base_config())


@pytest.fixture(scope="session")
def sr_stage():
    return stages.build(sr_config())


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A base stage, trained in one go."""
    return trained_without_a_break(tmp_path_factory, "base", base_config())


@pytest.fixture(scope="session")
def sr_folder(tmp_path_factory):
    """A super-resolution stage, trained in one go."""
    return trained_without_a_break(tmp_path_factory, "sr", sr_config())


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory):
    """A codec, trained in one go."""
    return trained_without_a_break(tmp_path_factory, "codec", codec_config())


@pytest.fixture(scope="session")
def latent_folder(codec_folder, tmp_path_factory):
    """A base stage of that codec's latents, trained in one go."""
    return trained_without_a_break(tmp_path_factory, "latent", latent_config(codec_folder))


def trained_without_a_break(tmp_path_factory, name, config):
    folder = tmp_path_factory.mktemp("unbroken") / name
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory):
    """Random weights of a small network, which is in the place of EfficientNet-Lite0 for a module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        small_network.install(patch)
        yield str(small_network.write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors"))


@pytest.fixture(scope="session")
def published_folder(base_folder, sr_folder, tmp_path_factory):
    """Both stages in one folder, whose weights are split over several files."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    pipeline = ImagenPipeline.from_pretrained([base_folder, sr_folder])
    pipeline.save_pretrained(folder, license="apache-2.0", prompts=["a red circle", "a ring"], max_shard_size=20_000)
    return folder
