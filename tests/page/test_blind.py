"""The page of a blind comparison in chromium, from a file: votes by keys, a reload, export, import, and the count."""

import json
import re

import pytest

from imagen_jax.evaluation.blind.page import BlindSettings, write_page
from imagen_jax.evaluation.blind.votes import count_votes, read_key, read_votes
from imagen_jax.evaluation.prompts.benchmark import benchmark_texts, sample_benchmark
from imagen_jax.evaluation.prompts.prompt_set import load_prompts
from imagen_jax.pipelines.imagen import ImagenPipeline
from imagen_jax.pipelines.request import SampleRequest
from imagen_jax.pipelines.texts import Texts
from tests.helpers.compared import PROMPTS, write_compared
from tests.page.conftest import AXE, PHONE, WIDE
from tests.page.test_screenshots import write

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run make page").expect

PAIRS = len(PROMPTS)


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    """A page that compares bright images, of A, with dark ones, of B."""
    folder = tmp_path_factory.mktemp("blind")
    write_compared(folder / "a", level=200)
    write_compared(folder / "b", level=60)
    return write_page(folder / "a", folder / "b", folder / "out", folder / "key.json", BlindSettings(seed=4))


@pytest.fixture
def tab(new_client, blind):
    return open_page(new_client, blind)


def open_page(new_client, blind, **settings):
    client = new_client("", **settings)
    tab = client.context.new_page()
    tab.goto(blind.page.as_uri())
    return tab


def side_of_a(blind, tab):
    """Returns the side of A in the pair that is shown, as the key has it."""
    prompt = tab.locator("#prompt").inner_text()
    items = read_key(blind.key).items.values()
    return next("left" if item.left == "a" else "right" for item in items if item.prompt == prompt)


def press_for_a(blind, tab):
    tab.keyboard.press("ArrowLeft" if side_of_a(blind, tab) == "left" else "ArrowRight")


def export(tab, path):
    with tab.expect_download() as download:
        tab.click("#export")
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_votes_by_keys_survive_a_reload_and_are_counted(blind, new_client, tab, tmp_path):
    tab.fill("#rater", "Ann")
    tab.locator("#rater").blur()
    for _ in range(PAIRS - 1):  # A looks better, and both show the text
        press_for_a(blind, tab)
        tab.keyboard.press("ArrowDown")
    expect(tab.locator("#count")).to_have_text(f"pair {PAIRS} of {PAIRS}, {PAIRS - 1} answered")
    tab.reload()
    expect(tab.locator("#rater")).to_have_value("Ann")
    expect(tab.locator("#count")).to_have_text(f"pair {PAIRS} of {PAIRS}, {PAIRS - 1} answered")
    tab.keyboard.press("2")  # a tie
    press_for_a(blind, tab)
    expect(tab.locator("#done")).to_be_visible()
    ann = export(tab, tmp_path / "ann.json")
    assert ann["rater"] == "Ann" and len(ann["votes"]) == PAIRS

    other = open_page(new_client, blind)  # another browser, to which votes are brought
    other.set_input_files("#file", tmp_path / "ann.json")
    expect(other.locator("#rater")).to_have_value("Ann")
    expect(other.locator("#done")).to_be_visible()
    assert export(other, tmp_path / "again.json")["votes"] == ann["votes"]

    key = read_key(blind.key)
    result = count_votes(key, read_votes([tmp_path / "ann.json"], key))
    fidelity, alignment = (result["questions"][name]["rows"]["all"] for name in ("fidelity", "alignment"))
    assert (fidelity["a"]["correct"], fidelity["tie"]["correct"]) == (PAIRS - 1, 1)
    assert (alignment["a"]["correct"], alignment["tie"]["correct"]) == (1, PAIRS - 1)


def test_votes_by_buttons_can_be_changed(tab):
    fidelity = tab.locator('[data-question="fidelity"]')
    fidelity.get_by_role("button", name="Left").click()
    expect(fidelity.get_by_role("button", name="Left")).to_have_attribute("aria-pressed", "true")
    fidelity.get_by_role("button", name="Right").click()
    expect(fidelity.get_by_role("button", name="Left")).to_have_attribute("aria-pressed", "false")
    tab.locator('[data-question="alignment"]').get_by_role("button", name="Tie").click()
    expect(tab.locator("#count")).to_have_text(f"pair 2 of {PAIRS}, 1 answered")
    tab.keyboard.press("Backspace")
    expect(fidelity.get_by_role("button", name="Right")).to_have_attribute("aria-pressed", "true")


