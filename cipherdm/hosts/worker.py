"""Processes in which a party computes runs, one run at a time each, and the slots that they occupy.

Every slot has its own process, SPU context, gate and port. Therefore runs cannot mix, SPU's log tells the costs of one run,
and a crash inside SPU ends one run. A process computes run after run, each with a new SPU runtime. When anything goes wrong in
a run, its process is killed, which frees all that it held; the next run in that slot begins with new processes at all parties.

The three processes of a slot are connected to each other and belong together: they are one *generation*. Party 0 names it, so
that a party whose process was replaced, or which was restarted itself, is noticed before a run begins and not within it.
"""

import subprocess
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path

import grpc
import psutil

from ..engine import party_pb2 as engine_pb
from ..engine.cluster import (
    connect_locally,
    end_if_stopped,
    end_with_input,
    how_it_ended,
    last_words,
    start_party,
    wait_until_ready,
)
from ..engine.config import PARTIES, PartyConfig
from ..engine.rpc import Stub
from ..engine.session import program_message
from ..errors import CipherDMError
from . import host_pb2 as pb
from .config import HostConfig
from .manifest import engine_of
from .refusals import RunFailed, shown
from .rows import Pieces
from .store import StoredModel

Calls = Sequence[engine_pb.Call]
Events = Generator[pb.RequestEvent, None, Pieces]
"""Events for a client, and in the end this party's shares of the outputs."""


class Worker:
    """The process of one slot and generation, which has its socket and logs in `folder`; `wait` waits until it is ready."""

    def __init__(self, host: HostConfig, slot: int, generation: str, folder: Path):
        self.generation = generation
        self._rank, self._timeouts, self._folder = host.rank, host.caller.timeouts, folder
        folder.mkdir(mode=0o700, exist_ok=True)
        sockets = folder if host.link_sockets is None else host.link_sockets / f"slot{slot}"
        links = [sockets / (f"party{rank}.sock" if rank == host.rank else f"to{rank}.sock") for rank in range(PARTIES)]
        self._config = PartyConfig(
            host.rank,
            folder,
            tuple(links),
            generation,
            connect_timeout=self._timeouts.start,
            receive_timeout=self._timeouts.receive,
        )
        self._gate = None if host.link_sockets else host.gate(slot, folder).start(folder / f"gate{host.rank}.err")
        self._process = start_party(self._config, host.threads)
        self.pid = self._process.pid
        self._running, self._over, self._why = ExitStack(), threading.Event(), ""
        self._running.callback(end_with_input, self._processes, timeout=3)
        names = ("the process of this run", "the gate of this run")
        pids = {name: process.pid for name, process in zip(names, self._processes, strict=False)}
        end_if_stopped(pids, self._over, self.give_up)
        if self._gate is not None:
            threading.Thread(target=self._end_with_gate, daemon=True).start()
        self._stub: Stub | None = None

    def wait(self) -> None:
        """Wait until the process is ready, if it is new. Raises RunFailed if it does not start."""
        if self._stub is not None:
            return
        for name, process in (("party", self._process), ("gate", self._gate)):
            if process is not None and not wait_until_ready(process, self._timeouts.start):
                words = self._why or last_words(self._folder / f"{name}{self._rank}.err")
                raise RunFailed(f"party {self._rank} cannot start a process for a run: {words}")
        self._stub = connect_locally(self._running, self._config)

    @property
    def alive(self) -> bool:
        """True while the process and its gate run."""
        return all(process.poll() is None for process in self._processes)

    def kill(self) -> None:
        """End the process at once, whatever it does. Safe to call twice, and from another thread than the run's."""
        for process in self._processes:
            process.kill()

    def give_up(self, why: str) -> None:
        """Kill the process for a reason, which the run that it computes fails with; the first one counts."""
        self._why = self._why or why
        self.kill()

    def _end_with_gate(self) -> None:
        """Kill the process when its gate has ended: SPU would wait for messages as if nothing had happened."""
        self._gate.wait()
        self.give_up("the gate of this run has ended")

    @property
    def _processes(self) -> list[subprocess.Popen]:
        return [process for process in (self._process, self._gate) if process is not None]

    def close(self) -> None:
        """End the process and wait until it is gone and its port is free."""
        self._over.set()
        self.kill()
        self._running.close()

    def compute(self, run: str, model: StoredModel, inputs: Iterable[engine_pb.SharePiece], calls: Calls) -> Events:
        """Walk a plan of a model on clients' inputs; yield the progress of each call, and return the shares of the outputs.

        Raises:
            RunFailed: SPU failed, the process ended, or another party is gone.
        """
        manifest = model.manifest
        try:
            model.check()
        except CipherDMError as error:
            raise RunFailed(f"party {self._rank}: {error}") from None
        try:
            config = engine_of(manifest).runtime_config()
            config.enable_type_checker = True  # without it a program could declare a secret public, see `programs`
            opened = engine_pb.OpenRequest(session=run, runtime_config=config.SerializeToString())
            # The process itself gives up after `start`; two seconds more let its own reason come through.
            self._stub.Open(opened, timeout=self._timeouts.start + 2)
            self._stub.Store(_of_session(run, chain(model.pieces(), inputs)))
            for code in manifest.programs:
                self._stub.AddProgram(program_message(run, code.id, code.name, code.text, walk=code.walk))
            for done in self._stub.Run(engine_pb.Plan(session=run, calls=calls)):
                label, total = shown(calls[done.index].label), len(calls)
                yield pb.RequestEvent(progress=pb.Progress(done=done, label=label, total=total))
            outputs = list(self._stub.Fetch(engine_pb.FetchRequest(session=run, names=manifest.outputs)))
            self._stub.Close(engine_pb.CloseRequest(session=run))
            return outputs
        except grpc.RpcError as error:
            # A process that has ended closes its connections a moment before the system says that it is gone.
            end = how_it_ended(self._process, 0.5, self._folder, self._rank)
            if self._gate is not None and self._gate.poll() is not None:  # then the process ends as well
                why = "the gate of this run has ended"
            else:
                why = error.details() if end is None else f"the process of this run {end}"
            raise RunFailed(f"party {self._rank}: {self._why or why}") from None


