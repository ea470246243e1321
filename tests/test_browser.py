"""A reader's view of notebook 05: JupyterLab in a headless Chromium, where moving a slider changes the picture.

`CIPHERDM_SCREENSHOT=figures/sliders.png pytest tests/test_browser.py` also saves what the browser shows; a plain run changes
no file of the project.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect
from processes import free_port, running_with

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAME = "05_secure_activations.ipynb"
MARK = "CIPHERDM_TEST_BROWSER"  # set for JupyterLab, and inherited by all that it starts
SETTINGS = {  # no questions on the first start, and every cell on the page, not only those in sight
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.textContent)"
SECONDS = 1000  # Playwright counts in milliseconds
RUN_TIMEOUT = 240 * SECONDS  # half a minute on an idle machine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """The address of a JupyterLab with a copy of the notebook, without outputs, so that what appears is this run's."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.read(NOTEBOOKS / NAME, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    (folder / "root").mkdir()
    nbformat.write(notebook, folder / "root" / NAME)
    for plugin, settings in SETTINGS.items():
        extension, _, name = plugin.partition(":")
        path = folder / "settings" / extension / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    token, mark, port = uuid.uuid4().hex, uuid.uuid4().hex, free_port()
    process = _start_lab(folder, port, token, mark)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status", token, process, folder / "lab.log")
        yield f"{address}/lab/tree/{NAME}?token={token}"
    finally:
        _stop(process)
    deadline = time.monotonic() + 15
    while (left := running_with(MARK, mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, f"processes are left: {left}"


@pytest.fixture(scope="module")
def page(browser, lab):
    """The notebook in a browser, run from the first cell to the last."""
    shown = browser.new_page(viewport={"width": 1080, "height": 970})
    shown.goto(lab, timeout=60 * SECONDS)
    shown.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60 * SECONDS)
    _run_all(shown)
    return shown


def test_a_slider_moves_the_picture_and_the_button_runs_three_parties(page):
    fitter = page.locator(".jp-OutputArea-output", has=page.get_by_role("slider", name="degree"))
    picture = fitter.locator("img[alt^='Two plots over x']")
    picture.wait_for(timeout=RUN_TIMEOUT)
    _wait_until_all_cells_ran(page)
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0

    degree = fitter.get_by_role("slider", name="degree")
    assert degree.get_attribute("aria-valuetext") == "4" and "degree 4" in picture.get_attribute("alt")
    before = picture.screenshot()
    degree.press("ArrowRight")
    fitter.locator("img[alt*='of degree 5']").wait_for(timeout=30 * SECONDS)
    assert degree.get_attribute("aria-valuetext") == "5" and picture.screenshot() != before
    table = fitter.locator("table", has_text="yours, predicted")
    assert "780" in table.inner_text()  # 52 bytes more than degree 4

    fitter.get_by_role("button", name="run on three parties").click()
    expect(fitter.get_by_role("status")).to_have_text("It begins ...")
    expect(fitter.locator("progress")).to_be_visible()
    table.get_by_text("measured on three parties").wait_for(timeout=60 * SECONDS)
    expect(fitter.get_by_role("status")).to_be_empty()
    rows = [row.split("\t")[1:] for row in table.inner_text().splitlines() if "yours" in row or "measured" in row]
    assert len(rows) == 2 and rows[0][1:] == rows[1][1:]  # bytes and messages as predicted

    target = os.environ.get("CIPHERDM_SCREENSHOT")
    if target:
        page.keyboard.press("Control+b")  # without the list of files
        fitter.evaluate("element => element.scrollIntoView()")
        page.wait_for_timeout(SECONDS)
        page.screenshot(path=target)


def test_arrows_move_an_explorers_controls_and_not_the_cells(page):
    _wait_until_all_cells_ran(page)
    explorer = page.locator(".jp-OutputArea-output", has=page.get_by_role("combobox", name="cost")).last
    cost, caption = explorer.get_by_role("combobox", name="cost"), explorer.locator("figcaption")
    assert "SiLU functions, bytes per element" in caption.inner_text()
    cost.focus()
    page.keyboard.press("ArrowDown")
    expect(caption).to_contain_text("SiLU functions, messages")


def _run_all(page) -> None:
    """What Run All Cells does, once the page is connected to its kernel: before, it would ask for one, or start another."""
    page.wait_for_function(f"() => {KERNEL}?.connectionStatus === 'connected'", timeout=60 * SECONDS)
    page.wait_for_function(f"() => {KERNEL}?.status === 'idle'", timeout=60 * SECONDS)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def _wait_until_all_cells_ran(page) -> None:
    """Every code cell has its number."""
    page.wait_for_function(f"() => {PROMPTS}.every(text => /\\[\\d+\\]/.test(text))", timeout=RUN_TIMEOUT)


def _start_lab(folder: Path, port: int, token: str, mark: str) -> subprocess.Popen:
    settings = [
        f"--ServerApp.root_dir={folder / 'root'}",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--LabApp.expose_app_in_browser=True",  # for window.jupyterapp, since menus open and close as they please
    ]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *settings]
    environment = os.environ | {
        MARK: mark,
        "JUPYTER_TOKEN": token,
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "OMP_NUM_THREADS": "1",
    }
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"):
        environment[name] = str(folder / name)
    with (folder / "lab.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)


def _wait_for(address: str, token: str, process: subprocess.Popen, log: Path) -> None:
    """Until the server answers. Fails with the end of its log if it ends, or does not within a minute."""
    request = urllib.request.Request(address, headers={"Authorization": f"token {token}"})
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End JupyterLab, which ends its kernels, which end their parties."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
