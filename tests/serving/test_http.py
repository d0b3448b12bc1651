"""The HTTP API of `imagen serve`: a server in a process of its own, asked as clients would, and as attackers."""

import base64
import io
import json
import random
import re
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from imagen_jax.cli import serve as serve_command
from imagen_jax.cli.flags import CommandFlags
from imagen_jax.images import png
from imagen_jax.pipelines.image_record import parse_record
from imagen_jax.serving.http_limits import HttpLimits
from imagen_jax.serving.serve import ServeSettings, check_access
from tests.helpers.configs import ROOT
from tests.helpers.reader.blocks import read_blocks
from tests.helpers.reader.shell import split_commands
from tests.helpers.servers import base64_of, finish, read_events, serve

TOKEN, OTHER_TOKEN = "first-token-of-the-tests", "second-token-of-the-tests"
FRIEND = "https://friend.example"
PROMPT = "a red circle"
QUICK = {"num_inference_steps": 1}
LONG = {"prompts": PROMPT, "count": 8, "settings": {"num_inference_steps": 1000}}
LIMITS = HttpLimits()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = (f"--token={TOKEN},{OTHER_TOKEN}", f"--cors_origin={FRIEND}", "--batch_sizes=1", "--max_queued_images=64")
    with serve(tmp_path_factory.mktemp("server"), "--stages=shapes", "--num_inference_steps=2", *flags) as server:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def document(server):
    return httpx.get(f"{server.url}/openapi.json").json()


@pytest.fixture(scope="module")
def client(server, document):
    """A client; every response that it gets has to be as the OpenAPI document says."""

    def check(response):
        if "text/event-stream" in response.headers.get("content-type", ""):
            return
        response.read()
        check_documented(document, response)

    hooks = {"response": [check]}
    with httpx.Client(base_url=server.url, headers=bearer(TOKEN), event_hooks=hooks, timeout=120) as client:
        yield client


@pytest.fixture
def other(server):
    with httpx.Client(base_url=server.url, headers=bearer(OTHER_TOKEN), timeout=120) as other:
        yield other


@pytest.fixture(scope="module")
def official(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as official:
        yield official


@pytest.fixture
def busy(client):
    """A job that runs for as long as the test, and its id."""
    job_id = client.post("/v1/jobs", json=LONG).json()["id"]
    yield job_id
    client.delete(f"/v1/jobs/{job_id}")


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def check_documented(document, response):
    """Asserts that the document has the status of a response, and that an error has its form."""
    path, method = response.url.path, response.request.method.lower()
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].isprintable() and len(error["message"]) < 500
    for template, methods in document["paths"].items():
        pattern = re.sub(r"\\\{model(:path)?\\\}", ".*", re.escape(template))
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]*", pattern), path) and method in methods:
            assert str(response.status_code) in methods[method]["responses"], (method, path, response.status_code)


def refusal(response, status, param=None, code=None):
    """Asserts that a response is an error; returns its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    return error["message"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(*chunks, size=(1, 1)):
    """Returns a PNG file with these chunks after its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


# ---- jobs


def test_job_is_sampled(client):
    body = {"prompts": [PROMPT, "two <b>blue</b> squares"], "count": 2, "seeds": 2**64 - 1, "settings": [QUICK, {}]}
    job = finish(client, body)
    assert [image["prompt"] for image in job["images"]] == [PROMPT, PROMPT, body["prompts"][1], body["prompts"][1]]
    assert job["seeds"] == [2**64 - 1, 0, 1, 2]
    for image in job["images"]:
        file = client.get(image["url"])
        assert file.headers["content-type"] == "image/png"
        assert "immutable" in file.headers["cache-control"]
        record = parse_record(file.content, "image")
        assert (record.prompt, record.seed) == (image["prompt"], image["seed"])
        assert [part["num_inference_steps"] for part in record.sampling()] == [1, 2]
    made = client.post("/v1/settings", content=file.content, headers={"content-type": "image/png"}).json()
    assert (made["prompt"], made["seed"], made["same_model"]) == (body["prompts"][1], 2, True)
    assert [part["num_inference_steps"] for part in made["settings"]] == [1, 2]
    again = finish(client, {"prompts": made["prompt"], "seeds": made["seed"], "settings": made["settings"]})
    assert pixels(client.get(again["images"][0]["url"]).content) == pixels(file.content)


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.size, image.tobytes()


def test_job_is_the_same_with_a_key(client, other):
    body = {"prompts": PROMPT, "settings": QUICK}
    first, again = (client.post("/v1/jobs", json=body, headers={"idempotency-key": "one"}).json() for _ in range(2))
    assert first["id"] == again["id"] and first["seeds"] == again["seeds"]
    assert client.post("/v1/jobs", json={**body, "idempotency_key": "one"}).json()["id"] == first["id"]
    assert other.post("/v1/jobs", json={**body, "idempotency_key": "one"}).json()["id"] != first["id"]
    differing = client.post("/v1/jobs", json={**body, "idempotency_key": "two"}, headers={"idempotency-key": "one"})
    refusal(differing, 400, "idempotency_key")
    assert client.post("/v1/jobs", json={"prompts": "another", "idempotency_key": "one"}).status_code == 400


