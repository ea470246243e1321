"""A built wheel brings what git has, and works where there is no checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import cipherdm as cdm

ROOT = Path(__file__).parent.parent
CHECKED = "import cipherdm, pathlib, sys; print(pathlib.Path(cipherdm.__file__).is_relative_to(sys.prefix))"

pytestmark = pytest.mark.slow


def tracked(*folders: str) -> list[str]:
    """Return git's names of files in folders of the checkout."""
    return subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z", *folders], text=True).split("\0")[:-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of git's files, by way of the sdist, with the locked build backend."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", built, source], check=True)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """installed(command, *arguments): what a command of a new environment prints, run outside of the checkout.

    The wheel is installed there, and the locked packages are read from this environment. An editable installation does not
    come along: Python follows .pth files of an environment's own folder alone.
    """
    place = tmp_path_factory.mktemp("installed")
    binaries = place / "venv" / "bin"
    venv.create(place / "venv")
    of_it = [sys.executable, "-m", "pip", "--python", binaries / "python"]
    subprocess.run([*of_it, "install", "--quiet", "--no-deps", wheel], check=True)
    (packages,) = (place / "venv" / "lib").glob("python*/site-packages")
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command, *arguments) -> str:
        done = subprocess.run([binaries / command, *arguments], cwd=place, env=clean, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run.folder = place
    return run


def test_the_wheel_has_git_s_files(wheel):
    packages = {"cipherdm": "cipherdm", "experiments": "cipherdm_experiments", "data": "cipherdm/_data"}
    wanted = {f"{packages[top]}/{rest}" for top, _, rest in (name.partition("/") for name in tracked(*packages))}
    with zipfile.ZipFile(wheel) as file:
        found = {name for name in file.namelist() if ".dist-info/" not in name}
        assert found == wanted
        name = "cipherdm/_data/models/mnist10/config.json"
        assert file.read(name) == (ROOT / name.replace("cipherdm/_data", "data")).read_bytes()


def test_the_locked_packages_are_what_it_asks_for(installed):
    assert installed("python", "-c", CHECKED).strip() == "True"
    assert "No broken requirements" in installed("python", "-m", "pip", "check")


def test_three_parties_sample_without_a_checkout(installed):
    installed("cipherdm", "sample", "--labels", "3", "--steps", "2", "--out", "three.png")
    found = cdm.records.read_record(installed.folder / "three.json")
    assert found["environment"]["commit"] == "unknown"
    assert min(found["psnr_db"]) > 25 and found["model"] == "mnist10"


def test_it_reads_models_and_records(installed):
    told = installed("cipherdm", "inspect", "mnist10-turbo-2")
    assert re.search(r"^ *fast-64 +yes +[1-9][0-9.]* +[0-9,]+ +[0-9.]+", told, re.MULTILINE), (
        told
    )  # costs stand in records alone
