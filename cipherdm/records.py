"""Records of measurements, with the machine, package versions and commit that they were made with."""

import json
import os
import platform
import re
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from .errors import CipherDMError
from .files import checkout, data, replacing

MEASUREMENTS = data() / "measurements"
"""Folder of the project's own records."""

_PACKAGES = ("cipherdm", "spu", "jax", "numpy", "torch", "diffusers", "grpcio")


def environment() -> dict[str, Any]:
    """Return the machine, the package versions, the commit and the time, as a JSON-ready dictionary.

    "process_seconds" is the age of this process: the time of the command, if it writes its record at its end. It is None where
    the system does not tell, as without /proc.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "process_seconds": _age(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def write_record(path: str | Path, contents: dict[str, Any], *, timed: bool = True) -> None:
    """Write `contents` together with `environment()` to `path` as JSON, whole or not at all.

    Beside a privately trained model the command's time is left out: it follows from the sizes of private batches.
    """
    about = environment() | ({} if timed else {"process_seconds": None})
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"environment": about, **contents}, indent=1) + "\n")


def read_record(path: str | Path, command: str = "") -> dict[str, Any]:
    """Read what `write_record` wrote. Raises CipherDMError if there is no such file, with the command that makes it."""
    path = Path(path)
    if not path.is_file():
        raise CipherDMError(f"there is no record {path}" + (f": make it with `{command}`." if command else "."))
    return json.loads(path.read_text())


def record(name: str) -> dict[str, Any]:
    """Read one of the project's own records, such as "activations" or "step_mnist10".

    Raises CipherDMError, listing the names, if there is none of this name.
    """
    path = MEASUREMENTS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MEASUREMENTS.glob("*.json")))
        raise CipherDMError(f"there is no record {name!r} in data/measurements: there are {known or 'none'}.")
    return read_record(path)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _age() -> float | None:
    try:
        return round(time.time() - psutil.Process().create_time(), 1)
    except (psutil.Error, OSError):
        return None


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; None where the system does not tell, as without /proc."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _commit() -> str:
    """Return the commit of the checkout that this package runs from, with `+changes` if the tree differs from it."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", "-C", str(checkout()), *arguments], stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        changes = git("status", "--porcelain", "-uno", "--", "cipherdm", "experiments")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (CipherDMError, OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor()