def test_events_tell_of_each_step(client):
    job = client.post("/v1/jobs", json={"prompts": PROMPT, "settings": {"num_inference_steps": 100}}).json()
    with client.stream("GET", job["events"]) as stream:
        assert stream.headers["x-accel-buffering"] == "no"
        events = [(name, json.loads(data)) for name, data in read_events(stream)]
    names = [name for name, _ in events]
    assert names[0] == "job" and names[-1] == "done" and names.count("image") == 1
    steps = [data for name, data in events if name == "step"]
    places = [(step["stage"], step["step"]) for step in steps]
    assert places == sorted(places) and all(0 <= step["fraction"] <= 1 for step in steps)
    previews = [data["images"] for name, data in events if name == "preview"]
    assert {pixels(base64.b64decode(images[0]["png"]))[0] for images in previews} <= {(32, 32), (64, 64)}
    assert steps and previews
    with client.stream("GET", job["events"]) as stream:  # whoever comes late gets the end
        assert [name for name, _ in read_events(stream)] == ["job", "done"]


def test_job_is_canceled(client):
    job = client.post("/v1/jobs", json=LONG).json()
    with client.stream("GET", job["events"]) as stream:
        events = read_events(stream)
        assert "step" in (name for name, _ in events)
        assert client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "canceled"
        name, data = list(events)[-1]
    assert name == "canceled" and json.loads(data)["status"] == "canceled"
    assert "canceled" in refusal(client.delete(f"/v1/jobs/{job['id']}"), 409, code="job_has_ended")
    refusal(client.delete(f"/v1/history/{'x' * 16}"), 404, code="no_such_job")