class Slots:
    """The slots of the party `host`, each with a process or none and a folder of its own in `folder`.

    A process is started when a run first needs its slot.
    """

    def __init__(self, host: HostConfig, folder: Path):
        self._host, self._folder = host, folder
        self._workers: list[Worker | None] = [None] * host.limits.runs
        self._locks = [threading.Lock() for _ in self._workers]

    def generation(self, slot: int) -> str:
        """Return the generation of the process that runs in a slot; empty if there is none."""
        worker = self._workers[slot]
        return worker.generation if worker is not None and worker.alive else ""

    def states(self) -> list[pb.Process]:
        """Return memory and use of each process that there is."""
        found = []
        for slot, worker in enumerate(self._workers):
            if worker is not None and worker.alive:
                with suppress(psutil.NoSuchProcess):
                    busy = self._locks[slot].locked()
                    found.append(pb.Process(slot=slot, memory_bytes=memory_of(worker.pid), busy=busy))
        return found

    @contextmanager
    def use(self, assignment: pb.StartRequest) -> Iterator[Worker]:
        """Have a slot to oneself, with a process of the assigned generation, which is started here if it is fresh.

        Leaving the block by an exception kills the process.

        Raises:
            RunFailed: the slot is not free in time, or its process has another generation.
        """
        slot, generation = assignment.slot, assignment.generation
        before = self._workers[slot]
        if assignment.fresh and before is not None:
            # Party 0 has ended its run, perhaps because the client has left another party out.
            before.give_up("party 0 has given the slot of this run to another one")
        # Party 0 gives a slot to the next run when its own process is done; here the run before may end a little later.
        if not self._locks[slot].acquire(timeout=self._host.caller.timeouts.connect):
            raise RunFailed(f"party {self._host.rank} is still at another run in slot {slot}; try again.")
        try:
            if assignment.fresh:
                self._end(slot)
                self._workers[slot] = Worker(self._host, slot, generation, self._folder / f"slot{slot}")
            elif self.generation(slot) != generation:
                raise RunFailed(f"party {self._host.rank} has lost its process of slot {slot}; try again.")
            try:
                yield self._workers[slot]
            except BaseException:
                self._end(slot)
                raise
        finally:
            self._locks[slot].release()

    def close(self) -> None:
        """End all processes."""
        for slot in range(len(self._workers)):
            self._end(slot)

    def _end(self, slot: int) -> None:
        worker, self._workers[slot] = self._workers[slot], None
        if worker is not None:
            worker.close()


def memory_of(pid: int | None = None) -> int:
    """Return the bytes that a process, this one by default, holds now. Raises psutil.NoSuchProcess if it has ended."""
    held = psutil.Process(pid).memory_info().rss
    if not held:  # it has ended, and its parent has not noticed yet
        raise psutil.NoSuchProcess(pid)
    return held


def _of_session(session: str, pieces: Iterable[engine_pb.SharePiece]) -> Iterator[engine_pb.SharePiece]:
    for piece in pieces:
        piece.session = session
        piece.in_file = False  # a process that is killed would leave its files behind
        yield piece
