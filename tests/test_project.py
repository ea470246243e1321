"""The project's own files agree with each other."""

import ast
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cipherdm_experiments.tables import DOCUMENTS, render

ROOT = Path(__file__).parent.parent


def pins(lines) -> dict[str, str]:
    """name -> version of the lines that read `name==version`, perhaps as items of a YAML list."""
    found = re.findall(r"^[\s-]*([A-Za-z0-9_.-]+)==([^\s;]+)", "\n".join(lines), re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_three_lists_of_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = pins(project["dependencies"] + sum(project["optional-dependencies"].values(), []))
    locked = pins((ROOT / "requirements.lock").read_text().splitlines())
    conda = pins((ROOT / "environment.yml").read_text().splitlines())
    assert len(wanted) > 20
    assert conda == wanted
    assert {name: locked.get(name) for name in wanted} == wanted


def test_the_lock_is_what_is_installed():
    from importlib import metadata

    locked = pins((ROOT / "requirements.lock").read_text().splitlines())
    installed = {name: metadata.version(name).split("+")[0] for name in locked}
    assert installed == locked


def test_nothing_of_a_machine_is_committed():
    """No absolute paths of a machine, and no package registry's address, in the files that say what to install."""
    for name in ("requirements.lock", "environment.yml", "pyproject.toml", "Makefile", ".ci/run", "README.md"):
        text = (ROOT / name).read_text()
        assert not re.search(r"file://|--index-url|--find-links|/root/|/home/|/work/", text), name
    for path in (ROOT / "data").rglob("*.json"):
        assert not re.search(r"/root/|/home/|/work/|/tmp/", path.read_text()), path


def test_the_tables_in_documents_are_those_of_the_records():
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        assert render(text, ROOT / "data" / "measurements") == text, f"run `cipherdm tables` to update {name}"


def test_each_promise_names_what_enforces_it_and_its_tests():
    """Every row of the tables in SECURITY.md has both, and they exist."""
    tests = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    tables = (ROOT / "SECURITY.md").read_text().split("| promise |")[1:]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(tables) == 3 and len(rows) > 30
    for row in rows:
        cells = row.strip("| ").split(" | ")
        places, named = (re.findall("`([^`]+)`", cell) for cell in cells[1:3])
        assert len(cells) == 4 and places and named, row
        assert set(named) <= tests, f"there is no {sorted(set(named) - tests)}"
        for place in places:
            pkgutil.resolve_name(place if place.startswith("cipherdm_experiments.") else f"cipherdm.{place}")


@pytest.mark.parametrize("path", sorted(ROOT.glob("cipherdm/*/*.proto")), ids=lambda path: path.name)
def test_descriptions_of_messages_are_those_of_their_proto_files(path, tmp_path):
    made = tmp_path / "made.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT, f"--descriptor_set_out={made}", path]
    subprocess.run(command, check=True)
    assert made.read_bytes() == path.with_suffix(".binpb").read_bytes()
