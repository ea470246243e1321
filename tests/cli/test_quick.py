"""Importing the package and asking for help load no large library."""

import json
import subprocess
import sys

import pytest

LARGE = ("torch", "diffusers", "jax", "matplotlib", "spu")

LOADED = f"import json, sys; print(json.dumps([name for name in {LARGE} if name in sys.modules]))"

HELP = f"""
import atexit
atexit.register(lambda: exec({LOADED!r}))
sys.argv = ["cipherdm", "--help"]
import cipherdm.cli
cipherdm.cli.main()
"""


@pytest.mark.parametrize("program", ["import cipherdm", "import sys" + HELP], ids=["import", "help"])
def test_no_large_library_is_loaded(program):
    more = "" if "atexit" in program else f"\n{LOADED}"
    done = subprocess.run([sys.executable, "-c", program + more], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert ("bench" in done.stdout) == ("atexit" in program)
