"""A stage of latents, served as one of pixels is: a server in a process of its own, which samples and edits."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.loading import TrainedStage
from imagen_jax.stages import stage as stages
from tests.helpers.configs import latent_config, one_device, perturbed_params
from tests.helpers.servers import base64_of, finish, serve

PROMPT, SEED, SIDE = "a red circle", 3, 8

pytestmark = pytest.mark.slow  # the server compiles what it samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents") / "published"
    stage = stages.build(latent_config(""))
    ImagenPipeline([TrainedStage(stage, perturbed_params(stage), 1)], one_device()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    with serve(tmp_path_factory.mktemp("server"), f"--stages={folder}", "--batch_sizes=1") as server:
        with httpx.Client(base_url=server.url, timeout=300) as client:
            yield client
        assert server.stop() == 0
        assert "Traceback" not in server.log()


def image_of(client, url):
    with Image.open(io.BytesIO(client.get(url).content)) as image:
        return np.asarray(image.convert("RGB"))


def png(pixels):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return base64_of(data.getvalue())


def test_image_is_that_of_the_pipeline(client, folder):
    job = finish(client, {"prompts": PROMPT, "seeds": SEED})
    image = image_of(client, job["images"][0]["url"])
    alone = ImagenPipeline.from_pretrained(folder, one_device())(PROMPT, seed=SEED).images[0]
    assert image.shape == (SIDE, SIDE, 3)
    assert np.abs(image.astype(int) - alone).max() <= 1
    made = {"prompt": PROMPT, "n": 1, "response_format": "b64_json"}
    assert client.post("/v1/images/generations", json=made).status_code == 200


def test_edits_begin_with_the_latents_of_an_image(client, folder):
    given = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    edit = {"kind": "image_to_image", "image": png(given), "strength": 0.5}
    image = image_of(client, finish(client, {"prompts": PROMPT, "seeds": SEED, "edit": edit})["images"][0]["url"])
    assert np.any(image != given)
    # another image gives another result
    other = {**edit, "image": png(255 - given)}
    again = image_of(client, finish(client, {"prompts": PROMPT, "seeds": SEED, "edit": other})["images"][0]["url"])
    assert np.any(image != again)


def test_inpainting_keeps_the_pixels_outside_of_the_mask(client):
    given = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:4, :4] = 255
    edit = {"kind": "inpaint", "image": png(given), "mask": png(mask), "feather": 0}
    image = image_of(client, finish(client, {"prompts": PROMPT, "seeds": SEED, "edit": edit})["images"][0]["url"])
    np.testing.assert_array_equal(image[mask == 0], given[mask == 0])
    assert np.any(image[mask > 0] != given[mask > 0])
