"""The page in chromium, as people use it."""

import io
import re
import signal

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.servers import serve
from tests.page.conftest import AXE, PHONE, WIDE, finished, paint

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run make page").expect

LONG = {"num_inference_steps": 1000}
COMPILED = 300_000  # milliseconds, in which the first edit of a kind is compiled and sampled on a busy machine
KEPT = 1000  # milliseconds, after which the browser has what is edited
JOB = "article.job"


@pytest.fixture(autouse=True)
def no_jobs_left(request):
    """Cancels what a test has left running, so that the next one need not wait for it."""
    yield
    if "server" not in request.fixturenames:
        return
    cancel_all(request.getfixturevalue("server").url)


def cancel_all(url, token=""):
    """Cancels all jobs that have not ended."""
    with httpx.Client(headers={"Authorization": f"Bearer {token}"} if token else {}) as http:
        for job in http.get(f"{url}/v1/history").json()["jobs"]:
            if job["status"] in ("queued", "running"):
                http.delete(f"{url}/v1/jobs/{job['id']}")


def draw(tab, prompt, long=False, **fields):
    """Types a prompt and draws; `fields` has other fields by their ids. Returns the card of the job."""
    if long:
        if tab.locator("#settings").get_attribute("open") is None:
            tab.locator("#settings > summary").click()
        for stage in range(2):
            tab.fill(f"#s{stage}-num_inference_steps", str(LONG["num_inference_steps"]))
    for name, value in fields.items():
        tab.fill(f"#{name}", str(value))
    tab.fill("#prompt", prompt)
    tab.press("#prompt", "Enter")
    card = tab.locator(JOB, has_text=prompt.split("\n")[0])
    card.wait_for()
    return card


def watched(card):
    """Returns a card of a job that takes long, once there is a preview of it."""
    expect(card).to_have_attribute("data-status", "running")
    expect(card.locator(".job-images img").first).to_have_attribute("src", _starts_with("data:image/png;base64,"))
    return card


def _starts_with(text):
    return re.compile("^" + re.escape(text))


def drop(tab, name, data, kind="image/png", to_edit=False):
    """Drops a file on the page, on the half for settings or on that for editing."""
    transfer = tab.evaluate_handle(
        """([name, bytes, type]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
            return transfer;
        }""",
        [name, list(data), kind],
    )
    for event in ("dragenter", "dragover", "drop"):
        where = tab.locator("#drop-edit").bounding_box() if to_edit and event != "dragenter" else {"x": -9, "y": -9}
        at = {"clientX": where["x"] + 9, "clientY": where["y"] + 9}
        tab.dispatch_event("main", event, {"dataTransfer": transfer, **at})


def png_of(server, job, index=0):
    return httpx.get(server.url + job["images"][index]["url"]).content


def loaded(image):
    """Asserts that an image of the page has its pixels."""
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


def history_prompts(tab):
    return tab.locator("#gallery .caption").all_inner_texts()


def test_draws_with_previews_and_shows_the_seed(tab):
    card = watched(draw(tab, "a green triangle", long=True))
    expect(card.locator("progress")).to_have_attribute("value", _starts_with("0."))
    expect(card.locator(".job-state")).to_have_text(_starts_with("Stage 1 of 2, step "))
    expect(card.locator(".job-left")).to_have_text(_starts_with("about "))
    card.get_by_role("button", name="Cancel").click()
    tab.get_by_role("button", name="Back to defaults").click()
    card = draw(tab, "a green cross", count=2)
    expect(card).to_have_attribute("data-status", "done")
    expect(card.locator(".job-state")).to_have_text(_starts_with("2 images in "))
    for image in card.locator("img").all():
        loaded(image)
    expect(card.get_by_role("button", name="Copy seed")).to_have_count(2)
    assert history_prompts(tab)[:2] == ["a green cross"] * 2
    assert tab.title() == "Imagen"


def test_cancel(tab, server):
    card = watched(draw(tab, "a gray ring", long=True))
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-status", "canceled")
    expect(tab.locator("#gallery .tile").first).to_contain_text("Canceled")
    assert httpx.get(f"{server.url}/v1/history").json()["jobs"][0]["status"] == "canceled"


def test_reload_in_mid_job(tab):
    watched(draw(tab, "an orange square", long=True, seed=5))
    tab.reload()
    card = watched(tab.locator(JOB, has_text="an orange square"))
    assert tab.input_value("#prompt") == "an orange square"
    assert tab.input_value("#seed") == "5"
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-status", "canceled")


