"""Fine-tuning by the API of `imagen serve`: a server in a process of its own, that trains a tiny stage."""

import hashlib
import io
import json
import signal
import time
import zipfile

import httpx
import numpy as np
import pytest
from PIL import Image

from imagen_jax.pipelines.image_record import parse_record
from imagen_jax.stages.lora_files import FILE
from tests.conftest import xla_flags
from tests.helpers.servers import read_events, serve
from tests.serving.test_http import bearer, check_documented, finish, refusal

pytest_plugins = ("tests.helpers.fixtures",)
TOKEN, OTHER_TOKEN = "first-token-of-the-tests", "second-token-of-the-tests"
PROMPT = "a sks dog"
QUICK = {"token": "sks dog", "steps": "2", "rank": "2", "learning_rate": "0.1"}
LONG = {"token": "sks cat", "steps": "20000", "rank": "2"}
SECONDS = 300


@pytest.fixture(scope="module")
def flags(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    return (
        f"--stages={base_folder}",
        "--name=tiny",
        f"--token={TOKEN},{OTHER_TOKEN}",
        f"--finetune_dir={folder}",
        "--batch_sizes=1",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(flags, folder):
    with serve(folder, *flags, xla_flags=xla_flags(devices=1)) as server:
        yield server
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def client(server):
    document = httpx.get(f"{server.url}/openapi.json").json()

    def check(response):
        if "text/event-stream" not in response.headers.get("content-type", ""):
            response.read()
            check_documented(document, response)

    hooks = {"response": [check]}
    with httpx.Client(base_url=server.url, headers=bearer(TOKEN), event_hooks=hooks, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def other(server):
    with httpx.Client(base_url=server.url, headers=bearer(OTHER_TOKEN), timeout=120) as other:
        yield other


def picture(size=(20, 20), mode="RGB", kind="PNG", seed=0):
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), np.uint8)
    Image.fromarray(pixels if mode != "L" else pixels[..., 0]).save(data, kind)
    return data.getvalue()


def form(*images):
    return [("images", ("name.png", data)) for data in images or (picture(), picture((24, 16), kind="JPEG"))]


def teach(client, fields=QUICK, *images, **more):
    response = client.post("/v1/finetunings", files=form(*images), data={**fields, **more})
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/finetunings/{response.json()['id']}"
    return response.json()


def follow(client, one, until=lambda view: False):
    """Follows a fine-tuning until it ends, or a condition holds; returns the events."""
    events = []
    with client.stream("GET", one["events"], timeout=SECONDS) as stream:
        for name, data in read_events(stream):
            events.append((name, json.loads(data)))
            if until(events[-1][1]):
                break
    return events


def wait(client, one, *statuses):
    ends = time.monotonic() + SECONDS
    while (view := client.get(f"/v1/finetunings/{one['id']}").json())["status"] not in statuses:
        assert time.monotonic() < ends, view
        time.sleep(0.05)
    return view


@pytest.fixture(scope="module")
def taught(client):
    """Two that are done, the newer one with images of the class."""
    ones = [
        teach(client, captions=json.dumps([" a  sks dog\nat night ", None])),
        teach(client, class_name="dog", prior_images="2", seed="1", token="sks dog", initializer="dog"),
    ]
    return [follow(client, one) for one in ones]


def test_events_tell_how_it_goes(taught):
    for events in taught:
        assert [name for name, _ in events[:-1]] == ["finetuning"] * (len(events) - 1) and events[-1][0] == "done"
        view = events[-1][1]
        assert view["status"] == "done" and view["usable"] and view["error"] is None
        assert [(run["stage"], run["step"], run["steps"]) for run in view["progress"]["runs"]] == [(0, 2, 2)]
        for run in view["progress"]["runs"]:
            assert [step for step, _ in run["losses"]] == [1, 2] and run["previews"]
        fractions = [data["progress"]["fraction"] for _, data in events]
        assert fractions[-1] == 1 and all(0 <= fraction <= 1 for fraction in fractions)
    assert view["progress"]["drawn"] == view["progress"]["prior_images"] == 2
    assert {data["status"] for _, data in taught[1]} <= {"queued", "running", "done"}


def test_files_are_at_signed_addresses(taught, server, client, other):
    view = client.get(f"/v1/finetunings/{taught[1][-1][1]['id']}").json()
    previews = [preview["url"] for run in view["progress"]["runs"] for preview in run["previews"]]
    for url in [*view["images"], *previews, view["before_after"]]:
        assert Image.open(io.BytesIO(httpx.get(server.url + url).content)).format == "PNG"
        assert httpx.get(server.url + url.partition("?")[0]).status_code == 401
        assert other.get(url.partition("?")[0]).status_code == 404
    archive = zipfile.ZipFile(io.BytesIO(httpx.get(server.url + view["adapter"]).content))
    assert {f"sks-dog-2/stage_0/{FILE}", "sks-dog-2/README.md"} <= set(archive.namelist())
    for name in ("images/2.png", "previews/0/77.png", "images/-1.png", "images/../finetuning.json"):
        response = client.get(f"/v1/finetunings/{view['id']}/{name}")
        assert response.status_code in (400, 404), name


def test_client_sees_its_own(taught, client, other):
    own = client.get("/v1/finetunings").json()["finetunings"]
    assert [one["name"] for one in own][-2:] == ["sks-dog-2", "sks-dog"]
    assert other.get("/v1/finetunings").json() == {"finetunings": []}
    url = f"/v1/finetunings/{own[0]['id']}"
    for method, path in (("GET", url), ("GET", f"{url}/events"), ("POST", f"{url}/stop"), ("DELETE", url)):
        assert refusal(other.request(method, path), 404, code="no_such_finetuning")
    message = refusal(other.post("/v1/jobs", json={"prompts": PROMPT, "lora": [{"name": "sks-dog"}]}), 400, "lora[0]")
    assert "not known" in message


def digest(client, lora=None, **more):
    """Returns a digest of the pixels of an image with adapters, and its record."""
    job = finish(client, {"prompts": PROMPT, "seeds": 7, "lora": lora, **more})
    assert job["lora"] == [{"scale": 1.0, **choice} for choice in lora or []]
    data = client.get(job["images"][0]["url"]).content
    return hashlib.sha256(Image.open(io.BytesIO(data)).tobytes()).hexdigest(), parse_record(data, "image"), data


def test_jobs_use_adapters(taught, client):
    one, two = {"name": "sks-dog"}, {"name": "sks-dog-2"}
    plain, record, _ = digest(client)
    assert record.adapters == []
    off = digest(client, [{**one, "scale": 0}])
    assert off[0] == plain
    asked = ([one], [{**one, "scale": 0.5}], [two], [one, two])
    first = [digest(client, lora)[0] for lora in asked]
    assert len({plain, *first}) == 5
    again = [digest(client, lora) for lora in asked[::-1]][::-1]  # whatever was loaded before
    assert [each[0] for each in again] == first
    assert digest(client)[0] == plain
    assert [(each.name, each.scale) for each in again[3][1].adapters] == [("sks-dog", 1.0), ("sks-dog-2", 1.0)]
    assert again[1][1].adapters[0].scale == 0.5
    checkpoints = {stage.model_dump()["checkpoint"] for each in (record, again[0][1]) for stage in each.stages}
    assert len(checkpoints) == 2  # with the adapter, the weights are others
    made = client.post("/v1/settings", content=again[1][2], headers={"content-type": "image/png"}).json()
    assert made["lora"] == [{"name": "sks-dog", "scale": 0.5}]
    form_of = {"prompt": PROMPT, "seed": 7, "lora": [one], "response_format": "b64_json"}
    assert client.post("/v1/images/generations", json=form_of).status_code == 200


def test_adapters_edit_too(taught, client):
    image = finish(client, {"prompts": PROMPT, "seeds": 1})["images"][0]["url"]
    edit = {"kind": "image_to_image", "image": image, "strength": 0.9}
    assert digest(client, edit=edit)[0] != digest(client, [{"name": "sks-dog"}], edit=edit)[0]


@pytest.mark.parametrize(
    ("lora", "param", "message"),
    [
        ([{"name": "sks-dgo"}], "lora[0]", "did you mean 'sks-dog'"),
        ([{"name": "sks-dog"}, {"name": "sks-dog"}], "lora[1]", "give each adapter once"),
        ([{"name": "sks-dog", "scale": 11}], "lora[0]", "a number from -10 to 10"),
        ([{"name": "sks-dog", "scale": "1"}], "lora[0].scale", "a number"),
        ([{"name": "sks-dog", "weight": 1}], "weight", "not a field"),
        ([{}], "lora[0].name", "is missing"),
        ([{"name": f"a{index}"} for index in range(5)], "the number of adapters in lora", "from 1 to 4"),
        ("sks-dog", "lora", "list"),
    ],
)
def test_wrong_adapters_are_refused(taught, client, lora, param, message):
    response = client.post("/v1/jobs", json={"prompts": PROMPT, "lora": lora})
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"] and error["param"] == param


BROKEN = picture()[:-100]


@pytest.mark.parametrize(
    ("fields", "images", "param", "message"),
    [
        ({}, [picture(), BROKEN, picture()], "images[1]", "images[1] "),
        ({}, [b"no image"], "images[0]", "another format"),
        ({}, [picture((4, 20))], "images[0]", "4×20 pixels, fewer than the 8×8 of samples"),
        ({}, [picture(mode="RGBA")], "images[0]", "transparent"),
        ({}, [picture(kind="GIF")], "images[0]", "PNG, JPEG"),
        ({}, [picture()] * 101, "images", "101 files: give 1 to 100"),
        ({"token": "  "}, [picture()], "token", "token is empty"),
        ({"token": "a\x01b"}, [picture()], "token", "U+0001"),
        ({"token": "a" * 101}, [picture()], "token", "101 characters"),
        ({"captions": '["one"]'}, [picture()] * 2, "captions", "1 texts for 2 images"),
        ({"captions": "one"}, [picture()], "captions", "captions is not JSON"),
        ({"captions": "[1]"}, [picture()], "captions[0]", "captions[0]"),
        ({"steps": "20001"}, [picture()], "steps", "from 0 to 20000"),
        ({"steps": "many"}, [picture()], "steps", "an integer"),
        ({"rank": "129"}, [picture()], "rank", "from 0 to 128"),
        ({"learning_rate": "-1"}, [picture()], "learning_rate", "from 0 to 1"),
        ({"learning_rate": "NaN"}, [picture()], "learning_rate", "finite"),
        ({"prior_images": "2001"}, [picture()], "prior_images", "from 1 to 2000"),
        ({"method": "full"}, [picture()], "method", "not a field"),
    ],
)
def test_wrong_forms_are_refused(client, fields, images, param, message):
    before = client.get("/v1/finetunings").json()
    response = client.post("/v1/finetunings", files=form(*images), data={**QUICK, **fields})
    assert message in refusal(response, 400, param, "unknown_parameter" if param == "method" else None)
    assert client.get("/v1/finetunings").json().keys() == before.keys()


def test_forms_without_images_are_refused(client):
    response = client.post("/v1/finetunings", files=[("token", (None, "sks dog"))])
    assert "images is missing" in refusal(response, 400, "images")
    response = client.post("/v1/finetunings", json={"token": "sks dog"})
    assert response.status_code == 415
    large = client.post("/v1/finetunings", content=b"x" * 2**26 + b"x", headers={"content-type": "multipart/form-data"})
    refusal(large, 413, code="too_large")


@pytest.mark.slow
def test_stop_sampling_meanwhile_kill_and_continue(taught, client, server, flags, folder):
    one, waiting = teach(client, LONG), teach(client, LONG)
    follow(client, one, lambda view: any(run["step"] > 2 for run in view["progress"]["runs"]))
    assert waiting["position"] == 1
    assert client.post(f"/v1/finetunings/{waiting['id']}/stop").json()["status"] == "stopped"
    assert client.delete(f"/v1/finetunings/{waiting['id']}").status_code == 204
    refusal(client.get(f"/v1/finetunings/{waiting['id']}"), 404, code="no_such_finetuning")
    # jobs are sampled while it trains, also with an adapter
    plain = digest(client)[0]
    assert digest(client, [{"name": "sks-dog"}])[0] != plain
    assert wait(client, one, "running")["progress"]["phase"] == "training"
    url = f"/v1/finetunings/{one['id']}"
    refusal(client.delete(url), 409, code="wrong_status")
    refusal(client.post(f"{url}/continue"), 409, code="wrong_status")
    assert client.post(f"{url}/stop").json()["status"] == "stopping"
    stopped = wait(client, one, "stopped")
    step = stopped["progress"]["runs"][0]["step"]
    assert step and not stopped["usable"] and stopped["adapter"] is None
    client.post(f"{url}/continue")
    follow(client, one, lambda view: view["status"] == "running" and view["progress"]["runs"][0]["step"] > step)

    # a kill: what ran is continued by the next server, and adapters are there
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    (folder / "server.log").unlink()  # it says where the first one served
    port = server.url.rpartition(":")[2]
    with serve(folder, *flags, f"--port={port}", xla_flags=xla_flags(devices=1)) as again:
        view = wait(client, one, "running")
        assert digest(client)[0] == plain
        follow(client, view, lambda view: view["progress"]["runs"][0]["step"] > step)
        assert client.post(f"{url}/stop").status_code == 200
        wait(client, one, "stopped")
        # a job that waits for an adapter that is deleted fails with one sentence
        names = {each["name"]: each["id"] for each in client.get("/v1/finetunings").json()["finetunings"]}
        long = client.post("/v1/jobs", json={"prompts": PROMPT, "count": 8, "settings": {"num_inference_steps": 1000}})
        body = {"prompts": PROMPT, "lora": [{"name": "sks-dog-2"}], "priority": -1}
        waits = client.post("/v1/jobs", json=body).json()
        assert client.delete(f"/v1/finetunings/{names['sks-dog-2']}").status_code == 204
        client.delete(f"/v1/jobs/{long.json()['id']}")
        with client.stream("GET", waits["events"]) as stream:
            name, data = list(read_events(stream))[-1]
        assert name == "failed" and "was deleted" in json.loads(data)["error"]
        assert again.stop() == 0
        assert "Traceback" not in again.log()
