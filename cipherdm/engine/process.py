"""Starting a party's process, and what it said when it ended."""

import os
import select
import subprocess
import sys
from pathlib import Path

from .config import PartyConfig

# How glibc keeps memory. One arena for all threads of a process: with one each, as by default, each keeps what its thread has
# freed, and what is kept adds up. What is freed stays with the process, however large: every operation writes its result
# into new arrays, whose pages the system would have to clear and map each time.
_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 25),
}
_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", **_MEMORY}

START_TIMEOUT = 30.0  # seconds for a process to import SPU and listen; about 2 on an idle machine


def start_party(config: PartyConfig, threads: int = 1) -> subprocess.Popen:
    """Start a party; it ends when its standard input is closed. `wait_until_ready` tells when it serves.

    Args:
        config: what the party is told on its standard input.
        threads: of the processor that it may use. SPU asks OpenMP for four, whatever the machine has.
    """
    environment = os.environ | _ENVIRONMENT | {"OMP_THREAD_LIMIT": str(threads)}
    with _errors_of(config.work, config.rank).open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "cipherdm.engine.party"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the parties
        )
    process.stdin.write(config.to_json().encode() + b"\n")
    process.stdin.flush()
    return process


def wait_until_ready(process: subprocess.Popen, timeout: float = START_TIMEOUT) -> bool:
    """Wait until a process says that it is ready; false if it ends or takes too long."""
    readable, _, _ = select.select([process.stdout], [], [], timeout)
    return bool(readable) and process.stdout.readline() == b"ready\n"


def last_words(work: Path, rank: int) -> str:
    """The last line that a party wrote to its error output."""
    lines = _errors_of(work, rank).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _errors_of(work: Path, rank: int) -> Path:
    return work / f"party{rank}.err"
