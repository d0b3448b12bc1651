"""Edits by a changed prompt, by the cascade that ships."""

import numpy as np
import pytest

from imagen_jax.datasets.shapes.detect import detect
from imagen_jax.datasets.shapes.render import render
from imagen_jax.datasets.shapes.scenes import Scene, SceneObject
from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.editor import ImagenEditor
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.prompt_edit import PromptEdit
from tests.helpers.configs import one_device

CIRCLE = SceneObject("circle", "red", "large", 0.25, 0.5, 0.21)
SQUARE = SceneObject("square", "yellow", "small", 0.75, 0.5, 0.15)
SOURCE = "a red circle left of a yellow square on a gray background"
PROMPT = "a green circle left of a yellow square on a gray background"
QUICK = {"strength": 0.7, "num_inference_steps": [10, 4]}


@pytest.fixture(scope="module")
def image():
    return render(Scene((CIRCLE, SQUARE), "gray"), 64)


@pytest.fixture(scope="module")
def editor():
    pipeline = ImagenPipeline.from_pretrained("shapes", one_device())
    pipeline.set_progress_bar_config(disable=True)
    return ImagenEditor(pipeline)


@pytest.fixture(scope="module")
def edited(editor, image):
    """The image with both prompts the same, and with a changed one; in one batch."""
    return editor.edit(image, SOURCE, [SOURCE, PROMPT], seed=[3, 3], **QUICK)


def appearances(image):
    return {(item.color, item.shape, item.size) for item in detect(image).objects}


def test_with_equal_prompts_the_image_comes_back(edited, image):
    np.testing.assert_array_equal(edited.images[0], image)


def test_with_equal_prompts_it_comes_back_without_blending(editor, image):
    edited = editor.edit(image, SOURCE, SOURCE, blend=False, **QUICK)
    # to rounding: both walks are of one batch
    assert np.abs(edited.images[0].astype(int) - image).max() <= 1


def test_one_word_changes_one_object(edited, image):
    assert appearances(edited.images[1]) == {("green", "circle", "large"), ("yellow", "square", "small")}
    assert appearances(image) == {("red", "circle", "large"), ("yellow", "square", "small")}
    # right of the circle all pixels are the same to the bit
    np.testing.assert_array_equal(edited.images[1][:, 40:], image[:, 40:])


def test_an_edit_does_not_depend_on_its_batch(editor, edited, image):
    alone = editor.edit(image, [SOURCE] * 2, PROMPT, seed=[8, 3], batch_size=1, **QUICK)
    np.testing.assert_allclose(alone.images[1].astype(int), edited.images[1], atol=1)
    counted = editor.edit(image, SOURCE, [PROMPT] * 2, seed=2, **QUICK)
    np.testing.assert_allclose(counted.images[1].astype(int), edited.images[1], atol=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_steps": 1.2}, "cross_steps 1.2"),
        ({"self_steps": -0.1}, "self_steps -0.1"),
        ({"source_prompt": ["a", "b", "c"], "prompt": ["a", "b"]}, "3 texts and prompt 2"),
        ({"source_prompt": 3}, "source_prompt"),
        ({"prompt_embeds": object()}, "prompt_embeds"),
        ({"strength": 2.0}, "strength 2.0"),
    ],
)
def test_bad_input_is_named(editor, image, changes, message):
    with pytest.raises(ConfigError, match=message):
        editor.edit(**{"image": image, "source_prompt": SOURCE, "prompt": PROMPT} | changes)


def test_settings_of_each_image_are_those_of_both_walks():
    edit = PromptEdit.of(["a", "b"], "c", 0.5, 0.5, True)
    assert edit.texts == ["a", "c", "b", "c"]
    given = {"seed": [4, 7], "negative_prompt": ["x", "y"], "guidance_scale": np.array([[1.0, 2.0]]), "batch_size": 3}
    settings = edit.settings(given, [1.5])
    assert settings["seed"] == [4, 4, 7, 7] and settings["negative_prompt"] == ["x", "x", "y", "y"]
    np.testing.assert_array_equal(settings["guidance_scale"], [[1, 1, 2, 2]])
    assert settings["batch_size"] == 6
    assert edit.settings({"seed": 5}, [1.5])["seed"] == [5, 5, 6, 6]


def test_guidance_leads_from_the_source_prompt():
    edit = PromptEdit.of(["a", "b"], "c", 0.5, 0.5, True)
    settings = edit.settings({}, [1.5, 1.0])
    assert settings["guidance_scale"] == [2.0, 1.0] and settings["negative_prompt"] == ["a", "a", "b", "b"]
    assert edit.settings({"negative_prompt": "x"}, [1.5, 1.0])["negative_prompt"] == "x"
    assert "negative_prompt" not in edit.settings({}, [1.0, 1.0])