def test_keys_can_be_turned_off_and_do_not_act_in_the_name(tab):
    tab.fill("#rater", "")
    tab.locator("#rater").press("1")
    expect(tab.locator("#rater")).to_have_value("1")
    tab.uncheck("#keys")
    tab.keyboard.press("ArrowLeft")
    expect(tab.locator("[aria-pressed=true]")).to_have_count(0)


def test_sides_are_those_of_the_key(blind, tab):
    """Pixels of files cannot be read by a page from a file, so they are compared as they are on the screen."""
    for _ in range(PAIRS):
        side = side_of_a(blind, tab)
        shots = {name: tab.locator(f"#{name} img").first.screenshot() for name in ("left", "right")}
        bright = {name: mean_of_png(shot) for name, shot in shots.items()}
        assert (bright["left"] > bright["right"]) == (side == "left")
        tab.keyboard.press("n")


def mean_of_png(data):
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"page": "0" * 16}, "another page"),
        ({"format": "x"}, "no votes"),
        ({"rater": "Ben"}, "those of Ben"),
        ({"votes": {"9999": {"fidelity": "left"}}}, "damaged"),
        ({"votes": {"0000": {"fidelity": "up"}}}, "damaged"),
    ],
)
def test_other_files_are_not_imported(blind, tab, tmp_path, change, message):
    tab.fill("#rater", "Ann")
    votes = {"format": "imagen_jax votes 1", "page": read_key(blind.key).page, "rater": "Ann", "votes": {}}
    (tmp_path / "votes.json").write_text(json.dumps(votes | change))
    tab.set_input_files("#file", tmp_path / "votes.json")
    expect(tab.locator("#warning")).to_contain_text(message)
    expect(tab.locator("#count")).to_contain_text(", 0 answered")


def test_export_needs_a_name(tab):
    tab.click("#export")
    expect(tab.locator("#warning")).to_contain_text("name")
    expect(tab.locator("#rater")).to_be_focused()


def test_nothing_tells_of_a_model(blind, tab):
    """Neither the page nor its files: the key alone differs between this page and one with other sides."""
    page = blind.page.read_text()
    key = read_key(blind.key)
    assert not re.search(r"\bseed\b|metadata|benchmark", page) and key.a not in page and key.b not in page
    for path in (blind.page.parent / "images").iterdir():
        data = path.read_bytes()
        assert b"iTXt" not in data and b"tEXt" not in data
        assert re.fullmatch(r"\d{4}_(left|right)_\d\.png", path.name)


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(blind, new_client, viewport, scheme):
    tab = open_page(new_client, blind, viewport=viewport, color_scheme=scheme)
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: run make page")
    tab.add_script_tag(path=AXE)
    violations = tab.evaluate("axe.run().then(result => result.violations.map(one => one.id))")
    assert violations == []


@pytest.mark.screenshots
def test_screenshot(new_client, tmp_path):
    """Writes docs/images/blind.png: the shipped cascade with 12 steps and with 2."""
    prompts = load_prompts("shapes").select(["position"], 1)
    for name, steps in (("a", 12), ("b", 2)):
        pipeline = ImagenPipeline.from_pretrained("shapes", sampling=[{"num_inference_steps": steps}] * 2)
        request = SampleRequest(Texts(benchmark_texts(prompts, 4)))
        sample_benchmark(pipeline, prompts, request, tmp_path / name, 4)
    page = write_page(tmp_path / "a", tmp_path / "b", tmp_path / "out", tmp_path / "key.json", BlindSettings(seed=1))
    tab = open_page(new_client, page, viewport={"width": 900, "height": 850})
    tab.fill("#rater", "Ann")
    tab.locator("#rater").blur()
    tab.keyboard.press("ArrowLeft")
    write(tab, "blind")
