"""Compile a program for SPU in a process of its own: `python compiler.py VISIBILITY < HLO > CODE`.

SPU's compiler holds Python's lock until it is done, for a minute if a program is a loop. In another process it holds up
neither progress bars nor an interrupt. Run by its path, this file loads SPU alone.
"""

import signal
import sys

from spu import libspu

# The public visibility is "p", the secret one "s", a letter for each of the program's inputs.
_VISIBILITY = {"p": libspu.Visibility.VIS_PUBLIC, "s": libspu.Visibility.VIS_SECRET}


def compile_hlo(hlo: bytes, visibility: str) -> bytes:
    """Return SPU's textual MLIR of a serialized HLO module whose inputs have this visibility, such as "ssp".

    Raises:
        RuntimeError: SPU cannot compile the module.
    """
    options = libspu.CompilerOptions()
    options.enable_optimize_denominator_with_broadcast = True  # a softmax divides once per row, in every protocol set
    source = libspu.CompilationSource(libspu.SourceIRType.XLA, hlo, [_VISIBILITY[letter] for letter in visibility])
    return libspu.compile(source, options)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends it at once, and not after the compilation
    try:
        sys.stdout.buffer.write(compile_hlo(sys.stdin.buffer.read(), sys.argv[1]))
    except RuntimeError as error:
        sys.exit(str(error))
