"""The experiments, found in the files of this folder, so that adding one touches no other file."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parent


def commands() -> dict[str, str]:
    """Return each module's docstring of `measure` by the command's name, the module's with hyphens, without importing any."""
    found = {}
    for path in sorted(_FOLDER.glob("*.py")):
        text = path.read_text()
        if "\ndef measure(" in text:
            (function,) = (node for node in ast.parse(text).body if getattr(node, "name", None) == "measure")
            found[path.stem.replace("_", "-")] = ast.get_docstring(function) or ""
    return found


def modules_with(text: str) -> Iterator[ModuleType]:
    """Import and yield the modules whose source has this text, such as a definition."""
    for path in sorted(_FOLDER.glob("*.py")):
        if text in path.read_text():
            yield import_module(f".{path.stem}", __package__)
