"""The site that `make book` writes: whole, read in a browser from its files, and quiet."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (390, 1280)  # of a phone and of a window, in pixels
UNDESCRIBED = "[...document.querySelectorAll('article img')].filter(image => !image.alt)"
UNNAMED = "[...document.querySelectorAll('article input, select')].filter(input => !input.labels.length)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine (Debian: apt install chromium)"),
]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The folder of a site made of the checkout, without warnings."""
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser, path: Path, width: int = 1280):
    """A page from the file system, and lists of its requests for anything else and of its errors."""
    page, requests, errors = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on(
        "request", lambda request: requests.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    return page, requests, errors


def test_pages_are_readable_on_their_own(book, browser):
    """No request leaves a page; pictures have descriptions, controls names; nothing is wider than the window."""
    paths = sorted(book.rglob("*.html"))
    names = {path.stem for path in paths}
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} | {
        "README",
        "SECURITY",
        "cipherdm.sharing",
    } <= names
    for path in paths:
        for width in WIDTHS:
            page, requests, errors = opened(browser, path, width)
            assert (requests, errors) == ([], []), path.name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
            assert page.evaluate(f"{UNDESCRIBED}.length + {UNNAMED}.length") == 0, path.name
            page.close()


def test_a_slider_moves_without_python_by_keys_alone(book, browser):
    page, *_ = opened(browser, book / "notebooks" / "06_latency.html")
    caption = page.locator("[data-cipherdm] figcaption")
    assert re.search(
        r"Sampling 1 picture of mnist01-tiny, 20 steps, over 40 ms .* and 400 Mbit/s", caption.inner_text()
    )
    steps = page.get_by_role("slider", name="steps")
    steps.focus()
    page.keyboard.press("ArrowRight")
    assert steps.get_attribute("aria-valuetext") == "30" and "30 steps" in caption.inner_text()
    page.get_by_role("slider", name="pictures at a time").focus()
    page.keyboard.press("End")
    assert "16 pictures" in caption.inner_text()
    page.get_by_role("combobox", name="network").select_option(label="LAN: 0.4 ms round trip, 5,000 Mbit/s")
    assert "over 0.4 ms round trip and 5,000 Mbit/s" in caption.inner_text()
    assert page.get_by_role("slider", name="bandwidth").get_attribute("aria-valuetext") == "5,000"
    page.get_by_role("checkbox", name="fast-rings", exact=True).check()
    assert "fast-rings" in caption.inner_text()
    page.get_by_role("slider", name="round trip").focus()
    page.keyboard.press("Home")
    assert page.get_by_role("combobox", name="network").input_value() == "0"


def test_a_formula_is_text_and_the_search_finds_it(book, browser):
    page, *_ = opened(browser, book / "notebooks" / "01_secret_sharing.html")
    assert page.locator("math").count() > 20
    page, *_ = opened(browser, book / "search.html")
    page.goto(f"{(book / 'search.html').as_uri()}?q=truncation")
    page.locator("#search-results a", has_text="Fixed point and truncation").first.wait_for(timeout=20_000)