def test_two_tabs_show_the_same_job(client):
    first = client.open()
    second = client.open()
    watched(draw(first, "a purple ring", long=True))
    third = client.open()
    for tab in (second, third):
        watched(tab.locator(JOB, has_text="a purple ring"))
    third.locator(JOB).get_by_role("button", name="Cancel").click()
    for tab in (first, second, third):
        expect(tab.locator(JOB)).to_have_attribute("data-status", "canceled")


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_a_png_brings_its_settings_back(tab, server, made, way):
    data = png_of(server, made[1])
    if way == "dropped":
        drop(tab, "image.png", data)
    else:
        tab.set_input_files("#file", {"name": "image.png", "mimeType": "image/png", "buffer": data})
    expect(tab.locator("#prompt")).to_have_value("two blue squares")
    expect(tab.locator("#prompt")).to_be_focused()
    assert tab.input_value("#negative") == "a ring"
    assert tab.input_value("#seed") == str(2**64 - 3)
    assert tab.input_value("#s0-num_inference_steps") == "4"
    expect(tab.locator("#settings-changed")).to_have_text("1 changed")
    expect(tab.locator("#drop")).to_be_hidden()
    # the same settings give the same pixels
    tab.press("#prompt", "Enter")
    card = tab.locator(JOB)
    expect(card).to_have_attribute("data-status", "done")
    url = card.locator("img").get_attribute("src")
    assert pixels(httpx.get(server.url + url).content) == pixels(data)


def edit_of(tab, made):
    """Opens the first image of a job, and begins to edit it."""
    tab.locator("#gallery .picture[title^='a red circle']").last.click()
    tab.get_by_role("button", name="Edit this image").click()
    expect(tab.locator("#edit-title")).to_be_focused()
    assert tab.input_value("#prompt") == "a red circle"


def choose(tab, name):
    """Chooses what to do with an image."""
    tab.get_by_role("radio", name=name).check()


def finished_job(tab, server, prompt):
    """Returns the job of a prompt by the API, once its card says that it is done."""
    expect(tab.locator(JOB, has_text=prompt)).to_have_attribute("data-status", "done", timeout=COMPILED)
    return httpx.get(f"{server.url}/v1/history", params={"query": prompt}).json()["jobs"][0]


def test_edits_a_part_of_an_image(tab, server, made):
    edit_of(tab, made)
    expect(tab.locator("#edit-strength-value")).to_have_text("100%")
    paint(tab, (0.1, 0.25), (0.9, 0.25))
    expect(tab.locator("#edit-painted")).to_have_text("13% of the image is drawn anew.")
    draw(tab, "a blue bar", seed=3)
    job = finished_job(tab, server, "a blue bar")
    assert (job["edit"]["kind"], job["edit"]["strength"]) == ("inpaint", [1, 1])
    mask = np.asarray(Image.open(io.BytesIO(httpx.get(server.url + job["edit"]["mask"]).content)))
    assert mask[16, 8:56].all() and not mask[32:].any()
    before, after = (
        np.asarray(Image.open(io.BytesIO(httpx.get(server.url + url).content)))
        for url in (job["edit"]["image"], job["images"][0]["url"])
    )
    np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask > 0] != before[mask > 0]).any()
    # the two, one over the other, and what separates them
    tab.locator(JOB).locator(".picture").click()
    loaded(tab.locator("#viewer-before"))
    widths = []
    for value in ("20", "80"):
        tab.locator("#viewer-split").fill(value)
        widths.append(tab.evaluate("getComputedStyle(document.getElementById('viewer-before')).clipPath"))
    assert widths[0] != widths[1]
    tab.locator("#viewer-split").press("ArrowRight")
    expect(tab.locator("#viewer-split")).to_have_value("81")
    expect(tab.locator("#viewer-prompt")).to_have_text("a blue bar")
    # all of it again: the image, the mask and the strength
    tab.locator("#edit-close").evaluate("button => button.click()")
    expect(tab.locator("#edit")).to_be_hidden()
    tab.locator("#viewer-reuse").click()
    expect(tab.locator("#edit-painted")).to_have_text("14% of the image is drawn anew.")
    draw(tab, "a blue bar again", seed=3)
    again = finished_job(tab, server, "a blue bar again")
    assert [again["edit"][name] for name in ("kind", "strength")] == ["inpaint", [1, 1]]
    assert pixels(httpx.get(server.url + again["edit"]["mask"]).content) == mask.tobytes()


