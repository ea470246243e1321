"""The committed notebooks are whole: executed in order, clean, and readable without a kernel. nbval runs them elsewhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cipherdm.lessons import EXERCISES

FOLDER = Path(__file__).parent.parent / "notebooks"
LARGEST_FILE = 1_500_000  # bytes; GitHub shows larger notebooks slowly or not at all
LONGEST_CELL = 25  # lines of code
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
OPENING = {
    "what the reader will learn": r"you will learn",
    "what the reader needs": r"you need",
    "how long it runs": r"\b(second|minute)s?\b",
}
EXERCISE = r'answer = \.\.\.\ncdm\.lessons\.check\("(\d+\.\d+)", answer\)'
MACHINE_PATH = re.compile(r"(?<![\w.~])/(root|home|work|tmp|opt|usr|var|Users)/\w")


def faults(path: Path) -> list[str]:
    """What is wrong with a notebook, a sentence for each thing."""
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    found = []
    if path.stat().st_size > LARGEST_FILE:
        found.append(f"the file has {path.stat().st_size:,} bytes")
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("its kernel is not called python3")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not executed from the first to the last in a fresh kernel")
    found += _faults_of_text(cells)
    for cell in code:
        found += [f"{fault}: {cell.source.partition(chr(10))[0]!r}" for fault in _faults_of_code(cell)]
    return found + _faults_of_widgets(notebook, code)


def _faults_of_text(cells: list) -> list[str]:
    first_code = next((index for index, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    opening = "\n".join(cell.source for cell in cells[:first_code])
    found = [] if opening.startswith("# ") else ["it does not open with a heading"]
    found += [
        f"its opening does not say {what}"
        for what, pattern in OPENING.items()
        if not re.search(pattern, opening, re.IGNORECASE)
    ]
    return found + _faults_of_exercises(cells)


def _faults_of_exercises(cells: list) -> list[str]:
    """A cell for an answer is empty but for its check, and a folded solution that assigns the answer follows it."""
    places = [index for index, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    found = [] if places else ["it does not end with exercises"]
    for place in places:
        solution = cells[place + 1].source if place + 1 < len(cells) else ""
        if not re.fullmatch(EXERCISE, cells[place].source):
            found.append("the cell of an exercise is more than an empty answer and its check")
        if "<details><summary>Solution" not in solution or "answer =" not in _solution(solution):
            found.append("an exercise is not followed by a folded solution that assigns the answer")
    return found


def _solution(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def _faults_of_code(cell) -> list[str]:
    found = []
    if len(cell.source.splitlines()) > LONGEST_CELL:
        found.append(f"a cell has more than {LONGEST_CELL} lines")
    tags = cell.metadata.get("tags", [])
    if "NBVAL" in cell.source:
        found.append("a cell is marked in its text; nbval reads the tag nbval-check-output as well")
    if _only_asserts(cell.source) and not ("check" in tags and cell.metadata.get("jupyter", {}).get("source_hidden")):
        found.append("a cell that only asserts is not tagged check, and hidden")
    if "nbval-check-output" in tags and (cell.execution_count is None or not cell.outputs):
        found.append("a cell is marked for comparison, but has no output to compare with")
    if any(output.output_type == "stream" and output.name == "stderr" for output in cell.outputs):
        found.append("a cell wrote to stderr")
    if any(output.output_type == "error" for output in cell.outputs):
        found.append("a cell ended with an error")
    if any(MACHINE_PATH.search(text) for output in cell.outputs for text in _texts(output)):
        found.append("an output shows a path of the machine")
    if any(_undescribed(output) for output in cell.outputs):
        found.append("a figure has no description in words (cdm.show gives it one)")
    return found


def deep_imports(path: Path) -> list[str]:
    """Imports of a notebook's code, and of the code in its solutions, from deeper than a package's face or an experiment."""
    sources = []
    for cell in nbformat.read(path, as_version=4).cells:
        sources.append(cell.source if cell.cell_type == "code" else _solution(cell.source))
    names = []
    for node in (node for source in sources for node in ast.walk(_code(source))):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("cipherdm") and name.count(".") > 1]


def _texts(output) -> list[str]:
    """The readable parts of an output."""
    if output.output_type == "stream":
        return [output.text]
    texts = {kind: str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return [re.sub(r'src="data:image/[^"]*"', "", text) for text in texts.values()]


def _code(source: str) -> ast.Module:
    return ast.parse(re.sub(r"^[%!].*", "", source, flags=re.MULTILINE))


def _only_asserts(source: str) -> bool:
    body = _code(source).body
    return bool(body) and all(isinstance(statement, ast.Assert) for statement in body)


def _undescribed(output) -> bool:
    """JupyterLab shows HTML before a picture, and reads descriptions in HTML only."""
    data = output.get("data", {})
    described = re.search(r'<img alt="[^"]+".*<figcaption>[^<]+<', data.get("text/html", ""), re.DOTALL)
    return bool({"image/png", "image/svg+xml"} & data.keys()) and not described


def _faults_of_widgets(notebook, code: list) -> list[str]:
    """A widget is drawn from the state in the file where there is no kernel, and not at all on GitHub."""
    states = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    found = []
    if "widgets" in notebook.metadata and not states:
        found.append("its metadata has widgets, but not their state")
    shown = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in code]
    for index, cell in enumerate(code):
        views = [output.data[WIDGET_VIEW] for output in cell.outputs if WIDGET_VIEW in output.get("data", {})]
        if any(view["model_id"] not in states for view in views):
            found.append(f"the state of a widget was not saved: {cell.source!r}")
        beside = set().union(*shown[max(index - 1, 0) : index + 2])
        if views and not beside & {"image/png", "text/html"}:
            found.append(f"no plain figure or table stands beside a widget: {cell.source!r}")
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_whole(path):
    assert faults(path) == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_no_deeper_than_faces(path):
    assert deep_imports(path) == []


def test_each_exercise_has_an_answer_to_check_by():
    sources = [cell.source for path in sorted(FOLDER.glob("*.ipynb")) for cell in nbformat.read(path, 4).cells]
    assert [found[1] for source in sources if (found := re.fullmatch(EXERCISE, source))] == list(EXERCISES)


def test_the_notebooks_are_numbered_in_reading_order():
    """No number is given twice, though one may be missing, and README lists all notebooks in their order."""
    names = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    numbers = [re.match(r"(\d\d)_", name)[1] for name in names]
    assert numbers[0] == "00" and len(set(numbers)) == len(numbers)
    readme = (FOLDER.parent / "README.md").read_text()
    assert list(dict.fromkeys(re.findall(r"\(notebooks/(\w+)\.ipynb\)", readme))) == names


# From here on: the checks themselves can fail.


def good_notebook():
    """A small notebook that has no faults."""
    html = '<figure><img alt="a line" src="data:"><figcaption>A line.</figcaption></figure>'
    picture = {"image/png": "iVBORw0KGgo=", "text/html": html}
    widget = {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "HBox()"}
    cells = [
        new_markdown_cell("# Title\n\nYou will learn this. You need that. It runs for 2 seconds."),
        new_code_cell("1 + 1", execution_count=1, metadata={"tags": ["nbval-check-output"]}),
        new_code_cell("draw()", execution_count=2),
        new_code_cell("slider()", execution_count=3),
        new_markdown_cell("## Exercises\n\n**1.** How much is it?"),
        new_code_cell(
            'answer = ...\ncdm.lessons.check("1.1", answer)', execution_count=4, metadata={"tags": ["exercise"]}
        ),
        new_markdown_cell("<details><summary>Solution</summary>\n\n```python\nanswer = 2\n```\n\n</details>"),
    ]
    cells[1].outputs = [new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
    cells[2].outputs = [new_output("display_data", picture)]
    cells[3].outputs = [new_output("display_data", widget)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    state = {WIDGET_STATE: {"version_major": 2, "version_minor": 0, "state": {"1": {}}}}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "widgets": state})


def _print(name: str, text: str) -> Callable:
    return lambda n: n.cells[2].outputs.append(new_output("stream", name=name, text=text))


SPOILS: dict[str, tuple[Callable, str]] = {
    "heading": (lambda n: n.cells[0].update(source=n.cells[0].source[2:]), "heading"),
    "learn": (lambda n: n.cells[0].update(source="# Title\n\nYou need that, and 2 seconds."), "will learn"),
    "need": (lambda n: n.cells[0].update(source="# Title\n\nYou will learn this in 2 seconds."), "needs"),
    "length": (lambda n: n.cells[0].update(source="# Title\n\nYou will learn this. You need that."), "how long"),
    "exercises": (lambda n: n.cells.pop(-2), "exercises"),
    "solutions": (lambda n: n.cells[-1].update(source="## Exercises"), "folded solution"),
    "no answer": (lambda n: n.cells[-1].update(source=n.cells[-1].source.replace("answer", "x")), "folded solution"),
    "answered": (lambda n: n.cells[-2].update(source=n.cells[-2].source.replace("...", "2")), "empty answer"),
    "kernel": (lambda n: n.metadata.kernelspec.update(name="mine"), "kernel"),
    "never run": (lambda n: n.cells[2].update(execution_count=None), "first to the last"),
    "run twice": (lambda n: n.cells[3].update(execution_count=4), "first to the last"),
    "compared, never run": (lambda n: n.cells[1].update(execution_count=None, outputs=[]), "marked for comparison"),
    "compared by tag": (lambda n: n.cells[2].update(metadata={"tags": ["nbval-check-output"]}, outputs=[]), "marked"),
    "stderr": (_print("stderr", "warning"), "stderr"),
    "error": (lambda n: n.cells[2].outputs.append(new_output("error", ename="E", evalue="", traceback=[])), "error"),
    "path": (_print("stdout", "wrote /home/someone/figure.png"), "path of the machine"),
    "long": (lambda n: n.cells[2].update(source="pass\n" * 26), "25 lines"),
    "large": (lambda n: n.cells[-1].update(source=n.cells[-1].source + "x" * LARGEST_FILE), "bytes"),
    "no alt text": (lambda n: n.cells[2].outputs[0].data.pop("text/html"), "description"),
    "marked in its text": (lambda n: n.cells[2].update(source="# NBVAL_CHECK_OUTPUT\ndraw()"), "marked in its text"),
    "only asserts": (lambda n: n.cells[2].update(source="assert True"), "only asserts"),
    "no widget state": (lambda n: n.metadata.widgets[WIDGET_STATE].update(state={"2": {}}), "state of a widget"),
    "foreign widgets": (lambda n: n.metadata.update(widgets={"other": {}}), "not their state"),
    "widget alone": (lambda n: n.cells.insert(3, new_code_cell("pass", execution_count=3)), "beside a widget"),
}


@pytest.mark.parametrize("name", [None, *SPOILS])
def test_the_checks_find_what_they_look_for(name, tmp_path):
    notebook, path = good_notebook(), tmp_path / "notebook.ipynb"
    spoil, words = SPOILS.get(name, (lambda n: None, ""))
    spoil(notebook)
    nbformat.write(notebook, path)
    found = faults(path)
    assert any(words in fault for fault in found) if words else found == []


def test_imports_that_are_too_deep_are_found(tmp_path):
    code = new_code_cell(
        "%time\nfrom cipherdm.views.style import show\nimport cipherdm.costs, cipherdm_experiments.step"
    )
    text = new_markdown_cell(
        "```python\nfrom cipherdm.engine import Node\nimport cipherdm_experiments.training.loop\n```"
    )
    nbformat.write(new_notebook(cells=[code, text]), tmp_path / "notebook.ipynb")
    assert deep_imports(tmp_path / "notebook.ipynb") == ["cipherdm.views.style", "cipherdm_experiments.training.loop"]


@pytest.mark.parametrize("source", ["assert abs(1.5 - 1) < 0.1", "print(3)", "print('right')"])
def test_nbval_fails_on_false_assertions_and_changed_outputs(source, tmp_path):
    tags = {"tags": ["nbval-check-output"]}
    cell = new_code_cell(
        source, execution_count=1, metadata=tags, outputs=[new_output("stream", name="stdout", text="right\n")]
    )
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=[cell]), path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == (0 if "right" in source else 1), done.stdout
