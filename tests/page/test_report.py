"""The page of a report in a real browser: a table is copied, and all fits, wide and on a phone."""

import importlib

import pytest

from imagen_jax.evaluation.report.report import report
from tests.helpers import evaluations
from tests.page.conftest import AXE

pytest.importorskip("playwright.sync_api")
expect = importlib.import_module("playwright.sync_api").expect


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for name, value in (("a", 20.0), ("b_with_a_long_name_that_is_one_word", 10.0)):
        evaluations.write_scores(root / name, int(value > 15), {"fd_lite0": evaluations.figure(value)})
        evaluations.write_sweep(root / name, value)
    evaluations.write_benchmark(root / "prompts")
    evaluations.write_votes(root / "votes.json")
    names = ("a", "b_with_a_long_name_that_is_one_word", "prompts", "votes.json")
    return report([root / name for name in names], root / "all.html").files[0]


@pytest.fixture
def tab(file_tab):
    return file_tab


def test_page_fits_and_shows_all_images(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert tab.locator("table b").count() > 0 and tab.locator("svg.chart").count() >= 3


def test_table_is_copied(tab, page_file):
    metrics = tab.locator("section", has=tab.get_by_role("heading", name="Metrics", level=2))
    metrics.get_by_text("LaTeX", exact=True).click()
    button = metrics.get_by_role("button", name="Copy")
    button.click()
    expect(metrics.locator("button.copy").first).to_have_text("Copied")
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied in page_file.with_suffix(".tex").read_text() and r"\textbf{10}" in copied


def test_page_is_accessible(tab):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: run make page")
    tab.locator("summary").first.click()
    # by the debugger: the page's policy allows no scripts from elsewhere
    tab.evaluate(AXE.read_text())
    assert tab.evaluate("axe.run().then(result => result.violations.map(one => one.id))") == []
