"""What the stages of a pipeline get as their text."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import ImagenPipeline
from imagen_jax.datasets.captions import training_captions
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages import stage as stages
from imagen_jax.stages.precompute_text import embed
from imagen_jax.stages.text import PromptEncoder, make_encoder
from imagen_jax.text.encoder import TextCondition
from tests.helpers.configs import base_config, one_device, perturbed_params, sr_config

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "two blue squares", "a ring"]
SCALE = {"sampling.guidance_scale": 3.0}


@pytest.fixture(scope="module")
def trained():
    """Three stages of one text encoder."""
    configs = [base_config(**SCALE), sr_config(**SCALE), sr_config(image_size=32, low_res_size=16, **SCALE)]
    return [TrainedStage(stage, perturbed_params(stage), 0) for stage in map(stages.build, configs)]


@pytest.fixture(scope="module")
def pipeline(trained):
    pipeline = ImagenPipeline(trained, one_device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline(PROMPTS).stages


def same(images, others):
    for a, b in zip(images, others, strict=True):
        # programs of other batch sizes and text sources may round differently
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_prompts_are_encoded_once(trained):
    """For three stages."""
    encoder, rows = make_encoder(trained[0].stage.config.text), []

    def encode(params, tokens, mask):
        jax.debug.callback(lambda mask: rows.append(len(mask)), mask)
        return encoder.encode(params, tokens, mask)

    counted = PromptEncoder(dataclasses.replace(encoder, encode=encode), one_device())
    ImagenPipeline(trained, one_device(), [counted] * 3)(PROMPTS[:1])
    jax.effects_barrier()
    assert rows == [1]


def test_prompt_embeds(pipeline, images):
    text = pipeline.encode_prompt(PROMPTS)
    same(pipeline(prompt_embeds=text).stages, images)
    same(pipeline(prompt_embeds=[text] * 3, batch_size=2).stages[:1], pipeline(PROMPTS, batch_size=2).stages[:1])


def test_pipeline_without_encoder(trained, pipeline, images):
    bare = ImagenPipeline(trained, one_device(), [None] * 3)
    same(bare(prompt_embeds=pipeline.encode_prompt(PROMPTS)).stages, images)
    with pytest.raises(ConfigError, match="prompt_embeds"):
        bare(PROMPTS)


def test_negative_prompt(pipeline, images):
    others = pipeline(PROMPTS, negative_prompt="a blue ring").stages
    same(pipeline(PROMPTS, negative_prompt=["a blue ring"] * 3).stages, others)
    negative = pipeline.encode_prompt("a blue ring")
    same(pipeline(PROMPTS, negative_prompt_embeds=negative).stages, others)
    assert all(np.abs(a.astype(int) - b.astype(int)).max() > 1 for a, b in zip(others, images, strict=True))
    mixed = pipeline(PROMPTS, negative_prompt=["a blue ring", "a cross", "a blue ring"]).stages
    assert np.abs(mixed[0][::2].astype(int) - others[0][::2].astype(int)).max() <= 1
    assert np.abs(mixed[0][1].astype(int) - others[0][1].astype(int)).max() > 1


def test_negative_prompt_cancels_equal_prompt(pipeline):
    """Guidance from a text to itself is no guidance."""
    cancelled = pipeline(PROMPTS, negative_prompt=PROMPTS).images
    unguided = pipeline(PROMPTS, guidance_scale=1.0).images
    assert np.abs(cancelled.astype(int) - unguided.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "arguments, key",
    [
        ({"prompts": PROMPTS, "negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for 3"),
        ({"prompts": PROMPTS, "negative_prompt": 3}, "negative_prompt"),
        ({"prompts": PROMPTS, "negative_prompt": "a", "guidance_scale": 1.0}, "negative_prompt has no effect"),
        ({}, "prompts or prompt_embeds"),
        ({"prompt_embeds": np.zeros((3, 24, 64))}, "prompt_embeds"),
        ({"prompt_embeds": TextCondition(np.zeros((3, 24, 65)), np.ones((3, 24), bool))}, r"\[3, 24, 65\]"),
        ({"prompt_embeds": TextCondition(np.zeros((3, 24, 64)), np.ones((3, 23), bool))}, "mask"),
        ({"prompt_embeds": [TextCondition(np.zeros((3, 24, 64)), np.ones((3, 24), bool))] * 2}, "3 stages"),
    ],
    ids=str,
)
def test_texts_that_do_not_fit(pipeline, arguments, key):
    with pytest.raises(ConfigError, match=key):
        pipeline(**arguments)


def test_cached_embeddings(trained, base_folder, sr_folder, tmp_path, monkeypatch):
    """Prompts of the data set are looked up; others are encoded."""
    config = base_config(**{"data.num_examples": 40})
    embed(config, tmp_path / "cache")
    (caption, *_) = training_captions(config)[0]
    cached = ImagenPipeline.from_pretrained([base_folder, sr_folder], one_device(), text_cache=tmp_path / "cache")
    plain = ImagenPipeline.from_pretrained([base_folder, sr_folder], one_device())
    with monkeypatch.context() as patch:
        patch.setattr(cached._encoders[0]._others, "_encode", lambda *args: pytest.fail("a prompt was encoded"))
        looked_up = cached(caption)
    # embeddings are stored in bfloat16
    assert np.abs(looked_up.stages[0].astype(int) - plain(caption).stages[0].astype(int)).mean() < 4
    same(cached("a prompt that is in no data set").stages, plain("a prompt that is in no data set").stages)
