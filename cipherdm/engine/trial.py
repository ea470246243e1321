"""For trying things out: one function on the parties in one call, and a look at what a single party holds."""

from collections.abc import Callable, Iterable

import numpy as np
from spu import libspu

from .costs import CostReport
from .graph import Node, compile_plan
from .programs import Spec
from .session import Session


def run_once(session: Session, function: Callable, *arrays: np.ndarray) -> tuple[np.ndarray, CostReport]:
    """Share arrays, run one JAX function of them on the parties, and reveal its one result here.

    Nothing of it stays on the parties. A sampling keeps its values there instead, see `compile_plan`.

    Returns:
        The result and what the run cost, without the sharing and revealing.
    """
    values = {f"trial.in{index}": np.asarray(array) for index, array in enumerate(arrays)}
    specs = {name: Spec.of(array) for name, array in values.items()}
    plan = compile_plan([Node("trial", function, tuple(values), ("trial.out",))], specs, ("trial.out",))
    session.share(values)
    cost = session.run(plan)
    result = session.reveal("trial.out")
    session.delete([*values, "trial.out"])
    return result, cost


def words_of(session: Session, name: str, rank: int) -> np.ndarray:
    """What one party holds of a secret variable, as numbers modulo 2^64.

    Returns:
        uint64 [elements, 2]: the party's own component of each element, and the next party's. Party r's second is party
        r+1's first; the three different ones add up to the value times 2^fraction_bits.
    """
    return words_in(session.share_of(name, rank).share_chunks)


def words_in(chunks: Iterable[bytes]) -> np.ndarray:
    """The ring words of a share's pieces, in the order of the pieces: uint64 [elements, 2], as `words_of` has them."""
    contents = []
    for data in chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        contents.append(chunk.content)
    return np.frombuffer(b"".join(contents), "<u8").reshape(-1, 2)
