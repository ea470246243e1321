"""Client's side of a session: share values, run plans, and reveal results to the client alone."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import grpc
import numpy as np
from spu import api, libspu

from ..errors import CipherDMError
from ..progress import Progress
from . import party_pb2 as pb
from .config import PARTIES, EngineConfig
from .costs import CostBook, CostReport
from .graph import Node, compile_plan
from .programs import Call, Plan, Program, Spec
from .rpc import Stub
from .wire import PartyError, checked_array, follow, gather, pieces, share_of, spread, words_in

FailureHandler = Callable[[int, grpc.RpcError], CipherDMError]
"""Function of a cluster that stops everything after the error of a party, by rank, and returns the error to raise."""


class Session:
    """Variables and programs on three parties, as their client sees them. A cluster's `session` makes it.

    A value is here in the clear only when `share` takes it and when `reveal` returns it. Each party gets two of three random
    shares over its own connection, and learns nothing from them but shape and dtype.
    """

    def __init__(self, name: str, config: EngineConfig, stubs: tuple[Stub, ...], on_failure: FailureHandler):
        self.name = name
        self.config = config
        self.closed = False
        self._stubs = stubs
        self._on_failure = on_failure
        self._io = api.Io(PARTIES, config.runtime_config())
        self._programs: set[str] = set()

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
        visibility = libspu.Visibility.VIS_PUBLIC if public else libspu.Visibility.VIS_SECRET

        def messages() -> Iterator[tuple[pb.SharePiece, ...]]:
            for name, array in arrays.items():
                shares = self._io.make_shares(array, visibility)
                yield from zip(*(pieces(self.name, name, share, in_file=in_files) for share in shares), strict=True)

        with self._failing():
            spread(messages(), [stub.Store.future for stub in self._stubs])

    def reveal(self, name: str) -> np.ndarray:
        """Fetch the three parties' shares of a variable and add them up here. The parties learn nothing from this."""
        return self._io.reconstruct([self.share_of(name, rank) for rank in range(PARTIES)])

    def share_of(self, name: str, rank: int) -> libspu.Share:
        """Fetch one party's share of a variable: all that this party can see of it."""
        self._check_open()
        request = pb.FetchRequest(session=self.name, names=[name])
        try:
            return share_of(list(self._stubs[rank].Fetch(request)))
        except grpc.RpcError as error:
            raise self._on_failure(rank, error) from None

    def words_of(self, name: str, rank: int) -> np.ndarray:
        """Fetch what one party holds of a secret variable, as numbers modulo 2^64: uint64 [elements, 2].

        Party r's second component is party r+1's first; the three different ones add up to the value times 2^fraction_bits.
        """
        return words_in(self.share_of(name, rank).share_chunks)

    def delete(self, names: Iterable[str]) -> None:
        """Delete variables on the parties; unknown names are ignored."""
        self._check_open()
        request = pb.DeleteRequest(session=self.name, names=list(names))
        self._all([stub.Delete.future(request) for stub in self._stubs])

    def run(self, plan: Plan, progress: Progress | None = None) -> CostReport:
        """Let the parties run a plan; return when all three are done.

        Programs that the parties do not have yet are sent first. `progress` is called after each call that party 0 has done.

        Raises:
            CipherDMError: a party failed or ended; the cluster has been stopped.
        """
        self._check_open()
        self._add_programs(plan)
        calls = [call_message(call) for call in plan.calls]
        request = pb.Plan(session=self.name, calls=calls)
        start = time.perf_counter()
        book = CostBook()
        with self._failing():
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
        self.share(values)
        cost = self.run(plan)
        result = self.reveal("trial.out")
        self.delete([*values, "trial.out"])
        return result, cost

    def peak_memory(self, *, reset: bool = False) -> tuple[int, ...]:
        """Return the most memory that each party's process has held so far, in bytes by rank. `reset` counts anew from now."""
        request = pb.DescribeRequest(reset_peak=reset)
        replies = self._all([stub.Describe.future(request) for stub in self._stubs])
        return tuple(reply.peak_memory_bytes for reply in replies)

    def close(self) -> None:
        """Delete all variables and programs of this session on the parties. The session cannot be used afterwards."""
        self._all([stub.Close.future(pb.CloseRequest(session=self.name)) for stub in self._stubs])
        self.closed = True

    def _check_open(self) -> None:
        if self.closed:
            raise CipherDMError("this session is closed, or its cluster has ended; open one on a running cluster.")

    def _add_programs(self, plan: Plan) -> None:
        programs = [call.program for call in plan.calls if isinstance(call.program, Program)]
        for program in {program.id: program for program in programs}.values():
            if program.id in self._programs:
                continue
            executable = libspu.Executable(program.name, [], [], program.code).SerializeToString()
            request = pb.Program(session=self.name, id=program.id, executable=executable)
            self._all([stub.AddProgram.future(request) for stub in self._stubs])
            self._programs.add(program.id)

    def _all(self, calls: list[grpc.Future]) -> list:
        """Return the results of one call to each party."""
        with self._failing():
            return gather(calls)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Let the cluster handle the error of a party."""
        try:
            yield
        except PartyError as failure:
            raise self._on_failure(failure.rank, failure.error) from None


def call_message(call: Call) -> pb.Call:
    """Return a call as the message that is sent to the parties."""
    names = {field: getattr(call, field) for field in ("label", "inputs", "outputs", "frees", "files")}
    if isinstance(call.program, Program):
        return pb.Call(program=call.program.id, **names)
    kernel, (result,) = call.program.kernel, call.program.outputs
    padding = [extent for side in kernel.padding for extent in side]
    message = pb.Kernel(kind=kernel.kind, stride=kernel.stride, padding=padding, dtype=result.dtype, ring=kernel.ring)
    return pb.Call(kernel=message, **names)