def test_edits_by_keyboard(tab, made):
    edit_of(tab, made)
    painted = tab.locator("#edit-painted")
    nothing = "Nothing is painted yet."
    expect(painted).to_have_text(nothing)
    # what to do, by arrows
    tab.get_by_role("radio", name="Redraw a part").focus()
    tab.keyboard.press("ArrowRight")
    expect(tab.get_by_role("radio", name="Change all of it")).to_be_checked()
    expect(tab.locator("#edit-mask")).to_be_hidden()
    tab.keyboard.press("ArrowLeft")
    tab.locator("#generate").click()
    expect(tab.locator("#form-message")).to_contain_text("Paint over what should change")
    expect(tab.locator("#edit-mask")).to_be_focused()
    tab.locator("#edit-mask").focus()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("#announcer")).to_have_text("53% from the left, 50% from the top")
    expect(tab.locator("#edit-brush")).to_be_visible()
    tab.keyboard.press("Space")
    expect(painted).to_have_text("2% of the image is drawn anew.")
    for _ in range(8):
        tab.keyboard.press("Shift+ArrowDown")
    expect(painted).to_have_text("5% of the image is drawn anew.")
    for _ in range(2):
        tab.keyboard.press("Control+z")
    expect(painted).to_have_text("4% of the image is drawn anew.")
    tab.get_by_role("button", name="Invert").click()
    expect(painted).to_have_text("96% of the image is drawn anew.")
    tab.get_by_role("button", name="Clear", exact=True).click()
    expect(painted).to_have_text(nothing)
    for _ in range(20):
        if tab.locator("#edit-undo").is_enabled():
            tab.locator("#edit-undo").click()
    expect(painted).to_have_text(nothing)
    # all painted is none kept
    tab.get_by_role("button", name="Invert").click()
    tab.locator("#generate").click()
    expect(tab.locator("#form-message")).to_contain_text("leave something as it is")
    expect(tab.locator("#edit-mask")).to_be_focused()
    tab.get_by_role("button", name="Erase").click()
    tab.locator("#edit-mask").press("Enter")
    expect(painted).to_have_text("98% of the image is drawn anew.")
    tab.get_by_role("button", name="Stop editing").click()
    expect(tab.locator("#prompt")).to_be_focused()
    expect(tab.locator("#edit")).to_be_hidden()


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_edits_a_picture(tab, server, made, way):
    data = io.BytesIO()
    Image.new("RGB", (300, 200), "orange").save(data, "JPEG")
    if way == "dropped":
        drop(tab, "photo.jpg", data.getvalue(), "image/jpeg", to_edit=True)
    else:
        tab.set_input_files("#image-file", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": data.getvalue()})
    expect(tab.locator("#edit-title")).to_be_focused()
    choose(tab, "Change all of it")
    tab.locator("#edit-strength").fill("30")
    draw(tab, f"an orange wall, {way}")
    job = finished_job(tab, server, f"an orange wall, {way}")
    assert (job["edit"]["kind"], job["edit"]["strength"]) == ("image_to_image", [0.3, 0.3])
    size, pixel = (
        (64, 64),
        Image.open(io.BytesIO(httpx.get(server.url + job["edit"]["image"]).content)).getpixel((9, 9)),
    )
    assert size == (job["images"][0]["width"], job["images"][0]["height"])
    assert np.abs(np.array(pixel) - (255, 165, 0)).max() < 4
    tab.get_by_role("button", name="Stop editing").click()
    draw(tab, f"a plain ring, {way}")
    assert finished_job(tab, server, f"a plain ring, {way}")["edit"] is None


def test_other_edits(tab, server, made):
    edit_of(tab, made)
    choose(tab, "Change a word")
    assert tab.input_value("#edit-source") == "a red circle"
    tab.locator("#generate").click()
    expect(tab.locator("#form-message")).to_contain_text("Both texts are the same")
    tab.fill("#edit-source", "")
    tab.fill("#prompt", "a blue circle")
    tab.locator("#generate").click()
    expect(tab.locator("#edit-source")).to_be_focused()
    tab.fill("#edit-source", "a red circle")
    tab.locator("#edit-strength").fill("60")
    draw(tab, "a blue circle")
    job = finished_job(tab, server, "a blue circle")
    assert job["edit"]["source_prompt"] == "a red circle"
    assert (job["edit"]["kind"], job["edit"]["strength"]) == ("edit", [0.6, 0.6])
    tab.locator(JOB).locator(".picture").click()
    loaded(tab.locator("#viewer-before"))
    expect(tab.locator("#viewer-facts")).to_contain_text("Changed by the prompt, before: “a red circle”, strength 60%")
    tab.keyboard.press("Escape")

    choose(tab, "Extend")
    expect(tab.locator("#edit-result")).to_have_text("From 64×64 to 96×96 pixels.")
    tab.locator("#edit-side").select_option("left")
    tab.locator("#edit-by").select_option("1")
    expect(tab.locator("#edit-result")).to_have_text("From 64×64 to 128×64 pixels.")
    draw(tab, "two red circles")
    job = finished_job(tab, server, "two red circles")
    assert (job["edit"]["kind"], job["edit"]["position"]) == ("outpaint", [0, 64])
    assert (job["images"][0]["width"], job["images"][0]["height"]) == (128, 64)

    choose(tab, "Enlarge")
    expect(tab.locator("#edit-result")).to_have_text("From 64×64 to 128×128 pixels.")
    draw(tab, "a red circle, enlarged")
    job = finished_job(tab, server, "a red circle, enlarged")
    assert (job["edit"]["kind"], job["images"][0]["width"]) == ("upscale", 128)

    # a prompt is not needed, but by other tasks
    choose(tab, "Variations")
    tab.fill("#prompt", "")
    with tab.expect_response(f"{server.url}/v1/jobs") as accepted:
        tab.locator("#generate").click()
    newest = finished(server.url, accepted.value.json()["id"])
    assert (newest["prompts"], newest["edit"]["kind"], newest["edit"]["strength"]) == ([""], "variations", [0.5, 0.5])
    choose(tab, "Change all of it")
    tab.locator("#generate").click()
    expect(tab.locator("#prompt")).to_be_focused()

    # all of it again
    tab.locator("#edit-close").click()
    tab.locator("#gallery .picture[title^='two red circles']").first.click()
    tab.locator("#viewer-reuse").click()
    expect(tab.get_by_role("radio", name="Extend")).to_be_checked()
    expect(tab.locator("#edit-result")).to_have_text("From 64×64 to 128×64 pixels.")
    assert [tab.input_value(f"#edit-{name}") for name in ("side", "by")] == ["left", "1"]


def between(tab, **ends):
    """Begins with images between two ends, and types these by their ids."""
    tab.get_by_role("button", name="Between two").click()
    expect(tab.locator("#edit-title")).to_be_focused()
    expect(tab.locator("#edit-tasks")).to_be_hidden()
    expect(tab.locator("#edit-image")).to_be_hidden()
    for name, value in ends.items():
        tab.fill(f"#edit-{name.replace('_', '-')}", value)


def test_edits_between_two_prompts(tab, server):
    tab.fill("#prompt", "a large red circle")
    between(tab)
    expect(tab.locator("#edit-title")).to_have_text("Images between two")
    expect(tab.get_by_label("From the prompt")).to_have_value("a large red circle")
    expect(tab.locator("#prompt")).to_be_hidden()
    expect(tab.locator("#count")).to_have_value("5")
    tab.fill("#count", "4")
    tab.fill("#seed", "7")
    tab.get_by_label("To the prompt").fill("a large blue circle")
    tab.get_by_label("To the prompt").press("Enter")
    prompt = "a large red circle → a large blue circle"
    job = finished_job(tab, server, prompt)
    assert (job["edit"]["kind"], job["edit"]["ends"]) == ("interpolate", ["a large red circle", "a large blue circle"])
    assert [image["seed"] for image in job["images"]] == [7] * 4

    # in order: one row, from red to blue
    images = tab.locator(JOB).locator("img")
    shares = ["0%", "33%", "67%", "100%"]
    expect(tab.locator(JOB).locator(".job-images .hint")).to_have_text(shares)
    assert [one.get_attribute("alt") for one in images.all()] == [f"{prompt}, {share} of the way" for share in shares]
    assert [one.get_attribute("src") for one in images.all()] == [one["url"] for one in job["images"]]
    boxes = [one.bounding_box() for one in images.all()]
    assert len({box["y"] for box in boxes}) == 1
    assert [box["x"] for box in boxes] == sorted(box["x"] for box in boxes)
    first, last = (np.frombuffer(pixels(png_of(server, job, i)), np.uint8).reshape(-1, 3).astype(int) for i in (0, -1))
    assert (first[:, 0] - first[:, 2]).max() > 100 > (last[:, 0] - last[:, 2]).max()
    assert (last[:, 2] - last[:, 0]).max() > 100 > (first[:, 2] - first[:, 0]).max()
    images.nth(1).locator("..").click()
    fact = "On the way from a large red circle to a large blue circle, 33% of the way"
    expect(tab.locator("#viewer-facts")).to_contain_text(fact)
    expect(tab.locator("#viewer-before")).to_be_hidden()

    # one of them is edited with the prompt that it is near to
    tab.locator("#viewer-edit").click()
    expect(tab.get_by_role("radio", name="Redraw a part")).to_be_checked()
    expect(tab.locator("#edit-source")).to_have_value("a large red circle")
    expect(tab.locator("#prompt")).to_be_visible()
    assert (tab.input_value("#prompt"), tab.input_value("#count")) == ("a large red circle", "1")
    images.nth(1).locator("..").click()

    # all of it again, also from the file
    tab.locator("#edit-close").evaluate("button => button.click()")
    for way in ("job", "file"):
        if way == "job":
            tab.locator("#viewer-reuse").click()
        else:
            drop(tab, "image.png", png_of(server, job, 1))
        expect(tab.locator("#edit-first-prompt")).to_be_focused()
        assert tab.input_value("#edit-first-prompt") == "a large red circle"
        assert tab.input_value("#edit-last-prompt") == "a large blue circle"
        assert (tab.input_value("#count"), tab.input_value("#seed")) == ("4" if way == "job" else "5", "7")
        tab.get_by_role("button", name="Stop editing").click()
        expect(tab.locator("#prompt")).to_be_focused()
        assert tab.input_value("#prompt") == ""
    expect(tab.locator("#count")).to_have_value("1")


def test_edits_between_two_seeds(tab, server, made):
    edit_of(tab, made)
    choose(tab, "Between two")
    expect(tab.locator("#edit-image")).to_be_hidden()
    expect(tab.get_by_label("From the prompt")).to_have_value("a red circle")
    tab.get_by_label("Between", exact=True).select_option("Two seeds")
    expect(tab.locator("#seed")).to_be_hidden()
    tab.get_by_label("From the seed").fill("1")
    tab.get_by_label("To the seed").fill(str(2**64 - 3))
    tab.fill("#count", "3")
    draw(tab, "a red circle between seeds")
    job = finished_job(tab, server, "a red circle between seeds")
    assert (job["edit"]["kind"], job["edit"]["ends"]) == ("interpolate", [1, 2**64 - 3])
    expect(tab.locator(JOB).locator(".job-images .hint")).to_have_text(["0%", "50%", "100%"])
    tab.locator(JOB).get_by_role("button", name="Use these settings").click()
    expect(tab.get_by_label("From the seed")).to_have_value("1")
    expect(tab.get_by_label("To the seed")).to_have_value(str(2**64 - 3))
    assert (tab.input_value("#prompt"), tab.input_value("#count")) == ("a red circle between seeds", "3")
    # what differs is where they are on the way
    for index in (0, 1):
        tab.locator(JOB).locator(".picture").nth(index).click()
        tab.locator("#viewer-select").click()
        tab.keyboard.press("Escape")
    tab.locator("#selection-compare").click()
    rows = tab.locator("#compare tr")
    expect(rows).to_have_count(2)
    way = f"On the way from 1 to {2**64 - 3}"
    assert rows.last.locator("td").all_inner_texts() == [f"{way}, 0% of the way", f"{way}, 50% of the way"]


def test_wrong_ends_are_named_at_their_fields(client):
    client.expect_failed_requests("status of 400")
    tab = client.open()

    def refused(field, text):
        tab.locator("#generate").click()
        expect(tab.locator("#form-message")).to_have_text(text)
        expect(tab.locator(f"#{field}")).to_be_focused()
        expect(tab.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
        expect(tab.locator(f"#{field}")).to_have_attribute("aria-errormessage", "form-message")

    requests = []
    tab.on("request", lambda request: requests.append(request.url) if request.method == "POST" else None)
    between(tab)
    refused("edit-first-prompt", "Say what the first image should show.")
    tab.fill("#edit-first-prompt", "a ring")
    refused("edit-last-prompt", "Say what the last image should show.")
    tab.fill("#edit-last-prompt", "a ring ")
    refused("edit-last-prompt", "Both ends are the same: change one of them.")
    tab.fill("#edit-first-prompt", "1")
    tab.fill("#edit-last-prompt", "2")
    refused("edit-first-prompt", "Two numbers are seeds: choose two seeds, or say in words what an end shows.")
    tab.fill("#count", "1")
    refused("count", "Images is a whole number from 2 to 64.")
    tab.fill("#count", "2")
    tab.locator("#edit-ends").select_option("seeds")
    refused("prompt", "Say what the image should show.")
    tab.fill("#prompt", "a ring")
    seed = f"Give a seed at each end: a whole number from 0 to {2**64 - 1}."
    refused("edit-first-seed", seed)
    tab.fill("#edit-first-seed", "7")
    for wrong in ("-1", "a ring", "1.5", str(2**64)):
        tab.fill("#edit-last-seed", wrong)
        refused("edit-last-seed", seed)
    tab.fill("#edit-last-seed", "07")
    refused("edit-last-seed", "Both ends are the same: change one of them.")
    assert requests == []
    # what the server refuses is named there, too
    tab.locator("#edit-ends").select_option("prompts")
    tab.fill("#edit-first-prompt", "a ring")
    tab.fill("#edit-last-prompt", "a \1 cross")
    refused("edit-last-prompt", "The last prompt has the character U+0001, which is not text: leave it out.")
    assert len(requests) == 1


def test_ends_survive_a_reload(tab, made):
    between(tab, first_prompt="a ring", last_prompt="a cross")
    tab.fill("#count", "3")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.locator("#edit-first-prompt")).to_have_value("a ring")
    expect(tab.locator("#edit-last-prompt")).to_have_value("a cross")
    expect(tab.locator("#edit-title")).to_have_text("Images between two")
    for hidden in ("prompt", "edit-tasks", "edit-image"):
        expect(tab.locator(f"#{hidden}")).to_be_hidden()
    assert tab.input_value("#count") == "3"
    tab.locator("#edit-ends").select_option("seeds")
    tab.fill("#edit-first-seed", "1")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.locator("#edit-first-seed")).to_have_value("1")
    expect(tab.locator("#edit-first-prompt")).to_be_hidden()
    tab.get_by_role("button", name="Stop editing").click()
    tab.reload()
    tab.locator("#gallery img").first.wait_for()
    expect(tab.locator("#edit")).to_be_hidden()
    # with an image that is edited, it stays
    edit_of(tab, made)
    choose(tab, "Between two")
    tab.fill("#edit-last-prompt", "a cross")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.locator("#edit-last-prompt")).to_have_value("a cross")
    choose(tab, "Variations")
    loaded(tab.locator("#edit-image"))
    expect(tab.locator("#prompt")).to_be_visible()


