"""A split training with all its processes on this machine, for lessons, tests and measurements."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..engine.cluster import last_words
from ..errors import CipherDMError
from ..files import replacing
from ..hosts.certificates import make_certificates
from ..hosts.config import Timeouts
from ..hosts.trial_files import paths_in, section
from ..records import read_record
from .config import SERVER, Training
from .process import WITH_PARENT, command
from .trainer import Optimisation


def make_split_trial(
    folder: Path,
    model: Path,
    data: Mapping[str, Path],
    training: Training,
    *,
    address: str,
    reached_at: Sequence[str] = (),
    timeouts: Timeouts = Timeouts(),  # noqa: B008 (a frozen value)
    seed: int | None = None,
    captured: int = 0,
    learning_rate: float = Optimisation.learning_rate,
    warmup: int = Optimisation.warmup,
) -> dict[str, Path]:
    """Make an authority, certificates, and a TOML file for the server and each client; return the files by role.

    Args:
        folder: folder of the files.
        model: folder of the pipeline that both sides use.
        data: file of each client's pictures, by the names in `training.clients`.
        training: what all have alike.
        address: `host:port` or `unix:PATH` of the server.
        reached_at: addresses at which the clients reach it, if others, as through a `LinkShaper`.
        timeouts, seed, captured, learning_rate, warmup: as in the configurations. Clients' seeds are `seed`, `seed` + 1, ...

    Raises:
        CipherDMError: there are such files, or no data for a client.
    """
    if missing := [name for name in training.clients if name not in data]:
        raise CipherDMError(f"there is no data for {', '.join(missing)}: give a file for each client.")
    roles = (SERVER, *training.clients)
    if any((folder / f"{role}.toml").exists() for role in roles):
        raise CipherDMError(f"{folder} has such files already; choose another folder, or delete it.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identities = make_certificates(folder, roles, callers=training.clients)
    defences = training.defences
    named = {"activation": defences.activation, "hide-prompts": defences.hide_prompts}
    public = {name: getattr(training, name) for name in ("clients", "structure", "batch", "steps")}
    public |= {"defences": [name for name, on in named.items() if on], "timesteps_from": defences.timesteps_from}
    common = section("training", public) + section("timeouts", vars(timeouts))
    about = {SERVER: {"state": "state", "captured": captured, "learning_rate": learning_rate, "warmup": warmup}}
    for number, name in enumerate(training.clients):
        about[name] = {"data": str(data[name].absolute()), "record": f"{name}/record.json"}
        about[name] |= {} if seed is None else {"seed": seed + number}
    addresses = (address, *(reached_at or [address] * len(training.clients)))
    files = {}
    for role, at in zip(roles, addresses, strict=True):
        files[role] = folder / f"{role}.toml"
        own = {"address": at, "model": str(model.absolute()), **about[role]}
        text = common + section("identity", paths_in(folder, identities[role]))
        with replacing(files[role]) as temporary:
            temporary.write_text(text + section("server" if role == SERVER else "client", own))
    return files


class SplitTrial:
    """The processes of a training. Use it as a context manager: leaving the block ends them. They also end with this process.

    Args:
        files: TOML files by role, as `make_split_trial` returns them. What a process says goes to a file beside its own, with
            the suffix .log.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files, self._folder = files, files[SERVER].parent
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "SplitTrial":
        try:
            for role in self._files:
                self.start(role)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()

    def start(self, role: str) -> None:
        """Start the process of a role."""
        words = command("server" if role == SERVER else "client", self._files[role])
        with self._log(role).open("ab") as log:
            self.processes[role] = subprocess.Popen(
                [*words, WITH_PARENT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"GRPC_VERBOSITY": "NONE"},
                start_new_session=True,
            )

    def ends(self, timeout: float) -> dict[str, tuple[int, str]]:
        """Wait until all processes have ended; return code and last words of each by role.

        Raises:
            CipherDMError: some have not ended within so many seconds.
        """
        deadline = time.monotonic() + timeout
        for process in self.processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                still = [role for role, each in self.processes.items() if each.poll() is None]
                raise CipherDMError(f"{', '.join(still)} did not end within {timeout:g} s: see the logs.") from None
        return {role: (each.returncode, last_words(self._log(role))) for role, each in self.processes.items()}

    def records(self, timeout: float) -> dict[str, Any]:
        """Wait until the training is done; return what was measured at the server and each client, by role.

        Raises:
            CipherDMError: a process failed, with its last words, or it takes longer than so many seconds.
        """
        if failed := [f"{role}: {words}" for role, (code, words) in self.ends(timeout).items() if code]:
            raise CipherDMError(f"the training failed. {'; '.join(failed)}")
        paths = {role: self._folder / role / "record.json" for role in self._files}
        return {
            role: read_record(path)
            for role, path in (paths | {SERVER: self._folder / "state" / "training.json"}).items()
        }

    def _log(self, role: str) -> Path:
        return self._files[role].with_suffix(".log")