def test_history_has_pages_and_search(client):
    jobs = [finish(client, {"prompts": f"picture {index} of a zebra", "settings": QUICK}) for index in range(3)]
    page = client.get("/v1/history", params={"query": "zebra", "limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == [jobs[2]["id"], jobs[1]["id"]]
    rest = client.get("/v1/history", params={"query": "zebra", "limit": 2, "before": page["next"]}).json()
    assert [job["id"] for job in rest["jobs"]] == [jobs[0]["id"]] and rest["next"] is None
    assert client.get("/v1/history", params={"query": "%"}).json()["jobs"] == []
    assert client.delete(f"/v1/history/{jobs[0]['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{jobs[0]['id']}").status_code == 404
    assert client.get(jobs[0]["images"][0]["url"]).status_code == 404


def test_job_that_runs_is_kept(client, busy):
    refusal(client.delete(f"/v1/history/{busy}"), 409, code="job_is_active")


def test_full_queue_is_refused(client, busy, official):
    jobs = []
    while True:
        response = client.post("/v1/jobs", json=LONG)
        if response.status_code != 202:
            break
        jobs.append(response.json()["id"])
    refusal(response, 429, code="queue_full")
    assert int(response.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError) as refused:
        official.images.generate(prompt=PROMPT, n=64)
    assert refused.value.code == "queue_full" and refused.value.response.headers["retry-after"]
    positions = [client.get(f"/v1/jobs/{job}").json()["position"] for job in jobs]
    assert positions == sorted(positions)
    for job in jobs:
        assert client.delete(f"/v1/jobs/{job}").json()["status"] == "canceled"


# ---- OpenAI's client


def test_openai_client_gets_images(official, server):
    response = official.images.generate(
        model="shapes", prompt=PROMPT, n=2, size="64x64", response_format="b64_json", extra_body={"seed": 7}
    )
    files = [base64.b64decode(image.b64_json) for image in response.data]
    assert [parse_record(file, "image").seed for file in files] == [7, 8]
    assert [image.seed for image in response.data] == [7, 8]
    assert pixels(files[0])[0] == (64, 64)
    again = official.images.generate(prompt=PROMPT, n=2, response_format="url", extra_body={"seed": 7})
    assert [pixels(httpx.get(image.url).content) for image in again.data] == [pixels(file) for file in files]
    assert again.data[0].url.startswith(server.url)
    assert again.data[0].b64_json is None


def test_openai_client_gets_extensions(official):
    extensions = {"seed": 7, "negative_prompt": "a blue square", "settings": {**QUICK, "guidance_scale": 3.0}}
    image = official.images.generate(prompt=PROMPT, response_format="b64_json", extra_body=extensions).data[0]
    record = parse_record(base64.b64decode(image.b64_json), "image")
    assert record.negative_prompt == "a blue square"
    assert record.guidance == [3.0, 3.0]


def test_openai_client_lists_models(official):
    assert [model.id for model in official.models.list()] == ["shapes"]
    assert official.models.retrieve("shapes").owned_by == "imagen_jax"
    with pytest.raises(openai.NotFoundError) as refused:
        official.models.retrieve("dall-e-2")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(
    "kind, param, arguments",
    [
        (openai.BadRequestError, "n", {"n": LIMITS.count + 1}),
        (openai.BadRequestError, "n", {"n": 0}),
        (openai.BadRequestError, "size", {"size": "large"}),
        (openai.BadRequestError, "size", {"size": "9999x64"}),
        (openai.BadRequestError, "prompt", {"prompt": " "}),
        (openai.BadRequestError, "prompt", {"prompt": "a\0b"}),
        (openai.BadRequestError, "quality", {"quality": "hd"}),
        (openai.BadRequestError, "output_format", {"output_format": "webp"}),
        (openai.BadRequestError, "stream", {"stream": True}),
        (openai.BadRequestError, "seed", {"extra_body": {"seed": -1}}),
        (openai.BadRequestError, "seed", {"extra_body": {"seed": 0.5}}),
        (openai.BadRequestError, "settings.guidance", {"extra_body": {"settings": {"guidance": 1}}}),
        (openai.NotFoundError, "model", {"model": "dall-e-3"}),
    ],
)
def test_openai_client_raises_its_own_errors(official, kind, param, arguments):
    with pytest.raises(kind) as refused:
        official.images.generate(**{"prompt": PROMPT, **arguments})
    assert refused.value.param == param
    assert param.rpartition(".")[2] in str(refused.value)


def test_job_is_canceled_when_openai_client_leaves(client, server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=1) as hasty,
        pytest.raises(openai.APITimeoutError),
    ):
        hasty.images.generate(prompt="nobody waits", n=8, extra_body={"settings": {"num_inference_steps": 1000}})
    job = client.get("/v1/history", params={"query": "nobody waits"}).json()["jobs"][0]
    with client.stream("GET", job["events"]) as stream:
        assert list(read_events(stream))[-1][0] == "canceled"


def test_wrong_token_for_openai_client(server):
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.images.generate(prompt=PROMPT)
    assert refused.value.code == "invalid_api_key"


# ---- edits


def picture(**changes):
    """Returns a PNG file of 64×64 pixels in colors, with other settings of Pillow's `save`."""
    rows, columns = np.indices((64, 64))
    data = io.BytesIO()
    Image.fromarray(np.stack([rows * 4, columns * 4, rows + columns], -1).astype(np.uint8)).save(
        data, **{"format": "PNG"} | changes
    )
    return data.getvalue()


def mask_file(transparent=False):
    """Returns the PNG file of a mask of the upper left quarter: white, or transparent."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:32, :32] = 255
    pixels = np.dstack([np.zeros((64, 64, 3), np.uint8), 255 - mask]) if transparent else mask
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def check_kept(made, original):
    """Asserts that all but the masked quarter is that of the original, and the quarter is not."""
    made, original = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (made, original))
    kept = np.full((64, 64), True)
    kept[:32, :32] = False
    np.testing.assert_array_equal(made[kept], original[kept])
    assert np.abs(made[4:28, 4:28].astype(int) - original[4:28, 4:28]).mean() > 5


def test_job_edits_an_image_of_the_history(client, other):
    first = finish(client, {"prompts": PROMPT, "settings": QUICK})["images"][0]
    edit = {"kind": "inpaint", "image": first["url"], "mask": base64_of(mask_file())}
    body = {"prompts": "a blue square", "count": 2, "seeds": 3, "settings": QUICK, "edit": edit}
    job = finish(client, body)
    original = client.get(first["url"]).content
    for image in job["images"]:
        check_kept(client.get(image["url"]).content, original)
    assert job["edit"] | {"image": "", "mask": ""} == {
        "kind": "inpaint", "image": "", "mask": "", "strength": [1.0, 1.0], "resample": 1, "feather": None,
        "position": None, "source_prompt": None, "ends": None,
    }  # fmt: skip
    assert pixels(client.get(job["edit"]["image"]).content) == pixels(original)
    assert pixels(client.get(job["edit"]["mask"]).content) == pixels(mask_file())
    made = client.get(job["images"][0]["url"]).content
    settings = client.post("/v1/settings", content=made, headers={"content-type": "image/png"}).json()
    assert (settings["edit"]["kind"], settings["prompt"]) == ("inpaint", "a blue square")
    # what is edited belongs to the client, and is gone with the job
    name = urlsplit(first["url"]).path.rpartition("/")[2]
    response = other.post("/v1/jobs", json={**body, "edit": {**edit, "image": name}})
    refusal(response, 404, "edit.image", "no_such_image")
    path = urlsplit(job["edit"]["image"]).path
    assert other.get(path).status_code == 404
    again = finish(client, {**body, "edit": {"kind": "upscale", "image": path.rpartition("/")[2]}})
    assert [image["width"] for image in again["images"]] == [128, 128]
    assert client.delete(f"/v1/history/{job['id']}").status_code == 204
    assert client.get(path).status_code == 404


def test_job_edits_a_photo(client):
    photo = Image.open(io.BytesIO(picture())).resize((640, 640))
    data = io.BytesIO()
    photo.save(data, "JPEG")
    edit = {"kind": "image_to_image", "image": f"data:image/jpeg;base64,{base64_of(data.getvalue())}", "strength": 0.5}
    job = client.post("/v1/jobs", json={"prompts": "", "settings": {"num_inference_steps": 8}, "edit": edit}).json()
    with client.stream("GET", job["events"]) as stream:
        events = [(name, json.loads(data)) for name, data in read_events(stream)]
    assert events[-1][0] == "done" and "preview" in (name for name, _ in events)
    assert {data["steps"] for name, data in events if name == "step"} == {4}


@pytest.mark.parametrize(
    "status, param, edit",
    [
        (400, "edit.image", {"kind": "image_to_image", "image": "no base64"}),
        (400, "edit.image", {"kind": "image_to_image", "image": base64_of(b"GIF89a")}),
        (400, "edit.image", {"kind": "image_to_image", "image": base64_of(png_file(size=(65000, 65000)))}),
        (400, "edit.image", {"kind": "image_to_image", "image": base64_of(png_file(size=(4096, 4096)))}),
        (400, "edit.image", {"kind": "image_to_image", "image": base64_of(picture()[:-200])}),
        (404, "edit.image", {"kind": "image_to_image", "image": f"{'x' * 16}-0.png"}),
        (404, "edit.image", {"kind": "image_to_image", "image": "jobs.png"}),
        (400, "edit.mask", {"kind": "inpaint", "image": base64_of(picture())}),
        (400, "edit.mask", {"kind": "inpaint", "image": base64_of(picture()), "mask": base64_of(png_file())}),
        (400, "edit.image", {"kind": "image_to_image", "image": base64_of(picture()[:0])}),
        (400, "edit.kind", {"kind": "x", "image": base64_of(picture())}),
        (400, "x", {"kind": "upscale", "image": base64_of(picture()), "x": 1}),
        (400, "edit.strength", {"kind": "image_to_image", "image": base64_of(picture()), "strength": "1"}),
        (400, "edit.image", {"kind": "variations"}),
        (400, "edit.source_prompt", {"kind": "edit", "image": base64_of(picture())}),
        (400, "edit.source_prompt", {"kind": "edit", "image": base64_of(picture()), "source_prompt": PROMPT}),
        (400, "edit.ends", {"kind": "interpolate", "ends": ["a ring", 1]}),
        (400, "count", {"kind": "interpolate", "ends": [1, 2]}),
    ],
)
def test_wrong_edit_is_refused(client, status, param, edit):
    response = client.post("/v1/jobs", json={"prompts": PROMPT, "settings": QUICK, "edit": edit})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_job_changes_a_word(client):
    edit = {"kind": "edit", "image": base64_of(picture()), "source_prompt": "a red ring", "strength": 0.5}
    job = finish(client, {"prompts": "a blue ring", "settings": QUICK, "edit": edit})
    assert (job["status"], job["edit"]["source_prompt"], job["edit"]["strength"]) == ("done", "a red ring", [0.5, 0.5])
    assert [settings["sampler"] for settings in job["settings"]] == ["ddim", "ddim"]
    made = client.get(job["images"][0]["url"]).content
    settings = client.post("/v1/settings", content=made, headers={"content-type": "image/png"}).json()
    assert (settings["prompt"], settings["edit"]["source_prompt"]) == ("a blue ring", "a red ring")


def test_job_goes_from_end_to_end(client):
    edit = {"kind": "interpolate", "ends": [2**64 - 1, 3]}
    job = finish(client, {"prompts": PROMPT, "count": 3, "settings": QUICK, "edit": edit})
    assert (job["status"], job["edit"]["ends"], job["edit"]["image"]) == ("done", [2**64 - 1, 3], None)
    images = [pixels(client.get(image["url"]).content) for image in job["images"]]
    assert len(set(images)) == 3


def test_body_with_an_image_may_be_larger(client):
    edit = {"kind": "image_to_image", "image": "A" * 3 * LIMITS.body_bytes}
    refusal(client.post("/v1/jobs", json={"prompts": PROMPT, "edit": edit}), 400, "edit.image")
    edit["image"] = "A" * LIMITS.edit_bytes
    refusal(client.post("/v1/jobs", json={"prompts": PROMPT, "edit": edit}), 413, code="too_large")
    for large in (["A" * 1000] * 2000, "é" * 2**20, [[]] * 2**19):
        refusal(client.post("/v1/jobs", json={"prompts": large}), 413, code="too_large")
    refusal(client.post("/v1/images/generations", json={"prompt": "A" * 2**21}), 413, code="too_large")


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_openai_client_edits_images(official, transparent, as_list):
    image = ("image.png", picture())
    response = official.images.edit(
        model="shapes",
        image=[image] if as_list else image,
        mask=("mask.png", mask_file(transparent)),
        prompt="a blue square",
        n=2,
        size="64x64",
        response_format="b64_json",
        extra_body={"seed": 7},
    )
    files = [base64.b64decode(image.b64_json) for image in response.data]
    assert [image.seed for image in response.data] == [7, 8]
    for file in files:
        check_kept(file, picture())
        assert parse_record(file, "image").edit.kind == "inpaint"


def test_openai_client_edits_transparent_areas(official):
    image = Image.open(io.BytesIO(picture()))
    image.putalpha(Image.open(io.BytesIO(mask_file())).point(lambda level: 255 - level))
    data = io.BytesIO()
    image.save(data, "PNG")
    made = official.images.edit(image=("image.png", data.getvalue()), prompt="a ring", response_format="b64_json")
    check_kept(base64.b64decode(made.data[0].b64_json), picture())


def test_openai_client_varies_images(official, server):
    extensions = {"seed": 2**64 - 1, "settings": json.dumps({"num_inference_steps": 4})}
    arguments = {"image": ("image.png", picture()), "n": 2, "extra_body": extensions}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of OpenAI's own models
        varied = official.images.create_variation(**arguments)
    edited = official.images.edit(prompt=" a ring", **arguments | {"extra_body": {**extensions, "strength": 0.25}})
    changed = official.images.edit(
        prompt="a ring", **arguments | {"extra_body": {**extensions, "source_prompt": "a square"}}
    )
    cases = ((varied, "variations", 0.5), (edited, "image_to_image", 0.25), (changed, "edit", 0.5))
    for response, kind, strength in cases:
        for image in response.data:
            record = parse_record(httpx.get(image.url).content, "image")
            assert (record.edit.kind, record.edit.strength) == (kind, [strength] * 2)
            assert record.sampling()[0]["num_inference_steps"] == 4


@pytest.mark.parametrize(
    "param, arguments",
    [
        ("image", {"image": ("image.png", b"no image")}),
        ("image", {"image": [("a.png", picture()), ("b.png", picture())]}),
        ("mask", {"mask": ("mask.png", png_file())}),
        ("prompt", {"prompt": " "}),
        ("n", {"n": 0}),
        ("size", {"size": "large"}),
        ("strength", {"extra_body": {"strength": 2}}),
        ("strength", {"extra_body": {"strength": "much"}}),
        ("source_prompt", {"extra_body": {"source_prompt": PROMPT}}),
        ("source_prompt", {"extra_body": {"source_prompt": "a ring"}, "mask": ("mask.png", mask_file())}),
        ("streng", {"extra_body": {"streng": 1}}),
        ("background", {"background": "transparent"}),
    ],
)
def test_openai_client_raises_its_own_errors_for_edits(official, param, arguments):
    with pytest.raises(openai.BadRequestError) as refused:
        official.images.edit(**{"image": ("image.png", picture()), "prompt": PROMPT, **arguments})
    assert refused.value.param == param


def test_wrong_form_is_refused(client, server):
    kind = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"", b"--x\r\n", b"--x\r\n\r\n--x--", b"\0" * 1000, b"--x" * 10_000):
        assert client.post("/v1/images/edits", content=content, headers=kind).status_code == 400
    assert client.post("/v1/images/edits", content=b"x", headers={"content-type": kind["content-type"][:19]}).is_error
    refusal(client.post("/v1/images/edits", json={"prompt": PROMPT}), 415)
    many = {f"field {number}": "x" for number in range(100)}
    assert client.post("/v1/images/edits", data=many, files={"image": picture()}).status_code == 400
    refusal(client.post("/v1/images/edits", data={"prompt": PROMPT, "image": "x"}, files={"mask": b""}), 400, "image")
    large = {"image": bytes(LIMITS.edit_bytes)}
    refusal(client.post("/v1/images/edits", files=large), 413, code="too_large")


# ---- who may ask


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        bearer("wrong"),
        bearer(TOKEN[:-1]),
        bearer(f"{TOKEN}x"),
        bearer(f"{TOKEN},{OTHER_TOKEN}"),
        bearer("x" * 8000),
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": "Bearer \xff\xfe".encode("latin-1")},
        [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer wrong")],
    ],
)
def test_wrong_token_is_refused(server, headers):
    with httpx.Client(base_url=server.url, headers=headers) as stranger:
        for method, path in [
            ("GET", "/v1/history"),
            ("POST", "/v1/jobs"),
            ("GET", "/metrics"),
            ("GET", "/v1/images/x"),
        ]:
            response = stranger.request(method, path)
            refusal(response, 401, code="invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/page/app.js"):
            assert stranger.get(path).status_code == 200


def test_client_sees_its_own_jobs(client, other):
    job = finish(client, {"prompts": "a secret", "settings": QUICK})
    url = job["images"][0]["url"]
    assert other.get(job["events"]).status_code == 404
    refusal(other.get(f"/v1/jobs/{job['id']}"), 404, code="no_such_job")
    assert other.delete(f"/v1/jobs/{job['id']}").status_code == 404
    assert other.delete(f"/v1/history/{job['id']}").status_code == 404
    assert other.get("/v1/history", params={"query": "secret"}).json()["jobs"] == []
    assert other.get(urlsplit(url).path).status_code == 404
    assert other.get(url).status_code == 200  # the address is signed: whoever has it may see the image


def test_signed_address_is_for_one_image(client, server):
    job = finish(client, {"prompts": PROMPT, "count": 2, "settings": QUICK})
    first, second = (image["url"] for image in job["images"])
    path, query = second.split("?")
    signature = dict(part.split("=") for part in query.split("&"))
    with httpx.Client(base_url=server.url) as stranger:
        assert stranger.get(first).status_code == 200
        assert stranger.get(f"{path}?{first.split('?')[1]}").status_code == 401
        later = signature | {"expires": str(int(signature["expires"]) + 1)}
        for wrong in (later, signature | {"signature": "é"}, signature | {"expires": "²"}, {}):
            assert stranger.get(path, params=wrong).status_code == 401
        assert stranger.get(f"/v1/history?{query}").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[", ""])
def test_other_host_is_refused(client, host):
    refusal(client.get("/healthz", headers={"host": host}), 403, code="host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000", "localhost."])
def test_own_host_is_allowed(client, host):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


def test_other_site_is_refused(client):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "["):
        response = client.post("/v1/jobs", json={"prompts": PROMPT}, headers={"origin": origin})
        refusal(response, 403, code="origin_not_allowed")
        assert "access-control-allow-origin" not in response.headers
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = client.post("/v1/jobs", content=b'{"prompts": "x"}', headers={"content-type": kind})
        assert "application/json" in refusal(response, 415)


def test_allowed_site_may_ask(client, server):
    response = client.post("/v1/jobs", json={"prompts": ""}, headers={"origin": FRIEND})
    assert response.headers["access-control-allow-origin"] == FRIEND
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    with httpx.Client(base_url=server.url) as browser:
        assert browser.options("/v1/jobs", headers=asked | {"origin": FRIEND}).status_code == 200
        assert browser.options("/v1/jobs", headers=asked | {"origin": "https://evil.example"}).status_code == 400


def test_page_runs_nothing_of_others(server):
    with httpx.Client(base_url=server.url) as browser:
        for path in ("/", "/docs"):
            page = browser.get(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
            assert not re.search(r"<script(?! type=\"module\" src=\"page/)|\son\w+=|style=|https?://", page.text)
            assert page.headers["x-content-type-options"] == "nosniff"
        script = browser.get("/page/app.js")
        assert script.headers["cache-control"] == "no-cache"
        assert script.headers["content-type"].startswith("text/javascript")
        assert browser.get("/page/app.js", headers={"if-none-match": script.headers["etag"]}).status_code == 304
        assert browser.get("/docs/style.css").headers["content-type"].startswith("text/css")


# ---- attacks


def raw(server, data, close=False):
    """Sends bytes as they are; returns all that comes back until the server closes the connection."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(data)
        if close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def head(path, *headers):
    """Returns the head of a POST of JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {TOKEN}", "Connection: close"]
    return "\r\n".join([*lines, "Content-Type: application/json", *headers, "", ""]).encode()


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/images/generations", "/v1/settings"])
def test_large_body_is_refused(client, path):
    limit = LIMITS.upload_bytes if path == "/v1/settings" else LIMITS.body_bytes
    kind = {"content-type": "image/png" if path == "/v1/settings" else "application/json"}
    response = client.post(path, content=b" " * (limit + 1), headers=kind)
    assert f"{limit:,}" in refusal(response, 413, code="too_large")
    # of no length that is known
    parts = (b" " * 2**16 for _ in range(limit // 2**16 + 1))
    refusal(client.post(path, content=parts, headers=kind), 413, code="too_large")


def test_promised_body_is_not_awaited(server):
    assert raw(server, head("/v1/jobs", f"Content-Length: {2**40}")).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2 * LIMITS.header_bytes,
        b"GET /" + b"x" * 2 * LIMITS.header_bytes,
        head("/v1/jobs", "Content-Length: 1", "Content-Length: 2"),
        head("/v1/jobs", "Content-Length: -1"),
        head("/v1/jobs", f"Content-Length: {10**30}"),
        head("/v1/jobs", "Transfer-Encoding: gzip"),
        head("/v1/jobs", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_wrong_http_is_refused(server, data):
    answer = raw(server, data)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")) and b'"invalid_request_error"' in answer


def test_body_that_ends_early_is_dropped(server, client):
    assert raw(server, head("/v1/jobs", "Content-Length: 100") + b'{"prompts": ', close=True) == b""
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"NaN",
        b'{"prompts": "a", "count": NaN}',
        b'{"prompts": "a", "count": 1e400}',
        b'{"prompts": "a", "count": ' + b"1" * 5000 + b"}",
        b'{"prompts": "a", "seeds": 18446744073709551616}',
        b'{"prompts": "a", "prompts": "b"}',
        b'{"prompts": "\\ud800"}',
        b'{"prompts": "\\u0000"}',
        b'{"prompts": "' + b"x" * (LIMITS.prompt_length + 1) + b'"}',
        b'{"prompts": []}',
        b'{"prompts": ["a", 1]}',
        b'{"prompts": "a", "count": true}',
        b'{"prompts": "a", "height": 1000000000}',
        b'{"prompts": "a", "height": 65}',
        b'{"prompts": "a", "settings": {"num_inference_steps": 1001}}',
        b'{"prompts": "a", "settings": {"sampler": "x"}}',
        b'{"prompts": "a", "settings": {"__class__": 1}}',
        b'{"prompts": "a", "settings": [{}]}',
        b'{"prompts": "a", "priority": 1000}',
        b'{"prompts": "a", "idempotency_key": "a\\nb"}',
        b'{"prompts": "a", "../x": 1}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"prompts": "a", "settings": ' + b'{"a":' * 100 + b"1" + b"}" * 101,
    ],
)
def test_wrong_body_is_refused(client, body):
    response = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a PNG"),
        (b"GIF89a", "not a PNG"),
        (png_file(), "does not say what made it"),
        (png_file()[:-8], "truncated"),
        # pixels of a bomb are not decoded: 4 GB
        (png_file(chunk(b"IDAT", zlib.compress(bytes(2**22))), size=(36000, 36000)), "does not say"),
        (png_file(chunk(b"zTXt", b"imagen_jax\0\0" + zlib.compress(bytes(2**26)))), "longer than"),
        (png_file(chunk(b"iTXt", b"imagen_jax\0\1\0\0\0" + zlib.compress(bytes(2**26)))), "longer than"),
        (png_file(chunk(b"zTXt", b"imagen_jax\0\0" + b"damaged")), "damaged"),
        (png_file(chunk(b"tEXt", b"imagen_jax\0" + b"[" * 100_000)), "nested"),
        (png_file(chunk(b"tEXt", b"imagen_jax\0{}")), "not one of imagen sample"),
        (png_file(chunk(b"tEXt", b"imagen_jax\0" + b"1" * 100_000)), "cannot be used"),
        (png_file(b"\xff\xff\xff\xffzTXt"), "truncated"),
    ],
)
def test_wrong_upload_is_refused(client, data, message):
    assert message in refusal(client.post("/v1/settings", content=data, headers={"content-type": "image/png"}), 400)


def test_upload_of_a_stranger_is_only_text(client):
    record = json.loads(png.read_text(io.BytesIO(client.get(finish_url(client)).content), "imagen_jax"))
    record |= {"prompt": "<script>alert(1)</script>\x1b[2J", "seed": 2**64 - 1}
    record["stages"][0] |= {"checkpoint": "0" * 64, "../../x": "../../y"}
    file = png.with_texts(png_file(), {"imagen_jax": json.dumps(record)})
    response = client.post("/v1/settings", content=file, headers={"content-type": "image/png"})
    made = response.json()
    assert (made["prompt"], made["seed"], made["same_model"]) == (record["prompt"], 2**64 - 1, False)
    assert "<script>" in response.text and response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


def finish_url(client):
    return finish(client, {"prompts": PROMPT, "settings": QUICK})["images"][0]["url"]


NASTY = [
    "%2e%2e",
    "..%2f..%2fjobs.sqlite",
    "....//",
    "%00",
    "%0d%0aX-A:%201",
    "<script>",
    "%ff",
    "a" * 5000,
    "~",
    "-",
]


@pytest.mark.parametrize("name", NASTY)
def test_paths_lead_nowhere(client, name):
    for prefix in ("/v1/jobs/", "/v1/images/", "/v1/models/", "/page/", "/docs/", "/", "/v1/history/"):
        response = client.get(f"{prefix}{name}")
        assert response.status_code in (404, 405), (prefix, response.text)
        assert "x-a" not in response.headers
    assert client.get(f"/v1/jobs/{name}/events").status_code == 404
    assert client.delete(f"/v1/history/{name}").status_code in (404, 405)


@pytest.mark.parametrize(
    "text", ["../../../etc/passwd", "<img src=x onerror=alert(1)>", "'; DROP TABLE jobs; --", "\r\nX: 1"]
)
def test_text_of_users_is_only_text(client, server, text):
    key = {"idempotency_key": text} if text.isprintable() else {}
    job = finish(
        client, {"prompts": text, "negative_prompt": text, "settings": {**QUICK, "guidance_scale": 2.0}, **key}
    )
    assert job["prompts"] == [text] and job["negative_prompt"] == text
    assert re.fullmatch(r"/v1/images/[\w-]{16}-0\.png", urlsplit(job["images"][0]["url"]).path)
    assert parse_record(client.get(job["images"][0]["url"]).content, "image").prompt == text
    assert job["id"] in [found["id"] for found in client.get("/v1/history", params={"query": text}).json()["jobs"]]
    assert text not in server.log()


def test_streams_are_limited(client, other, server, busy):
    with ExitStack() as stack:
        streams = []
        for _ in range(LIMITS.streams_per_client):
            streams.append(stack.enter_context(client.stream("GET", f"/v1/jobs/{busy}/events")).iter_lines())
            assert next(streams[-1]).startswith("retry")
        response = client.get(f"/v1/jobs/{busy}/events")
        refusal(response, 429, code="too_many_streams")
        assert int(response.headers["retry-after"]) > 0
        metrics = client.get("/metrics").text
        assert f"imagen_event_streams {LIMITS.streams_per_client}.0" in metrics
        job = other.post("/v1/jobs", json={"prompts": PROMPT, "settings": QUICK}).json()
        with other.stream("GET", job["events"]) as stream:  # other clients have their own
            assert stream.status_code == 200
    for _ in range(100):  # all are given back
        if "imagen_event_streams 0.0" in client.get("/metrics").text:
            break
    with client.stream("GET", f"/v1/jobs/{busy}/events") as stream:
        assert stream.status_code == 200


VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 64, 65, 0.5, 1e308, 2**63, 2**64 - 1, 2**64, "", " ", "1", "inf", "nan", PROMPT,
    "../x", "\x00", "é", "𝔘", "\u202e", "x" * 200, [], [1], ["a"], [[]], [None], {}, {"a": 1}, [{}], [{}, {}],
    [{}, {}, {}], {"num_inference_steps": 1}, [QUICK, QUICK], {"guidance_scale": "inf"}, {"s_tmax": "inf"}, "64x64",
]  # fmt: skip
NAMES = [
    "prompts", "prompt", "negative_prompt", "count", "n", "seeds", "seed", "settings", "height", "width", "priority",
    "idempotency_key", "size", "response_format", "model", "quality", "stream", "user", "style", "x", "__proto__", "",
]  # fmt: skip


# values that no setting has: other values of some would compile programs
NO_SETTING = [None, "x", "\x00", [], {}, {"a": 1}, [[]], -(2**70), "inf\n"]


def test_random_bodies_never_break_the_server(client, server):
    rng = random.Random(0)
    settings = [setting["name"] for setting in client.get("/v1/cascade").json()["stages"][0]["settings"]]
    statuses = set()
    for number in range(250):
        path = rng.choice(["/v1/jobs", "/v1/jobs", "/v1/images/generations"])
        body = {"prompts" if path == "/v1/jobs" else "prompt": PROMPT, "settings": dict(QUICK)}
        for _ in range(rng.choice([1, 1, 2, 3])):
            if rng.random() < 0.2:
                body["settings"] = {"num_inference_steps": rng.choice(VALUES)}
            elif rng.random() < 0.3:
                body["settings"] = {**QUICK, rng.choice(settings): rng.choice(NO_SETTING)}
            else:
                body[rng.choice(NAMES)] = rng.choice(VALUES)
        response = client.post(path, json=body)
        statuses.add(response.status_code)
        assert response.status_code in (200, 202, 400, 404, 409, 429), (number, path, body, response.text)
        if response.status_code == 202:
            client.delete(f"/v1/jobs/{response.json()['id']}")
    assert {200, 202, 400} <= statuses
    for value in VALUES[1:]:
        for name in ("query", "before", "limit"):
            assert client.get("/v1/history", params={name: json.dumps(value)}).status_code in (200, 400)
    assert client.get("/readyz").status_code == 200


# ---- documents, log and metrics


def test_document_is_complete(document):
    operations = [(path, operation) for path, methods in document["paths"].items() for operation in methods.values()]
    assert {path for path, _ in operations} >= {"/v1/jobs", "/v1/images/generations", "/v1/cascade", "/metrics"}
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for path, operation in operations:
        assert operation["summary"] and operation["description"] and operation["tags"], path
        for status, response in operation["responses"].items():
            assert response["description"] != "Successful Response" or response.get("content"), (path, status)
            if status >= "400":
                assert response["content"]["application/json"]["schema"] == error
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (path, parameter)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = content["schema"].get("$ref", "").rpartition("/")[2]
            fields = document["components"]["schemas"].get(name, {})
            assert not name or fields["examples"]
            assert all(field["description"] for field in fields.get("properties", {}).values())
    assert document["components"]["schemas"]["ErrorBody"]["examples"]


def test_examples_of_the_document_work(client, document):
    for name, path in {"JobBody": "/v1/jobs", "GenerationBody": "/v1/images/generations"}.items():
        for example in document["components"]["schemas"][name]["examples"]:
            assert client.post(path, json=example).status_code in (200, 202)


def test_page_of_the_documents_works(server, tmp_path, monkeypatch):
    """Each command of docs/serving.md runs: curl and Python ask this server, and servers of their own only parse."""
    monkeypatch.chdir(tmp_path)
    asked = 0
    for block in read_blocks((ROOT / "docs/serving.md").read_text()):
        code = block.code.replace("http://127.0.0.1:8000", server.url).replace('api_key="none"', f'api_key="{TOKEN}"')
        if block.language == "python":
            own = code.replace("httpx.Client(", f"httpx.Client(headers={bearer(TOKEN)}, timeout=120, ")
            exec(compile(own, "docs/serving.md", "exec"), {})
            asked += 1
        for command in split_commands(code) if block.is_shell else ():
            if command.startswith("imagen serve"):
                args = CommandFlags(serve_command)
                args.parse(shlex.split(command)[2:])
                assert args.stage_folders()
                check_access(args.host, ServeSettings("shapes", tokens=serve_command._tokens(args)))
            elif command.startswith("curl") and shutil.which("curl"):
                own = command.replace("curl", f"curl --fail -H 'Authorization: Bearer {TOKEN}'", 1)
                subprocess.run(["bash", "-c", own], check=True, capture_output=True)
                asked += 1
            elif command.startswith("python"):
                subprocess.run(["bash", "-c", command.replace("python", sys.executable, 1)], check=True)
    assert asked >= 2


def test_description_has_every_route(server, document):
    page = httpx.get(f"{server.url}/docs").text
    assert all(path in page for path in document["paths"])


def test_log_has_a_line_for_each_request(client, server):
    client.get("/v1/jobs/one-of-the-log", params={"query": "a secret of the query"})
    client.post("/v1/jobs", json={"prompts": ""})
    client.get("/v1/jobs/two-of-the-log")  # when it has a line, those before have theirs
    pattern = r"token-\w{12} GET /v1/jobs/(one|two)-of-the-log 404 \d+ bytes \d+ ms\n"
    for _ in range(100):
        lines = re.findall(pattern, server.log())
        if "two" in lines:
            break
        client.get("/healthz")
    assert lines == ["one", "two"]
    assert "secret" not in server.log() and TOKEN not in server.log() and PROMPT not in server.log()


def test_metrics_count_requests(client):
    def count():
        text = client.get("/metrics").text
        return float(
            re.search(r'^imagen_http_requests_total\{method="GET",route="/healthz",status="200"\} (\S+)', text, re.M)[1]
        )

    client.get("/healthz")
    before = count()
    for _ in range(3):
        client.get("/healthz")
    assert count() == before + 3
    assert 'route="none"' in client.get("/metrics").text  # what strangers make up is no label
    assert "jobs.sqlite" not in client.get("/metrics").text


def test_many_clients_at_once(client, server):
    """Jobs of many threads: each is done, and none twice."""
    done = []

    def ask(number):
        with httpx.Client(base_url=server.url, headers=bearer(TOKEN), timeout=120) as own:
            done.append(finish(own, {"prompts": f"one of many, {number}", "seeds": number, "settings": QUICK})["seeds"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [[number] for number in range(16)]