def test_an_unsent_edit_survives_a_reload(tab, made):
    edit_of(tab, made)
    paint(tab, (0.1, 0.25), (0.9, 0.25))
    tab.locator("#edit-strength").fill("85")
    text = tab.locator("#edit-painted").inner_text()
    tab.fill("#prompt", "a bar that is kept")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.locator("#edit-painted")).to_have_text(text)
    assert tab.locator("#edit-image").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    expect(tab.locator("#edit-strength-value")).to_have_text("85%")
    assert tab.input_value("#prompt") == "a bar that is kept"
    choose(tab, "Change a word")
    tab.fill("#edit-source", "a red ring")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.get_by_role("radio", name="Change a word")).to_be_checked()
    expect(tab.locator("#edit-source")).to_have_value("a red ring")
    choose(tab, "Redraw a part")
    expect(tab.locator("#edit-painted")).to_have_text(text)
    # a file is kept, too, of this tab alone
    data = io.BytesIO()
    Image.new("RGB", (300, 200), "orange").save(data, "PNG")
    tab.set_input_files("#image-file", {"name": "photo.png", "mimeType": "image/png", "buffer": data.getvalue()})
    choose(tab, "Enlarge")
    expect(tab.locator("#edit-result")).to_have_text("From 300×200 to 600×400 pixels.")
    tab.wait_for_timeout(KEPT)
    tab.reload()
    expect(tab.locator("#edit-result")).to_have_text("From 300×200 to 600×400 pixels.")
    other = tab.context.new_page()
    other.goto(tab.url)
    other.locator("#gallery img").first.wait_for()
    expect(other.locator("#edit")).to_be_hidden()
    tab.get_by_role("button", name="Stop editing").click()
    tab.reload()
    tab.locator("#gallery img").first.wait_for()
    expect(tab.locator("#edit")).to_be_hidden()


