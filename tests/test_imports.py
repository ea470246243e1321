"""Imports go one way, also inside functions and for type hints: a module imports only from what stands below it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "cipherdm"

GROUND = ("errors", "hardening", "files", "records", "progress", "likeness", "datasets", "lessons")
"""Modules that everything may use, each only those before it."""

RESTS_ON = {
    "sharing": (),
    "approximations": (),
    "kernels": (),
    "costs": (),
    "schedule_rows": (),
    "schedules": ("schedule_rows",),
    "protocols": ("approximations", "kernels"),
    "engine": ("kernels", "costs"),
    "models": ("protocols",),
    "owner": ("models", "protocols", "schedules"),
    "sampling": ("owner", "models", "engine", "schedules"),
    "hosts": ("sampling",),
    "calibration": ("sampling", "owner"),
    "private": (),
    "views": ("sharing", "hosts", "calibration", "private"),
    "split": ("hosts",),
    "cli": ("views", "split"),
    "__main__": ("cli",),
}
"""The packages, and what each rests on; it may also import what that rests on."""


def below(name: str) -> set[str]:
    """All that a package may import from."""
    if name in GROUND:
        return set(GROUND[: GROUND.index(name)])
    return {*GROUND, *RESTS_ON[name]}.union(*(below(other) for other in RESTS_ON[name]))


def imported(path: Path):
    """Each name that a module imports, as its parts from the outermost package on."""
    package = ["cipherdm", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            yield from ([*start, *(node.module or "").split("."), alias.name] for alias in node.names)


def test_imports_go_down():
    upwards = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":  # the package's face names everything, and imports it only when it is used
            continue
        for root, *parts in imported(path):
            inner = next((part for part in parts if part), own)
            wrong = inner not in {own, *below(own)} if root == "cipherdm" else root == "cipherdm_experiments"
            if wrong:
                upwards.append(f"{path.relative_to(ROOT.parent)} imports {'.'.join([root, *parts])}")
    assert not upwards, "\n".join(upwards)


def test_every_package_has_its_place():
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there == {"__init__", *GROUND, *RESTS_ON}
