"""Session at one party: its variables, in SPU's runtime or in files, and programs that run on them."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from spu import api, libspu

from ..errors import CipherDMError
from . import party_pb2 as pb
from .variable_files import StoredShare, VariableFiles

if TYPE_CHECKING:
    from ..kernels.walk import Walk
    from .walk_links import WalkLinks
    from .walks import Walks


class PartySession:
    """SPU runtimes with their variables and programs; they do one run at a time.

    The first runtime computes in the ring of 64 bits, the second, if there is one, in that of 32. A variable is in a runtime's
    memory or in a file. SPU's programs load variables from files and drop them from memory
    at their end; walks read them from the files. Files that are `temporary` are deleted with the session.
    """

    def __init__(
        self,
        link: libspu.link.Context,
        configs: Sequence[libspu.RuntimeConfig],
        files: VariableFiles,
        walk_links: Callable[[], "WalkLinks"],
        *,
        temporary: bool = True,
    ):
        self.executables: dict[str, libspu.Executable | Walk] = {}
        self.lock = threading.Lock()
        self._runtimes = [api.Runtime(link.spawn(), config) for config in configs]
        self._files, self._temporary = files, temporary
        self._held: dict[str, api.Runtime] = {}  # names in the runtimes' memory
        self._walk_link, self._walk_links = link.spawn(), walk_links

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._files

    def mistake_in(self, calls: Iterable[pb.Call]) -> str | None:
        """Return what these calls need and will not find, or None."""
        there, gone = set(), set()
        for call in calls:
            for name in call.inputs:
                if name not in there and (name in gone or name not in self):
                    return f"{call.label} needs {name!r}, which was never shared"
            if call.small and len(self._runtimes) < 2:
                return f"{call.label} is for the ring of 32 bits, and this session has none"
            if call.program not in self.executables:
                return f"there is no program {call.program!r}: add it first"
            there.update(call.outputs)
            gone.difference_update(call.outputs)
            there.difference_update(call.frees)
            gone.update(call.frees)
        return None

    def store(self, name: str, share: StoredShare, *, in_file: bool) -> None:
        """Store a client's share."""
        self.delete(name)
        if in_file:
            self._files.write(name, share)
        else:
            self._hold(name, share.loaded(), self._runtimes[0])

    def _hold(self, name: str, share: libspu.Share, runtime: api.Runtime) -> None:
        runtime.set_var(name, share)
        self._held[name] = runtime

    def read(self, name: str) -> libspu.Share | StoredShare:
        """Return this party's share of a variable."""
        return self._files.read(name) if name in self._files else self._held[name].get_var(name)

    def delete(self, name: str) -> None:
        """Delete a variable, if it exists."""
        self._files.delete(name)
        if (runtime := self._held.pop(name, None)) is not None:
            runtime.del_var(name)

    def run_program(self, executable: libspu.Executable, call: pb.Call) -> None:
        """Run a program on a call's inputs, and store its outputs as the call says."""
        runtime = self._runtimes[call.small]
        if any(self._held.get(name, runtime) is not runtime for name in call.inputs):
            raise CipherDMError("a variable is in another ring than the program")
        with self._loaded(call):
            runtime.run(executable)
        self._written(call, dict.fromkeys(call.outputs, runtime))

    def add_walk(self, name: str, text: bytes) -> None:
        """Read a plan; it becomes a program of this session. Raises CipherDMError if its results are for a ring it lacks."""
        from ..kernels.ring_program import HALF
        from .walks import read_plan  # which needs PyTorch and its memory

        walk = read_plan(text, self._walk_link.rank)
        if len(self._runtimes) < 2 and HALF in {walk.plan.bits[number] for number in walk.plan.program.outputs}:
            raise CipherDMError("its results are for the ring of 32 bits, and this session has none")
        self.executables[name] = walk

    def run_walk(self, walk: "Walk", call: pb.Call) -> pb.CallDone:
        """Walk a program on a call's inputs, and store its outputs as the call says; return what it took."""
        shares, done = self._walks.run(walk, self.read, call.inputs)
        places = {}
        for name, (share, small) in zip(call.outputs, shares, strict=True):
            places[name] = self._runtimes[small]
            places[name].set_var(name, share)
        self._written(call, places)
        return done

    def close(self) -> None:
        """Drop the programs, and the files if they are temporary. The runtime ends with its last reference."""
        self.executables.clear()
        if self._temporary:
            self._files.clear()

    @contextmanager
    def _loaded(self, call: pb.Call) -> Iterator[None]:
        """Load the inputs that are in files into the runtime, within a `with` block."""
        loaded = []
        try:
            for name in dict.fromkeys(call.inputs):
                if name in self._files:
                    self._runtimes[call.small].set_var(name, self._files.read(name).loaded())
                    loaded.append(name)
            yield
        finally:
            for name in loaded:
                if name not in call.outputs:
                    self._runtimes[call.small].del_var(name)

    def _written(self, call: pb.Call, places: dict[str, api.Runtime]) -> None:
        """Record where the outputs of a call are, move some of them to files, and delete variables that nobody needs."""
        for name in call.outputs:
            if (before := self._held.get(name, places[name])) is not places[name]:  # an earlier value, in another ring
                before.del_var(name)
            self._held[name] = places[name]
            if name in call.files:
                runtime = self._held.pop(name)
                self._files.write(name, runtime.get_var(name))
                runtime.del_var(name)
            else:
                self._files.delete(name)  # an earlier value
        for name in call.frees:
            self.delete(name)

    @cached_property
    def _walks(self) -> "Walks":
        """Walks, made at the first call, because they need PyTorch and its memory."""
        from .walks import Walks

        return Walks(self._walk_link, self._walk_links)