def test_what_is_not_a_picture_cannot_be_edited(tab):
    tab.set_input_files("#image-file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"})
    expect(tab.locator("#form-message")).to_contain_text("“a.txt”: This is not an image that the browser can open.")
    expect(tab.locator("#edit")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, {"width": 320, "height": 640}], ids=["wide", "small"])
def test_editing_fits_and_is_accessible(new_client, server, made, scheme, viewport):
    is_phone = viewport is not WIDE
    client = new_client(
        server.url, viewport, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone, reduced_motion="reduce"
    )
    tab = client.open()
    edit_of(tab, made)
    for task in (
        "Change all of it",
        "Change a word",
        "Variations",
        "Extend",
        "Enlarge",
        "Between two",
        "Redraw a part",
    ):
        choose(tab, task)
        check_view(tab)
    paint(tab, (0.3, 0.3), (0.6, 0.6))
    check_view(tab)
    draw(tab, "a ring that fits")
    finished_job(tab, server, "a ring that fits")
    tab.locator(JOB).locator(".picture").click()
    loaded(tab.locator("#viewer-before"))
    check_view(tab)
    tab.keyboard.press("Escape")
    tab.get_by_role("button", name="Stop editing").click()
    between(tab, last_prompt="a cross")
    check_view(tab)
    tab.fill("#edit-first-prompt", "")
    tab.locator("#generate").click()
    check_view(tab)
    tab.locator("#edit-ends").select_option("seeds")
    check_view(tab)
    tab.locator("#edit-ends").select_option("prompts")
    tab.fill("#edit-first-prompt", "a ring")
    tab.fill("#count", "8")
    tab.press("#edit-first-prompt", "Enter")
    finished_job(tab, server, "a ring → a cross")
    check_view(tab)


