"""Importing the package and asking for help load no large library."""

import json
import subprocess
import sys

import pytest

LARGE = ("torch", "diffusers", "jax", "matplotlib", "spu")

LOADED = f"import json, sys; print(json.dumps([name for name in {LARGE} if name in sys.modules]))"

HELP = f"""
import atexit, sys
atexit.register(lambda: exec({LOADED!r}))
import cipherdm.cli
cipherdm.cli.main()
"""


@pytest.mark.parametrize(
    ("program", "arguments", "shown"),
    [
        (f"import cipherdm\n{LOADED}", (), ""),
        (HELP, ("--help",), "bench"),
        (HELP, ("bench", "--help"), "full-call"),
    ],
    ids=["import", "help", "help of experiments"],
)
def test_no_large_library_is_loaded(program, arguments, shown):
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert shown in done.stdout
