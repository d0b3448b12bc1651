"""The page of `imagen serve` in a real browser, before a real server: `make page` runs these tests."""

import contextlib
import importlib
import os
import re
import shutil
from pathlib import Path

import httpx
import pytest

from tests.helpers.servers import serve

AXE = Path(__file__).parents[2] / ".cache" / "page" / "node_modules" / "axe-core" / "axe.min.js"
PATIENCE = 40_000  # milliseconds, on a busy machine
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def pytest_addoption(parser):
    parser.addoption("--screenshots", action="store_true", help="write docs/images/serve_*.png, and test nothing")


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--screenshots", False)
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    left_out = [item for item in here if (item.get_closest_marker("screenshots") is not None) != wanted]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def pytest_configure(config):
    config.addinivalue_line("markers", "screenshots: writes the images of the documentation")


@pytest.fixture(scope="module")  # no longer: its event loop would be in the way of other tests
def browser():
    api = importlib.import_module("playwright.sync_api")  # without it, test_page.py is skipped
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: install it, or say where it is by $CHROMIUM")
    api.expect.set_options(timeout=PATIENCE)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        api.sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=chromium, args=arguments)) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    """A server without a token."""
    with serve(tmp_path_factory.mktemp("server"), "--stages=shapes") as server:
        yield server


class Client:
    """A browser's profile: its tabs share what they store.

    Args:
        context: of Playwright.
        url: of the server.
    """

    def __init__(self, context, url):
        self.context, self.url, self.problems, self._expected = context, url, [], []
        context.set_default_timeout(PATIENCE)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("console", self._read_console)

    def _read_console(self, message):
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def expect_failed_requests(self, pattern):
        """Takes requests that fail for right, where the browser's message has a pattern."""
        self._expected.append(f"Failed to load resource: .*{pattern}")

    def open(self, path="/"):
        """Returns a new tab with the page, once it knows the cascade."""
        tab = self.context.new_page()
        tab.goto(self.url + path)
        tab.locator("#cascade-name", has_text="shapes").wait_for()
        return tab

    def check(self):
        """Asserts that the console has no error: none of scripts, of the content security policy, or of requests."""
        unexpected = [text for text in self.problems if not any(re.search(one, text) for one in self._expected)]
        assert not unexpected


@pytest.fixture
def new_client(browser):
    """Returns a function that makes a `Client`; at the end, their consoles must be clean."""
    with contextlib.ExitStack() as stack:

        def make(url, viewport=WIDE, **settings):
            context = stack.enter_context(contextlib.closing(browser.new_context(viewport=viewport, **settings)))
            client = Client(context, url)
            clients.append(client)
            return client

        clients = []
        yield make
        for client in clients:
            client.check()


@pytest.fixture
def client(new_client, server):
    """A wide, light one."""
    return new_client(server.url)


@pytest.fixture
def tab(client):
    """The page in it."""
    return client.open()


@pytest.fixture(params=[(WIDE, "light"), (WIDE, "dark"), (PHONE, "light")], ids=["wide", "dark", "phone"])
def file_tab(request, new_client, page_file):
    """The file of a module's `page_file`, without a network."""
    viewport, scheme = request.param
    client = new_client(page_file.as_uri(), viewport, color_scheme=scheme, offline=True)
    page = client.context.new_page()
    page.goto(client.url)
    return page


@pytest.fixture(scope="module")
def made(server):
    """Two jobs that are done, the older one first, with seeds beyond what a JavaScript number holds."""
    seeds = 2**64 - 3
    bodies = [
        {"prompts": "a red circle", "seeds": seeds, "count": 2},
        {
            "prompts": "two blue squares",
            "negative_prompt": "a ring",
            "seeds": seeds,
            "settings": [{"num_inference_steps": 4}, {}],
        },
    ]
    return [finished(server.url, httpx.post(f"{server.url}/v1/jobs", json=body).json()["id"]) for body in bodies]


def finished(url, job_id):
    """Returns a job, once it has ended."""
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=300) as response:
        response.read()
    return httpx.get(f"{url}/v1/jobs/{job_id}").json()


def paint(tab, *points):
    """Paints from point to point, which are shares of the sides of the mask."""
    tab.locator("#edit-mask").scroll_into_view_if_needed()
    box = tab.locator("#edit-mask").bounding_box()
    for number, (x, y) in enumerate(points):
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            tab.mouse.down()
    tab.mouse.up()