def pixels(data):
    return Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [("photo.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0" * 9), ("empty.png", b""), ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0")],
)
def test_a_foreign_file_gets_one_sentence(client, name, data):
    client.expect_failed_requests("status of 400")
    tab = client.open()
    tab.fill("#prompt", "kept")
    drop(tab, name, data, "")
    message = tab.locator("#form-message")
    expect(message).to_be_visible()
    text = message.inner_text()
    assert text.startswith(f"“{name}”: ")
    assert text.endswith(".")
    assert "\n" not in text
    assert tab.input_value("#prompt") == "kept"


def test_html_in_a_prompt_is_text(tab):
    prompt = "<img src=x onerror=alert(1)><b>a red</b> circle"
    card = draw(tab, prompt)
    expect(card).to_have_attribute("data-status", "done")
    assert card.locator(".prompt").inner_text() == prompt
    card.locator(".picture").click()
    assert tab.locator("#viewer-prompt").inner_text() == prompt
    assert tab.locator("b").count() == 0
    tab.keyboard.press("Escape")
    tab.locator("#gallery .tile .picture").first.click()
    assert tab.locator("#viewer-prompt").inner_text() == prompt


def test_keyboard_only(tab, made):
    tab.keyboard.press("Tab")
    expect(tab.locator(".skip")).to_be_focused()
    order = []
    for _ in range(9):
        tab.keyboard.press("Tab")
        order.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName.toLowerCase()"))
    expected = ["a", "prompt", "negative", "count", "seed", "seed-random", "summary", "generate", "from-file"]
    assert order == expected
    for _ in range(7):
        tab.keyboard.press("Shift+Tab")
    tab.keyboard.type("a red ring")
    tab.keyboard.press("Enter")
    card = tab.locator(JOB)
    expect(card).to_have_attribute("data-status", "done")
    expect(tab.locator("#announcer")).to_contain_text("Done: 1 image")
    card.locator(".picture").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#viewer-prompt")).to_be_focused()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("#viewer-prompt")).not_to_have_text("a red ring")
    tab.keyboard.press("ArrowLeft")
    expect(tab.locator("#viewer-prompt")).to_have_text("a red ring")
    tab.keyboard.press("Escape")
    expect(card.locator(".picture")).to_be_focused()


