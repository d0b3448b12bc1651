"""A cascade that begins at a later stage, from images of the stages before."""

import dataclasses

import numpy as np
import pytest

from imagen_jax.errors import ConfigError
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from tests.helpers.configs import eight_devices, one_device

pytest_plugins = ("tests.helpers.fixtures",)
PROMPTS = ["a red circle", "a ring", "two blue squares above a ring", "", "a small green square"]


@pytest.fixture(scope="module", params=[one_device, eight_devices])
def cascade(request, base_folder, sr_folder):
    cascade = ImagenPipeline.from_pretrained([base_folder, sr_folder], request.param())
    cascade.set_progress_bar_config(disable=True)
    return cascade


def request_of(**changes):
    return SampleRequest(Texts(PROMPTS), seed=3, batch_size=4, **changes)


def test_later_stages_equal_a_full_run(cascade):
    """To the bit, the images of a padded batch too."""
    base, full = cascade.sample_all(request_of())
    batches = dict(cascade.iter_low_res(request_of(last_stage=0)))
    assert list(batches) == [0, 4]
    low_res = np.concatenate(list(batches.values()))
    assert low_res.dtype == np.float32 and low_res.shape == base.shape
    (images,) = cascade.sample_all(request_of(low_res=low_res, first_stage=1))
    np.testing.assert_array_equal(images, full)
    (alone,) = cascade.sample_all(request_of(last_stage=0))
    np.testing.assert_array_equal(alone, base)


def test_rounded_images_are_other_ones(cascade):
    """That images of the stages before are kept as floats is needed."""
    base, full = cascade.sample_all(request_of())
    rounded = base.astype(np.float32) / 127.5 - 1
    (images,) = cascade.sample_all(request_of(low_res=rounded, first_stage=1))
    assert (images != full).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"first_stage": 1}, "low_res"),
        ({"first_stage": 2}, "stages 0 to 1"),
        ({"last_stage": 2}, "stages 0 to 1"),
        ({"first_stage": 1, "last_stage": 0}, "stages 0 to 1"),
        ({"first_stage": 1, "low_res": np.zeros((4, 32, 32, 3), np.float32)}, "4 images for 5 prompts"),
    ],
)
def test_stages_that_do_not_fit_are_refused(cascade, changes, words):
    with pytest.raises(ConfigError, match=words):
        cascade.sample_all(dataclasses.replace(request_of(), **changes))
