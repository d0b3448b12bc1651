"""The page of a sweep in a real browser: hover, click, keys, light and dark, wide and on a phone."""

import importlib

import numpy as np
import pytest

from imagen_jax.evaluation.sweep_page import render_results
from imagen_jax.evaluation.sweep_points import make_points
from imagen_jax.evaluation.sweep_results import SweepResults
from imagen_jax.images.html_page import image_uri

pytest.importorskip("playwright.sync_api")
expect = importlib.import_module("playwright.sync_api").expect

CAPTIONS = ["a red circle", "<b>a ring</b>"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    points = make_points({"guidance_scale": [1.0, 2.0, 4.0], "sampler": ["ddim", "ddpm"]})
    rows = [
        {
            "alignment": {"value": 0.5 + 0.07 * index, "low": 0.4 + 0.07 * index, "high": 0.6 + 0.07 * index},
            "fd_lite0": {"value": 100.0 + (index - 2) ** 2},
            "kid_lite0": {"value": 0.1 - 0.01 * index, "std": 0.004},
        }
        for index in range(len(points))
    ]
    images = [[image_uri(np.full((8, 8, 3), 40 * index, np.uint8))] * len(CAPTIONS) for index in range(len(points))]
    page = render_results(SweepResults(points, rows, "guidance_scale"), "A sweep", ["5 images"], images, CAPTIONS)
    file = tmp_path_factory.mktemp("sweep") / "sweep.html"
    file.write_text(page)
    return file


@pytest.fixture
def tab(file_tab):
    return file_tab


def label(card):
    return card.locator("h2").inner_text()


def test_points_show_their_images(tab):
    points, shown, kept = tab.locator("#plot .point"), tab.locator("#shown"), tab.locator("#kept")
    assert points.count() == 6
    points.nth(1).hover()
    expect(shown.locator("h2")).to_have_text("guidance_scale 1, sampler ddpm")
    expect(shown.locator("img")).to_have_count(2)
    assert shown.locator("figcaption").all_inner_texts() == CAPTIONS
    expect(kept).to_be_hidden()
    points.nth(1).click()
    points.nth(4).hover()
    assert (label(shown), label(kept)) == ("guidance_scale 4, sampler ddim", "guidance_scale 1, sampler ddpm")
    assert "57.0%" in kept.locator("dl").inner_text()
    points.nth(1).click()
    expect(kept).to_be_hidden()
    tab.locator("#points button").nth(5).click()
    assert label(shown) == "guidance_scale 4, sampler ddpm"
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_keys_lead_from_point_to_point(tab):
    """By alignment, which rises with the index here; Tab leads out again."""
    shown, kept = tab.locator("#shown"), tab.locator("#kept")
    tab.locator("#legend input").last.focus()
    tab.keyboard.press("Tab")
    first = label(shown)
    tab.keyboard.press("ArrowRight")
    second = label(shown)
    assert first != second
    tab.keyboard.press("Enter")
    tab.keyboard.press("ArrowLeft")
    assert (label(shown), label(kept)) == (first, second)
    tab.keyboard.press("Escape")
    expect(kept).to_be_hidden()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.tagName") == "BUTTON"


def test_other_metrics_and_fewer_curves(tab):
    points = tab.locator("#plot .point")
    labels = points.evaluate_all("all => all.filter((g) => g.ariaLabel.endsWith('Pareto-optimal')).length")
    tab.locator("#curve").select_option("1")
    assert points.evaluate_all("all => all.filter((g) => g.ariaLabel.endsWith('Pareto-optimal')).length") == 1 != labels
    tab.locator("#legend input").first.uncheck()
    expect(points).to_have_count(3)
    tab.locator("#legend input").last.uncheck()
    expect(points).to_have_count(0)
    expect(tab.locator("#plot")).to_contain_text("no series is chosen")


def test_text_can_be_read(tab):
    """A contrast of at least 4.5 between the text and what is behind it."""
    luminance = """(color) => {
        const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }"""
    for selector, name in (("body", "color"), (".note", "color"), ("#plot .tick", "fill"), ("#points button", "color")):
        pair = tab.evaluate(
            f"""([selector, name]) => {{
                const value = {luminance};
                const front = value(getComputedStyle(document.querySelector(selector))[name]);
                const back = value(getComputedStyle(document.body).backgroundColor);
                return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
            }}""",
            [selector, name],
        )
        assert pair >= 4.5, selector