def test_copies_the_seed(tab, made):
    tab.locator("#gallery .picture[title^='two blue squares']").first.click()
    viewer = tab.locator("#viewer")
    viewer.get_by_role("button", name="Copy seed").click()
    expect(viewer.get_by_role("status").filter(has_text="Seed copied")).to_be_visible()
    assert tab.evaluate("navigator.clipboard.readText()") == str(2**64 - 3)


def test_compares_two(tab, made):
    for prompt in ("two blue squares", "a red circle"):
        # the oldest, as edits of it begin with the same words
        tile = tab.locator("#gallery .tile", has=tab.locator(f".picture[title^='{prompt}']")).last
        tile.hover()
        tile.get_by_role("checkbox").check(force=True)
    tab.get_by_role("button", name="Compare", exact=True).click()
    table = tab.locator("#compare table")
    for image in table.locator("img").all():
        loaded(image)
    rows = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in table.locator("tr").all()}
    assert rows["Prompt"] == ["two blue squares", "a red circle"]
    assert rows["Negative prompt"] == ["a ring", "none"]
    assert rows["Stage 1: sampling steps"] == ["4", "12"]
    assert "Stage 1: sampler" not in rows
    tab.keyboard.press("Escape")
    expect(tab.locator("#compare")).to_be_hidden()
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator("#selection")).to_be_hidden()


def test_uses_settings_again_downloads_and_deletes(tab, server):
    card = draw(tab, "a blue triangle", negative="a circle", seed=2**64 - 1)
    expect(card).to_have_attribute("data-status", "done")
    for field in ("prompt", "negative", "seed"):
        tab.fill(f"#{field}", "")
    card.locator(".picture").click()
    with tab.expect_download() as download:
        tab.locator("#viewer-download").click()
    assert download.value.suggested_filename == f"imagen_{2**64 - 1}.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    tab.get_by_role("button", name="Use these settings").last.click()
    assert tab.input_value("#prompt") == "a blue triangle"
    assert tab.input_value("#negative") == "a circle"
    assert tab.input_value("#seed") == str(2**64 - 1)
    card.locator(".picture").click()
    tab.locator("#viewer-delete").click()
    tab.locator("#confirm-yes").click()
    expect(card).to_have_count(0)
    jobs = httpx.get(f"{server.url}/v1/history", params={"query": "a blue triangle"}).json()["jobs"]
    assert jobs == []


def test_searches_the_history(tab, made):
    tab.fill("#search", "BLUE squares")
    expect(tab.locator("#gallery .caption").first).to_have_text("two blue squares")
    expect(tab.locator("#gallery .caption", has_text="red circle")).to_have_count(0)
    tab.fill("#search", "no such <b>thing</b>")
    expect(tab.locator("#no-match")).to_have_text("No prompt has “no such <b>thing</b>” in it.")
    tab.fill("#search", "")
    expect(tab.locator("#gallery .caption", has_text="a red circle").first).to_be_visible()


