"""Writes the images of docs/web_page.md: `make page ARGS=--screenshots`."""

import io

import pytest
from PIL import Image

from benchmarks.fine_tuning import write_images
from tests.helpers.configs import ROOT
from tests.helpers.servers import serve
from tests.page.conftest import PHONE, paint

pytestmark = pytest.mark.screenshots
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run make page")

PROMPTS = (
    "a large red circle above a small blue square",
    "a yellow ring to the left of a green triangle on a black background",
    "a purple cross in the center on a gray background",
    "two small orange squares on a tan background",
)
EDITED = "a red circle in the center on a gray background"
MOST_BYTES = 150_000
VIEWPORT = {"width": 1180, "height": 760}
_PAUSE = 1000  # milliseconds for transitions and images


def write(tab, name, view=None):
    """Writes what a tab shows, or a part of it, to docs/images, with as many colors as its size allows."""
    tab.wait_for_timeout(_PAUSE)
    image = Image.open(io.BytesIO((view or tab).screenshot())).convert("RGB")
    for colors in range(256, 32, -16):
        data = io.BytesIO()
        image.quantize(colors, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE).save(
            data, "PNG", optimize=True
        )
        if data.tell() <= MOST_BYTES:
            break
    assert data.tell() <= MOST_BYTES
    (ROOT / "docs" / "images" / f"{name}.png").write_bytes(data.getvalue())


def draw(tab, prompt, count):
    tab.fill("#count", str(count))
    tab.fill("#prompt", prompt)
    tab.press("#prompt", "Enter")
    card = tab.locator("article.job", has_text=prompt)
    card.wait_for()
    return card


def finish(tab, prompt, count):
    draw(tab, prompt, count)
    tab.locator("article.job[data-status=done]", has_text=prompt).wait_for()


def test_screenshots(new_client, server):
    tab = new_client(server.url, VIEWPORT).open()
    for prompt in PROMPTS[::-1]:
        finish(tab, prompt, 2)
    write(tab, "serve_light")
    for prompt in PROMPTS[:2]:
        tile = tab.locator("#gallery .tile", has=tab.locator(f".picture[title^='{prompt}']")).first
        tile.hover()
        tile.get_by_role("checkbox").check(force=True)
    tab.locator("#selection-compare").click()
    write(tab, "serve_compare", tab.locator("#compare"))

    tab = new_client(server.url, VIEWPORT).open()
    tab.locator(f"#gallery .picture[title^='{PROMPTS[2]}']").first.click()
    tab.locator("#viewer-edit").click()
    tab.locator("#edit-size").fill("40")
    paint(tab, (0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6), (0.4, 0.4))
    tab.fill("#seed", "4")
    finish(tab, EDITED, 1)
    tab.evaluate("document.getElementById('form').scrollTo({ top: 0, behavior: 'instant' })")
    tab.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    write(tab, "serve_edit")

    tab = new_client(server.url, PHONE, color_scheme="light", is_mobile=True, has_touch=True).open()
    finish(tab, PROMPTS[1], 2)
    tab.locator("article.job").evaluate("card => card.scrollIntoView({ behavior: 'instant' })")
    write(tab, "serve_phone")

    tab = new_client(server.url, VIEWPORT, color_scheme="dark").open()
    tab.locator("#settings > summary").click()
    tab.fill("#s0-num_inference_steps", "1000")
    tab.fill("#s1-num_inference_steps", "1000")
    tab.locator("#settings > summary").click()
    card = draw(tab, PROMPTS[2], 3)
    tab.locator("article.job[data-status=running] .job-images img:not([hidden])").first.wait_for()
    tab.locator("article.job .job-left", has_text="left").wait_for()
    tab.wait_for_timeout(3 * _PAUSE)
    tab.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    write(tab, "serve_dark")
    card.get_by_role("button", name="Cancel").click()
    tab.locator("article.job[data-status=canceled]").wait_for()


def fill_lesson(tab, shape, folder):
    """Fills in what teaches a shape, with the captions of its images."""
    paths = sorted(write_images(shape, folder / shape).glob("*.png"))
    tab.set_input_files("#teach-files", paths)
    tab.locator("#teach-images li").nth(len(paths) - 1).wait_for()
    for path, caption in zip(paths, tab.locator("#teach-images input").all(), strict=True):
        caption.fill(path.with_suffix(".txt").read_text().splitlines()[0])
    tab.fill("#teach-token", f"sks {shape}")
    tab.fill("#teach-class", "shape")


def test_screenshot_of_teaching(new_client, tmp_path):
    with serve(tmp_path / "server", "--stages=shapes", f"--finetune_dir={tmp_path / 'taught'}") as server:
        tab = new_client(server.url, VIEWPORT).open()
        tab.locator("#teach-open").click()
        fill_lesson(tab, "star", tmp_path)
        tab.locator("#teach-start").click()
        tab.locator(".lesson").wait_for()
        fill_lesson(tab, "heart", tmp_path)
        tab.locator(".lesson .job-state", has_text="Stage 2 of 2, step 3").wait_for(timeout=600_000)
        write(tab, "serve_teach", tab.locator("#teach"))
