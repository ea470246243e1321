"""A split training with all its processes on this machine, for lessons, tests and measurements."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..engine.cluster import last_words
from ..errors import CipherDMError, refuse
from ..files import replacing
from ..hosts.certificates import make_certificates
from ..hosts.config import Timeouts
from ..hosts.trial_files import paths_in, section
from ..records import read_record
from .config import SERVER, Training
from .process import QUIET, RECORD, WITH_PARENT, command


def make_split_trial(
    folder: Path,
    model: Path,
    data: Sequence[Path],
    training: Training,
    *,
    addresses: Sequence[str],
    timeouts: Timeouts = Timeouts(),  # noqa: B008 (a frozen value)
    seed: int | None = None,
    **server: Any,
) -> dict[str, Path]:
    """Make an authority, certificates, and a TOML file for the server and each client; return the files by role.

    Args:
        folder, model: folders of the files, and of the pipeline that both sides use.
        data: file of each client's pictures, in the order of `training.clients`.
        addresses: `host:port` or `unix:PATH` at which the server listens, and those at which each client reaches it, if they
            differ, as through a `LinkShaper`.
        training, timeouts: what all have alike.
        seed: seed of the first client; the others have the numbers after it.
        server: further fields of the server's file, such as `captured=4`.

    Raises:
        CipherDMError: there are such files, or not a file of pictures for each client.
    """
    unfit = (folder / "server.toml").exists() or len(data) != len(training.clients)
    refuse({f"give a file of pictures for each client, and a folder without such files instead of {folder}": unfit})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identities = make_certificates(folder, (SERVER, *training.clients), callers=training.clients)
    public = asdict(training)
    public |= public.pop("defences")
    own = {SERVER: server}
    for number, (name, path) in enumerate(zip(training.clients, data, strict=True)):
        own[name] = {"data": str(path.absolute())} | ({} if seed is None else {"seed": seed + number})
    files = {}
    for number, (role, more) in enumerate(own.items()):
        files[role], address = folder / f"{role}.toml", addresses[min(number, len(addresses) - 1)]
        fields = {"address": address, "model": str(model.absolute()), "folder": f"{role}-state", **more}
        text = section("training", public) + section("timeouts", vars(timeouts))
        text += section("identity", paths_in(folder, identities[role])) + section(_kind(role), fields)
        with replacing(files[role]) as temporary:
            temporary.write_text(text)
    return files


class SplitTrial:
    """The processes of a training. Use it as a context manager: leaving the block ends them. They also end with this process.

    Args:
        files: TOML files by role, as `make_split_trial` returns them. What a process says goes to a file beside its own, with
            the suffix .log.

    Attributes:
        processes: the running processes by role.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "SplitTrial":
        for role, path in self._files.items():
            with path.with_suffix(".log").open("ab") as log:
                self.processes[role] = subprocess.Popen(
                    [*command(_kind(role), path), WITH_PARENT, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | QUIET,
                    start_new_session=True,
                )
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def ends(self, timeout: float) -> dict[str, str]:
        """Wait until all processes have ended; return the last words of those that failed, by role.

        Raises:
            CipherDMError: some have not ended within so many seconds.
        """
        deadline = time.monotonic() + timeout
        while running := [role for role, each in self.processes.items() if each.poll() is None]:
            if time.monotonic() > deadline:
                raise CipherDMError(f"{', '.join(running)} did not end within {timeout:g} s: see the logs.")
            time.sleep(0.1)
        failed = [role for role, process in self.processes.items() if process.returncode]
        return {role: last_words(self._files[role].with_suffix(".log")) for role in failed}

    def records(self, timeout: float) -> dict[str, Any]:
        """Wait until the training is done; return the record of the server and of each client, by role.

        Raises:
            CipherDMError: a process failed, with its last words, or it takes longer than so many seconds.
        """
        if failed := self.ends(timeout):
            raise CipherDMError(f"the training failed. {'; '.join(f'{role}: {why}' for role, why in failed.items())}")
        return {role: read_record(path.parent / f"{role}-state" / RECORD) for role, path in self._files.items()}


def _kind(role: str) -> str:
    return SERVER if role == SERVER else "client"
