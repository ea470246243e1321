"""`cipherdm explorer` writes sliders as one page, which a browser moves by itself."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.cli import build
from cipherdm.cli.explorer import TITLE


def written(path: Path):
    return CliRunner().invoke(build(), ["explorer", "--no-browser", "--out", str(path)])


@pytest.mark.slow
def test_a_slider_of_the_page_changes_what_it_says(browser, tmp_path):
    assert written(tmp_path / "page.html").exit_code == 0
    requests, shown = [], browser.new_page(viewport={"width": 1160, "height": 900})
    shown.on("request", lambda request: requests.append(request.url))
    shown.goto((tmp_path / "page.html").as_uri())
    assert shown.title() == shown.locator("h1").inner_text() == TITLE
    caption = shown.locator("figcaption")
    assert "Sampling 1 picture of mnist01-tiny, 20 steps" in caption.inner_text()
    shown.get_by_role("slider", name="steps").press("ArrowRight")
    assert "mnist01-tiny, 30 steps" in caption.inner_text()
    target = os.environ.get("CIPHERDM_EXPLORER_SCREENSHOT")
    if target:
        shown.screenshot(path=target)
    assert requests == [(tmp_path / "page.html").as_uri()]


def test_a_page_that_cannot_be_written_is_refused(tmp_path):
    result = written(tmp_path / "page.png")
    assert isinstance(result.exception, CipherDMError) and ".html" in str(result.exception)
    assert not list(tmp_path.iterdir())
