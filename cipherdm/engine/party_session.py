"""What one party holds of a session: variables, in SPU's runtime or in files, and programs and kernels to run on them."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spu import api, libspu

from . import party_pb2 as pb
from .variable_files import StoredShare, VariableFiles

if TYPE_CHECKING:
    from .kernels import KernelCost, Kernels


class PartySession:
    """One SPU runtime with its variables, programs and kernels; one run at a time.

    A variable is in the runtime's memory or in a file. Those in files are loaded for a program that reads them, and leave the
    memory when it has ended; a kernel reads them from their files.

    Args:
        link: to the other parties.
        config: of the runtime.
        files: for variables that are not to stay in memory.
        temporary: whether the files go with the session.
    """

    def __init__(
        self, link: libspu.link.Context, config: libspu.RuntimeConfig, files: VariableFiles, *, temporary: bool = True
    ):
        self.executables: dict[str, libspu.Executable] = {}
        self.lock = threading.Lock()
        self._runtime = api.Runtime(link.spawn(), config)
        self._files, self._temporary = files, temporary
        self._held: set[str] = set()  # in the runtime
        self._given: set[str] = set()  # of those, the ones from the client that no run has written since
        self._kernel_link = link.spawn()
        self._kernels: Kernels | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._files

    def store(self, name: str, share: StoredShare, *, in_file: bool) -> None:
        """Take a client's share in."""
        self.delete(name)
        if in_file:
            self._files.write(name, share)
        else:
            self._runtime.set_var(name, share.loaded())
            self._held.add(name)
            self._given.add(name)

    def read(self, name: str) -> libspu.Share | StoredShare:
        """This party's share of a variable."""
        return self._files.read(name) if name in self._files else self._runtime.get_var(name)

    def delete(self, name: str) -> None:
        """Delete a variable, if there is one of this name."""
        self._files.delete(name)
        if name in self._held:
            self._runtime.del_var(name)
            self._held.discard(name)
            self._given.discard(name)
        self._forget([name])

    def run_program(self, executable: libspu.Executable, call: pb.Call) -> None:
        """Run a program on a call's inputs, and put its outputs where the call says."""
        with self._loaded(call):
            self._runtime.run(executable)
        self._written(call)

    def run_kernel(self, call: pb.Call) -> "KernelCost":
        """The same with a call's kernel."""
        # What comes from a file would be kept in memory twice as large, as digits.
        keep = call.inputs[0] in self._given
        share, cost = self._with_kernels().run(call.kernel, self.read, call.inputs, keep)
        self._runtime.set_var(call.outputs[0], share)
        self._written(call)
        return cost

    def close(self) -> None:
        """Drop the programs, and the files if they are temporary. The runtime goes with the last reference."""
        self.executables.clear()
        if self._temporary:
            self._files.clear()

    @contextmanager
    def _loaded(self, call: pb.Call) -> Iterator[None]:
        """Have the inputs in the runtime that are in files."""
        loaded = []
        try:
            for name in dict.fromkeys(call.inputs):
                if name in self._files:
                    self._runtime.set_var(name, self._files.read(name).loaded())
                    loaded.append(name)
            yield
        finally:
            for name in loaded:
                if name not in call.outputs:
                    self._runtime.del_var(name)

    def _written(self, call: pb.Call) -> None:
        """Note what a call has written, move to files what is to be there, and delete what nobody needs any more."""
        self._held.update(call.outputs)
        self._given.difference_update(call.outputs)
        self._forget(call.outputs)
        for name in call.outputs:
            if name in call.files:
                self._files.write(name, self._runtime.get_var(name))
                self._runtime.del_var(name)
                self._held.discard(name)
            else:
                self._files.delete(name)  # an earlier value
        for name in call.frees:
            self.delete(name)

    def _with_kernels(self) -> "Kernels":
        """Made when the first kernel is run, because it takes PyTorch and its memory."""
        if self._kernels is None:
            from .kernels import Kernels

            self._kernels = Kernels(self._kernel_link)
        return self._kernels

    def _forget(self, names: Iterable[str]) -> None:
        if self._kernels is not None:
            self._kernels.forget(names)
