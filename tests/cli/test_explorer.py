"""`cipherdm explorer` serves the sliders on this machine, a browser can move them, and nothing is left behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

import nbformat
import pytest
from processes import free_port, running_with
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.cli import build
from cipherdm.cli.explorer import ADDRESS, TITLE, explorer, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MARK = "CIPHERDM_TEST_EXPLORER"  # set for the command, and inherited by the kernels that it starts
SECONDS = 1000  # Playwright counts in milliseconds


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a running explorer. Afterwards it is terminated, and all that it started must be gone."""
    mark, port, tmp_path = uuid.uuid4().hex, free_port(), tmp_path_factory.mktemp("explorer")
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        environment[name] = str(tmp_path / name)
    command = [
        sys.executable,
        "-c",
        "from cipherdm.cli import main; main()",
        "explorer",
        "--no-browser",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
    address = f"http://{ADDRESS}:{port}"
    try:
        _wait_for(address, process, tmp_path / "log")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    deadline = time.monotonic() + 15
    while (left := running_with(MARK, mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes are left: {left}"
    assert not list((tmp_path / "TMPDIR").glob("cipherdm-explorer-*"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine (Debian: apt install chromium)")
def test_a_slider_of_the_page_changes_what_it_says(page):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1160, "height": 900})
        shown.goto(page, timeout=120 * SECONDS)
        assert TITLE in shown.locator("h1").first.inner_text(timeout=120 * SECONDS)
        text = shown.locator(".widget-html", has_text="Sampling 1 picture of mnist01-tiny, 20 steps")
        text.wait_for(timeout=120 * SECONDS)
        steps = shown.locator(".widget-hslider", has_text=re.compile("^steps")).locator(".noUi-handle")
        steps.focus()
        steps.press("ArrowRight")
        shown.locator(".widget-html", has_text="mnist01-tiny, 30 steps").wait_for(timeout=60 * SECONDS)
        target = os.environ.get("CIPHERDM_EXPLORER_SCREENSHOT")
        if target:
            shown.screenshot(path=target)
        browser.close()


@pytest.mark.slow
def test_the_page_holds_the_sliders(page):
    with urllib.request.urlopen(page, timeout=120) as response:
        text = response.read().decode()
    assert TITLE in text
    assert "application/vnd.jupyter.widget-view+json" in text and "VBox(children=(HBox(" in text
    assert "latency_explorer()" not in text  # what the page is made of is not shown


def test_a_port_in_use_is_refused():
    with socket.create_server((ADDRESS, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CipherDMError, match=f"port {port} of this machine cannot be used .*--port"):
            explorer(port, browser=False)
        result = CliRunner().invoke(build(), ["explorer", "--no-browser", "--port", str(port)])
        assert isinstance(result.exception, CipherDMError) and "The page is at" not in result.output


def test_the_page_is_a_notebook_of_text_and_sliders(tmp_path):
    notebook = nbformat.read(write_page(tmp_path), as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code"]


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    """Until the port answers, which it does before a kernel is started. Fails with the end of the log if it does not."""
    host, port = address.removeprefix("http://").split(":")
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the explorer did not start:\n{log.read_text(errors='replace')[-2000:]}")
