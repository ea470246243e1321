"""The site that `make book` writes: whole, readable by everybody in a browser, quiet, and the same from files and a server."""

import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from cipherdm.sharing import ThreeParties
from cipherdm.views import message_diagram
from cipherdm.views.widgets import page as written

ROOT = Path(__file__).parents[1]
# Roles of which everything on a page needs a name. Chromium's accessibility tree has them without one, if it is missing.
NAMELESS = re.compile(r"^ *- (?:button|checkbox|combobox|link|searchbox|slider|textbox)(?=:|$| \[)[^\n]*", re.MULTILINE)
UNDESCRIBED = (
    "[...document.querySelectorAll('article img')].filter((image) => !image.alt).map((image) => image.outerHTML)"
)
# Texts whose contrast to the background that they stand on is under what WCAG 2.2 asks for at level AA (1.4.3).
PALE = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, share = 1] = parts(getComputedStyle(element).backgroundColor);
    return share === 1 ? [r, g, b] : behind(element.parentElement).map((c, n) => share * [r, g, b][n] + (1 - share) * c);
  };
  const found = new Set(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const elements = new Set();
  while (walker.nextNode()) if (walker.currentNode.data.trim()) elements.add(walker.currentNode.parentElement);
  for (const element of elements) {
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const pair = [light(parts(colour)), light(behind(element))].sort((a, b) => b - a);
    const enough = size >= 24 || (size >= 18.6 && style.fontWeight >= 700) ? 3 : 4.5;
    const text = `${colour} on ${behind(element)}: ${element.textContent.slice(0, 40)}`;
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < enough) found.add(text);
  }
  return [...found];
}"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(browser, tmp_path_factory):
    """The folder of a site made of the checkout, without warnings."""
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def site(book):
    """The address of the site at a static server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=book)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def opened(browser, address: str):
    """A page, and a list of its requests for anything elsewhere and of its errors."""
    page, wrong, home = browser.new_page(viewport={"width": 1280, "height": 900}), [], address.split("/")[:3]
    page.on("request", lambda request: wrong.append(request.url) if request.url.split("/")[:3] != home else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    return page, wrong


def test_pages_are_readable_by_everybody(book, site, browser):
    """No request leaves a page; pictures have descriptions, controls names, texts contrast; a phone is wide enough."""
    paths = sorted(str(path.relative_to(book)) for path in book.rglob("*.html"))
    notebooks = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks | {"README.html", "SECURITY.html", "docs/api/cipherdm.sharing.html"} <= {*paths}
    page, wrong = opened(browser, f"{site}/{paths[0]}")  # one for all, which keeps what pages share
    faults = {}
    for path in paths:
        page.goto(f"{site}/{path}")
        for width in (390, 1280):  # of a phone and of a window, in pixels
            page.set_viewport_size({"width": width, "height": 900})
            wrong += [f"wider than {width}"] if page.evaluate("document.documentElement.scrollWidth") > width else []
        wrong += (
            NAMELESS.findall(page.locator("body").aria_snapshot()) + page.evaluate(UNDESCRIBED) + page.evaluate(PALE)
        )
        faults |= {path: [*wrong]} if wrong else {}
        wrong.clear()
    assert not faults


def test_a_slider_moves_without_python_by_keys_alone(book, browser):
    page, wrong = opened(browser, (book / "notebooks" / "06_latency.html").as_uri())
    caption = page.locator("[data-cipherdm] figcaption")
    assert re.search(
        r"Sampling 1 picture of mnist01-tiny, 20 steps, over 40 ms .* and 400 Mbit/s", caption.inner_text()
    )
    steps = page.get_by_role("slider", name="steps", exact=True)
    steps.press("ArrowRight")
    assert steps.get_attribute("aria-valuetext") == "30" and "30 steps" in caption.inner_text()
    page.get_by_role("slider", name="pictures at a time").press("End")
    assert "16 pictures" in caption.inner_text()
    page.get_by_role("combobox", name="network").select_option(label="LAN: 0.4 ms round trip, 5,000 Mbit/s")
    assert "over 0.4 ms round trip and 5,000 Mbit/s" in caption.inner_text()
    assert page.get_by_role("slider", name="bandwidth").get_attribute("aria-valuetext") == "5,000"
    page.get_by_role("checkbox", name="fast-rings", exact=True).check()
    assert "fast-rings" in caption.inner_text()
    page.get_by_role("slider", name="round trip").press("Home")
    assert page.get_by_role("combobox", name="network").input_value() == "0"
    assert not wrong


def test_messages_are_played_by_keys_and_by_a_button(browser, tmp_path):
    parties = ThreeParties()
    parties.share(np.ones(3))
    (tmp_path / "page.html").write_text(written("Messages", [], message_diagram(parties.transcript.table())))
    page, wrong = opened(browser, (tmp_path / "page.html").as_uri())
    caption = page.locator("figcaption")
    so_far = page.get_by_role("slider", name="messages so far")
    so_far.press("Home")
    so_far.press("ArrowRight")
    assert caption.inner_text() == "Message 2 of 6: round 1, party 1 to party 0, 32 bytes."
    page.get_by_role("combobox", name="messages of").select_option(label="client")
    assert caption.inner_text() == "Message 2 of 6: none that client sends or receives."
    page.get_by_role("button", name="play").click()
    caption.get_by_text("All messages that client sends or receives, in order").wait_for(timeout=20_000)
    page.get_by_role("button", name="play").wait_for()  # it has stopped
    assert so_far.get_attribute("aria-valuetext") == "6" and not wrong


@pytest.mark.parametrize("served", [False, True], ids=["files", "server"])
def test_a_formula_is_text_and_the_search_finds_it(book, site, browser, served):
    at = site if served else book.as_uri()
    page, wrong = opened(browser, f"{at}/notebooks/01_secret_sharing.html")
    assert page.locator("math").count() > 20
    page.goto(f"{at}/search.html?q=truncation")
    page.locator("#search-results a", has_text="Fixed point and truncation").first.wait_for(timeout=20_000)
    assert set(wrong) <= (set() if served else {"Failed to fetch"})  # excerpts, which no browser reads from files
