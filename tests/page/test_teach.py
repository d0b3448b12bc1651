"""The page's panel for fine-tuning in chromium, before a real server that trains a tiny stage."""

import io
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import xla_flags
from tests.helpers.servers import serve
from tests.page.conftest import PHONE, WIDE

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run make page").expect

from tests.page.test_page import JOB, check_view, drop  # noqa: E402  # which needs the browser's library, too

pytest_plugins = ("tests.helpers.fixtures",)
LEARNED = 300_000  # milliseconds, in which a stage is compiled and trained for some steps on a busy machine
LESSON = ".lesson"
IMAGES = f"{JOB}:not({LESSON})"


@pytest.fixture(scope="module")
def flags(base_folder, tmp_path_factory):
    # its name is what `Client.open` waits for
    return f"--stages={base_folder}", "--name=shapes", f"--finetune_dir={tmp_path_factory.mktemp('taught')}"


@pytest.fixture(scope="module")
def teacher(browser, flags, tmp_path_factory):
    """A server that can be taught."""
    with serve(tmp_path_factory.mktemp("server"), *flags, xla_flags=xla_flags(devices=1)) as server:
        yield server


def picture(size=(40, 30), seed=0, mode="RGB"):
    data = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def files(count):
    return [{"name": f"{i}.png", "mimeType": "image/png", "buffer": picture(seed=i)} for i in range(count)]


def open_panel(tab):
    tab.locator("#teach-open").click()
    expect(tab.locator("#teach-title")).to_be_focused()
    expect(tab.locator("#teach-open")).to_have_attribute("aria-expanded", "true")


def fill(tab, token, steps, images=3, kind=""):
    tab.set_input_files("#teach-files", files(images))
    expect(tab.locator("#teach-images li")).to_have_count(images)
    tab.fill("#teach-token", token)
    tab.fill("#teach-class", kind)
    if tab.locator("#teach-more").get_attribute("open") is None:
        tab.locator("#teach-more > summary").click()
    tab.fill("#teach-steps", str(steps))
    tab.fill("#teach-rank", "2")
    tab.fill("#teach-rate", "0.1")
    tab.fill("#teach-prior", "2")


def lesson(tab, token):
    return tab.locator(LESSON, has_text=token)


def shown(image):
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 7


def test_a_server_that_teaches_nothing_offers_nothing(tab):
    expect(tab.locator("#teach-open")).to_be_hidden()
    expect(tab.locator("#lora-field")).to_be_hidden()