def test_history_has_pages(tab, server):
    jobs = []
    for index in range(40):
        job = httpx.post(f"{server.url}/v1/jobs", json={"prompts": f"page test {index}", "settings": [LONG, {}]}).json()
        httpx.delete(f"{server.url}/v1/jobs/{job['id']}")
        jobs.append(job["id"])
    tab.fill("#search", "page test")
    tab.locator("#gallery .caption", has_text="page test 39").wait_for()
    tab.locator("#gallery .tile").last.scroll_into_view_if_needed()
    expect(tab.locator("#gallery .tile")).to_have_count(40)
    expect(tab.locator("#more")).to_be_hidden()
    for job in jobs:
        httpx.delete(f"{server.url}/v1/history/{job}")


def test_a_wrong_value_is_named_at_its_field(client):
    client.expect_failed_requests("status of 400")
    tab = client.open()
    tab.locator("#generate").click()
    expect(tab.locator("#prompt")).to_be_focused()
    tab.fill("#prompt", "a red circle")
    tab.fill("#seed", "-1")
    tab.locator("#generate").click()
    expect(tab.locator("#seed")).to_have_attribute("aria-invalid", "true")
    tab.fill("#seed", "")
    tab.locator("#settings > summary").click()
    tab.locator("#stages summary").first.click()
    tab.fill("#s0-guidance_interval", "0.5, 0.5")
    tab.locator("#generate").click()
    expect(tab.locator("#form-message")).to_contain_text("two different numbers")
    expect(tab.locator("#s0-guidance_interval")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE, {"width": 320, "height": 640}], ids=["wide", "phone", "small"])
def test_fits_and_is_accessible(new_client, server, made, scheme, viewport):
    is_phone = viewport is not WIDE
    client = new_client(
        server.url, viewport, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone, reduced_motion="reduce"
    )
    tab = client.open()
    tab.locator("#gallery img").first.wait_for()
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").rstrip(")")
    assert (max(map(int, background.split(","))) < 64) == (scheme == "dark")
    check_view(tab)
    tab.locator("#settings > summary").click()
    for summary in tab.locator("#stages summary").all():
        summary.click()
    tab.fill("#seed", "x")
    card = draw(tab, "long " * 60 + "w" * 90, seed="", negative="an" + "other" * 40)
    expect(card).to_have_attribute("data-status", "done")
    check_view(tab)
    tab.locator("#gallery .picture").first.click()
    check_view(tab)
    tab.locator("#viewer-select").click()
    tab.locator("#viewer-next").click()
    tab.locator("#viewer-select").click()
    tab.locator("#viewer [data-close]").click()
    check_view(tab)
    tab.locator("#selection-compare").click()
    check_view(tab)
    assert tab.evaluate("document.getAnimations().length") == 0


def check_view(tab):
    """Asserts that nothing is wider than the window, and that axe-core, where it is installed, finds nothing."""
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    if not AXE.exists():
        return
    tab.evaluate(AXE.read_text())
    result = tab.evaluate("axe.run({ resultTypes: ['violations'] })")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in result["violations"]] == []


def test_token_full_queue_and_kill(new_client, tmp_path):
    token = "a token of many characters"[:26].replace(" ", "-")
    flags = ("--stages=shapes", f"--token={token}", "--max_queued_jobs=2")
    with serve(tmp_path, *flags) as server:
        client = new_client(server.url)
        for pattern in ("status of 401", "status of 429", "status of 503", "net::ERR_"):
            client.expect_failed_requests(pattern)
        tab = client.context.new_page()
        tab.goto(server.url)
        tab.get_by_role("button", name="Not now").click()
        expect(tab.locator("#form-message")).to_contain_text("This server needs a token.")
        tab.get_by_role("button", name="Try again").click()
        tab.get_by_label("Token", exact=True).fill("wrong")
        tab.get_by_role("button", name="Continue").click()
        expect(tab.locator("#token-error")).to_be_visible()
        tab.get_by_label("Token", exact=True).fill(token)
        tab.get_by_role("button", name="Continue").click()
        tab.locator("#cascade-name", has_text="shapes").wait_for()

        watched(draw(tab, "first", long=True, seed=1))
        draw(tab, "second", long=True)
        tab.fill("#prompt", "third")
        tab.press("#prompt", "Enter")
        message = tab.locator("#form-message")
        expect(message).to_contain_text("Try again in ")
        message.get_by_role("button", name="Keep trying for me").click()
        tab.locator(JOB, has_text="second").get_by_role("button", name="Cancel").click()
        tab.locator(JOB, has_text="third").wait_for()
        cancel_all(server.url, token)

        tab.get_by_role("button", name="Back to defaults").click()
        card = watched(draw(tab, "in the middle", count=2, **{"s0-num_inference_steps": 400}))
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        expect(tab.locator("#banner")).to_have_text("Connection lost. Trying again; your jobs go on.")
        (tmp_path / "server.log").unlink()  # it says where the first one served
        with serve(tmp_path, *flags, f"--port={server.url.rpartition(':')[2]}"):
            expect(tab.locator("#banner")).to_be_hidden()
            expect(card).to_have_attribute("data-status", "done")
            for image in card.locator("img").all():
                loaded(image)
