"""Client's side of a session: share values, run plans, and reveal results to the client alone."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

import grpc
import numpy as np
from spu import api, libspu

from ..errors import CipherDMError
from ..kernels.ring_program import FULL
from ..progress import Progress
from . import party_pb2 as pb
from .config import PARTIES, EngineConfig
from .costs import CostBook, CostReport
from .graph import Node, compile_plan
from .programs import Call, Plan, Spec
from .rpc import Stub
from .turn import Turn
from .wire import PartyError, checked_array, follow, gather, reconstruct, share_of, shared, spread, words_in


class Session:
    """Variables and programs on three parties, as their client sees them. A cluster's `session` makes it.

    A value is here in the clear only when `share` takes it and when `reveal` returns it. Each party gets two of three random
    shares over its own connection, and learns nothing from them but shape and dtype.

    Threads take turns: each call waits until the others' are done, and those within `alone` stay together. A call that is
    interrupted, by Ctrl-C or by an exception of `progress`, ends the cluster; the exception goes on to the caller.
    """

    def __init__(self, name: str, config: EngineConfig, stubs: tuple[Stub, ...], turn: Turn):
        self.name = name
        self.config = config
        self._closed = False
        self._stubs = stubs
        self._turn = turn
        self._io = api.Io(PARTIES, config.runtime_config())
        self._programs: set[str] = set()

    @property
    def closed(self) -> bool:
        """True once this session, or its cluster, has ended."""
        return self._closed or self._turn.ended is not None

    def alone(self) -> AbstractContextManager[None]:
        """Have the parties to oneself within a `with` block: no other thread's call comes between."""
        return self._turn.alone()

    def share(self, values: Mapping[str, np.ndarray], *, public: bool = False, in_files: bool = False) -> None:
        """Split arrays into shares and send each party its own.

        Args:
            values: arrays of float32, float64, int32, int64 or bool by variable name; scalars and empty arrays are fine.
            public: whether to send the values themselves, for those that all parties may know (such as a step's number).
            in_files: whether the parties keep their shares in files, and in memory only while a call reads them.

        Raises:
            CipherDMError: a value is not finite or beyond `config.limit`; nothing has been sent then.
        """
        self._check_open()
        arrays = {name: checked_array(name, value, self.config) for name, value in values.items()}
        how = {"public": public, "session": self.name, "in_file": in_files}
        messages = (parts for name, array in arrays.items() for parts in shared(self._io, name, array, **how))
        with self._turn.call():
            spread(messages, [stub.Store.future for stub in self._stubs])

    def reveal(self, name: str) -> np.ndarray:
        """Fetch the three parties' shares of a variable and add them up here. The parties learn nothing from this.

        Raises:
            CipherDMError: shares of two parties do not fit together.
        """
        with self.alone():
            return reconstruct(self._io, name, [self.share_of(name, rank) for rank in range(PARTIES)])

    def share_of(self, name: str, rank: int) -> libspu.Share:
        """Fetch one party's share of a variable: all that this party can see of it."""
        self._check_open()
        request = pb.FetchRequest(session=self.name, names=[name])
        with self._turn.call():
            try:
                return share_of(list(self._stubs[rank].Fetch(request)))
            except grpc.RpcError as error:
                raise PartyError(rank, error) from None

    def words_of(self, name: str, rank: int) -> np.ndarray:
        """Fetch what one party holds of a secret variable, as numbers modulo 2^64: uint64 [elements, 2].

        Party r's second component is party r+1's first; the three different ones add up to the value times 2^fraction_bits.
        """
        return words_in(self.share_of(name, rank).share_chunks)

    def delete(self, names: Iterable[str]) -> None:
        """Delete variables on the parties; unknown names are ignored."""
        self._check_open()
        self._all([stub.Delete for stub in self._stubs], pb.DeleteRequest(session=self.name, names=list(names)))

    def run(self, plan: Plan, progress: Progress | None = None) -> CostReport:
        """Let the parties run a plan; return when all three are done.

        Programs that the parties do not have yet are sent first. `progress` is called after each call that party 0 has done.

        Raises:
            CipherDMError: the plan needs the ring of 32 bits, and this session has none; or a party failed or ended, and the
                cluster has been stopped.
        """
        self._check_open()
        for call in plan.calls if self.config.small_fraction_bits is None else ():
            if any(spec.ring != FULL for spec in call.program.outputs):
                raise CipherDMError(
                    f"{call.label} is for the ring of 32 bits, and this session has none: set small_fraction_bits in its "
                    "EngineConfig."
                )
        calls = [call_message(call) for call in plan.calls]
        request = pb.Plan(session=self.name, calls=calls)
        book = CostBook()
        with self.alone():
            self._add_programs(plan)
            start = time.perf_counter()
            with self._turn.call():
                for rank, done in follow([stub.Run(request) for stub in self._stubs]):
                    label = plan.calls[done.index].label
                    book.add(rank, label, done)
                    if rank == 0 and progress is not None:
                        progress(done.index + 1, len(calls), label)
            return book.report(time.perf_counter() - start)

    def run_once(self, function: Callable, *arrays: np.ndarray) -> tuple[np.ndarray, CostReport]:
        """Share arrays, run one JAX function of them, and return its only result and the cost without sharing and revealing.

        Nothing stays on the parties. Sampling keeps its values there between calls instead, see `compile_plan`.
        """
        values = {f"trial.in{index}": np.asarray(array) for index, array in enumerate(arrays)}
        specs = {name: Spec.of(array) for name, array in values.items()}
        plan = compile_plan([Node("trial", function, tuple(values), ("trial.out",))], specs, ("trial.out",))
        with self.alone():
            self.share(values)
            cost = self.run(plan)
            result = self.reveal("trial.out")
            self.delete([*values, "trial.out"])
        return result, cost

    def peak_memory(self, *, reset: bool = False) -> tuple[int, ...]:
        """Return the most memory that each party's process has held so far, in bytes by rank. `reset` counts anew from now.

        It is empty where the system does not tell.
        """
        request = pb.DescribeRequest(reset_peak=reset)
        peaks = tuple(reply.peak_memory_bytes for reply in self._all([stub.Describe for stub in self._stubs], request))
        return peaks if all(peaks) else ()

    def close(self) -> None:
        """Delete all variables and programs of this session on the parties. The session cannot be used afterwards."""
        self._all([stub.Close for stub in self._stubs], pb.CloseRequest(session=self.name))
        self._closed = True

    def _check_open(self) -> None:
        self._turn.check()
        if self._closed:
            raise CipherDMError("this session is closed; open another one on its cluster.")

    def _add_programs(self, plan: Plan) -> None:
        for program in {call.program.id: call.program for call in plan.calls}.values():
            if program.id in self._programs:
                continue
            request = program_message(self.name, program.id, program.name, program.code, walk=program.walk)
            self._all([stub.AddProgram for stub in self._stubs], request)
            self._programs.add(program.id)

    def _all(self, methods: list[grpc.UnaryUnaryMultiCallable], request: object) -> list:
        """Return the answers of the three parties to one request."""
        with self._turn.call():
            return gather([method.future(request) for method in methods])


def program_message(session: str, id_: str, name: str, code: bytes, *, walk: bool) -> pb.Program:
    """Return a program as the message that is sent to a party."""
    if walk:
        return pb.Program(session=session, id=id_, walk=code)
    return pb.Program(session=session, id=id_, executable=libspu.Executable(name, [], [], code).SerializeToString())


def call_message(call: Call) -> pb.Call:
    """Return a call as the message that is sent to the parties."""
    names = {field: getattr(call, field) for field in ("label", "inputs", "outputs", "frees", "files", "small")}
    return pb.Call(program=call.program.id, **names)