def test_what_is_missing_is_named_at_its_field(new_client, teacher):
    client = new_client(teacher.url)
    client.expect_failed_requests("status of 400")
    tab = client.open()
    open_panel(tab)
    message = tab.locator("#teach-message")
    tab.locator("#teach-start").click()
    expect(message).to_have_text("Add some images of what is to be learned.")
    expect(tab.locator("#teach-add")).to_be_focused()
    drop(tab, "broken.png", b"no image")  # on the half for settings, which it cannot be either
    tab.set_input_files(
        "#teach-files",
        [
            *files(2),
            {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"},
            {"name": "small.png", "mimeType": "image/png", "buffer": picture((5, 20))},
        ],
    )
    expect(message).to_contain_text("“broken.png”: This is not an image that the browser can open.")
    expect(message).to_contain_text("“small.png”: It has 20×5 pixels; give an image of at least 8×8.")
    expect(tab.locator("#teach-images li")).to_have_count(2)
    tab.locator("#teach-start").click()
    expect(message).to_have_text("Give it a name, such as “sks dog”.")
    expect(tab.locator("#teach-token")).to_be_focused()
    expect(tab.locator("#teach-token")).to_have_attribute("aria-invalid", "true")
    tab.fill("#teach-token", "sks ring")
    expect(message).to_be_hidden()
    expect(tab.get_by_label("Caption of image 2, optional")).to_have_attribute("placeholder", "a sks ring")
    tab.locator("#teach-more > summary").click()
    tab.fill("#teach-steps", "20001")
    tab.locator("#teach-more > summary").click()
    tab.locator("#teach-start").click()
    expect(message).to_have_text("Steps is a whole number from 1 to 20000.")
    expect(tab.locator("#teach-steps")).to_be_focused()
    tab.fill("#teach-steps", "")
    # what the server alone knows
    tab.fill("#teach-token", "a \1 ring")
    tab.locator("#teach-start").click()
    expect(message).to_have_text("Token has the character U+0001, which is not text: leave it out.")
    expect(tab.locator("#teach-token")).to_be_focused()
    tab.get_by_role("button", name="Remove image 1").click()
    expect(tab.get_by_role("button", name="Remove image 1")).to_be_focused()
    tab.keyboard.press("Enter")
    expect(tab.locator("#teach-add")).to_be_focused()
    tab.get_by_role("button", name="Close", exact=True).click()
    expect(tab.locator("#teach")).to_be_hidden()
    expect(tab.locator("#teach-open")).to_be_focused()


def test_learns_and_is_used(new_client, teacher):
    client = new_client(teacher.url)
    client.expect_failed_requests("status of 400")
    tab = client.open()
    open_panel(tab)
    fill(tab, "sks ring", 4, kind="ring")
    tab.get_by_label("Caption of image 1, optional").fill("a <b>red</b> sks ring")
    tab.locator("#teach-token").press("Enter")
    card = lesson(tab, "sks ring")
    expect(card.locator(".lesson-images img")).to_have_count(3)
    expect(tab.locator("#teach-images")).to_be_hidden()
    expect(tab.locator("#teach-token")).to_have_value("")
    expect(card).to_have_attribute("data-status", "done", timeout=LEARNED)
    expect(card.locator(".job-state")).to_have_text("Learned")
    shown(card.locator("figure img").first)
    card.locator("summary").click()
    expect(card.locator(".curve")).to_have_attribute("aria-label", re.compile(r"Loss from \S+ to \S+ in 4 steps"))
    assert len(card.locator(".curve .raw").get_attribute("points").split()) == 4
    expect(card.locator("figcaption", has_text="Samples on the way")).to_contain_text("tep 4")
    check_view(tab)
    with tab.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "sks-ring.zip"

    # by its button, and by the list of the form
    tab.fill("#prompt", "a red shape")
    card.get_by_role("button", name="Use it").click()
    expect(tab.locator("#prompt")).to_be_focused()
    expect(tab.locator("#prompt")).to_have_value("a red shape, a sks ring")
    slider = tab.get_by_role("slider", name="sks-ring")
    slider.fill("60")
    expect(tab.locator("#lora-chosen output")).to_have_text("60%")
    with tab.expect_response(f"{teacher.url}/v1/jobs") as accepted:
        tab.locator("#generate").click()
    assert accepted.value.json()["lora"] == [{"name": "sks-ring", "scale": 0.6}]
    image = tab.locator(IMAGES)
    expect(image).to_have_attribute("data-status", "done")
    tab.reload()
    expect(tab.locator("#lora-chosen output")).to_have_text("60%")
    tab.get_by_role("button", name="Do not use sks-ring").click()
    expect(tab.locator("#lora-add")).to_be_focused()
    expect(tab.locator("#lora-chosen li")).to_have_count(0)
    image.locator(".picture").click()
    expect(tab.locator("#viewer-facts")).to_contain_text("sks-ring 60%")
    tab.locator("#viewer-reuse").click()
    expect(tab.locator("#lora-chosen output")).to_have_text("60%")
    tab.get_by_role("button", name="Do not use sks-ring").click()
    tab.locator("#lora-add").select_option("sks-ring")
    expect(tab.get_by_role("slider", name="sks-ring")).to_be_focused()
    expect(tab.locator("#lora-chosen output")).to_have_text("100%")

    # a file that was made with it, and what becomes of it once that is gone
    job = httpx.get(f"{teacher.url}/v1/history").json()["jobs"][0]
    png = httpx.get(teacher.url + job["images"][0]["url"]).content
    drop(tab, "made.png", png)
    expect(tab.locator("#lora-chosen output")).to_have_text("60%")
    card.get_by_role("button", name="Delete sks-ring").click()
    tab.locator("#confirm-yes").click()
    expect(card).to_have_count(0)
    expect(tab.locator("#lora-field")).to_be_hidden()
    assert httpx.get(f"{teacher.url}/v1/finetunings").json() == {"finetunings": []}
    assert tab.evaluate("document.querySelectorAll('b').length") == 0


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_stops_continues_and_fits(new_client, teacher, viewport, scheme):
    is_phone = viewport is PHONE
    client = new_client(
        teacher.url, viewport, color_scheme=scheme, has_touch=is_phone, is_mobile=is_phone, reduced_motion="reduce"
    )
    tab = client.open()
    open_panel(tab)
    fill(tab, "long " * 8 + "w" * 50, 20_000, images=5)
    check_view(tab)
    tab.locator("#teach-start").click()
    card = tab.locator(LESSON).first
    expect(card.locator(".job-state")).to_contain_text(re.compile("Training, step [0-9]+ of 20000"), timeout=LEARNED)
    expect(tab.locator("#teach-badge")).to_have_text(re.compile("[0-9]+%"))
    check_view(tab)
    # the panel and what runs are there after a reload; another one waits
    tab.reload()
    expect(card.locator(".job-state")).to_contain_text("Training, step ")
    fill(tab, "another", 20_000)
    tab.locator("#teach-start").click()
    waiting = lesson(tab, "another")
    expect(waiting.locator(".job-state")).to_have_text("Waiting, 1 other first")
    waiting.get_by_role("button", name="Stop").click()
    expect(waiting).to_have_attribute("data-status", "stopped")
    running = lesson(tab, "long long")
    running.get_by_role("button", name="Stop").click()
    expect(running).to_have_attribute("data-status", "stopped", timeout=LEARNED)
    expect(running.locator(".job-state")).to_contain_text("Stopped: Training, step ")
    expect(tab.locator("#teach-badge")).to_be_hidden()
    check_view(tab)
    running.get_by_role("button", name="Continue").click()
    expect(running).to_have_attribute("data-status", "running")
    running.get_by_role("button", name="Stop").click()
    for card in (waiting, running):
        expect(card).to_have_attribute("data-status", "stopped", timeout=LEARNED)
        card.get_by_role("button", name="Delete").click()
        tab.locator("#confirm-yes").click()
        expect(card).to_have_count(0)
    expect(tab.locator("#teach-title")).to_be_focused()
