"""Programs and plans that the parties run.

A program is a pure JAX function compiled by SPU for given shapes. A plan is a list of calls of programs on named variables;
it is sent to the parties once, and they work through it by themselves.

Programs are shortened, because SPU reads a program's text anew at every run. For a small model this takes longer than the run
itself. Most of this time goes into tokens: the compiler writes out the type of every operand, and frees every value on its own
line. Here types get names, and small values stay until the program ends. The computation does not change.
"""

import hashlib
import io
import json
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Any

import jax
import numpy as np
from spu.utils import frontend

from ..errors import CipherDMError
from ..files import kept
from ..kernels.apart import apart
from ..kernels.narrow import narrowed
from ..kernels.ring_program import FULL, HALF, RingProgram, WalkPlan
from ..kernels.rings import planned
from ..kernels.trace import trace
from . import compiler


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of an input or output, whether it is public, and the bits of the ring in which it is held."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    public: bool = False
    ring: int = FULL

    @classmethod
    def of(cls, array: np.ndarray, *, public: bool = False) -> "Spec":
        """Return the spec of an array."""
        return cls(tuple(array.shape), str(array.dtype), public)


@dataclass(frozen=True)
class Program:
    """Compiled function. `code` is SPU's textual MLIR, or the plan of a walk; equal for all parties, without secrets."""

    id: str
    name: str
    code: bytes
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    walk: bool = False


@dataclass(frozen=True)
class Call:
    """One call of a program on named variables.

    Attributes:
        program: program to run.
        inputs: names of the variables it reads, in the order of the function's arguments.
        outputs: names of the variables it writes.
        label: row of the cost report for this call.
        small: whether SPU runs it in the ring of 32 bits.
        frees: variables that the parties delete after the call.
        files: outputs that the parties move from memory to files.
    """

    program: Program
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    label: str
    small: bool = False
    frees: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Calls in the order in which every party runs them."""

    calls: tuple[Call, ...]

    @property
    def outputs(self) -> dict[str, Spec]:
        """Specs of all variables that the calls write, by name."""
        return {
            name: spec for call in self.calls for name, spec in zip(call.outputs, call.program.outputs, strict=True)
        }


@lru_cache(maxsize=1024)
def compile_program(function: Callable, inputs: tuple[Spec, ...], ring: int = FULL) -> Program:
    """Compile a pure JAX function of arrays, returning an array or a tuple of them, for SPU in the ring of 64 or 32 bits.

    Each pair (function, inputs) is compiled once, so equal functions share a program, such as equal frozen dataclasses with a
    `__call__` and a `__name__`. Everything that the function closes over becomes a public constant of the program, so secrets
    must be inputs.

    Raises:
        CipherDMError: SPU cannot compile the function, or not for this ring; an argument is held in another ring; or the
            function would reveal a secret to the parties.
    """
    for place, spec in enumerate(inputs):
        if spec.ring != ring or (spec.public and ring != FULL):
            raise CipherDMError(
                f"argument {place} of {function.__name__} is {'public' if spec.public else 'held'} in {spec.ring} bits, "
                f"and SPU computes in {ring}: take it there by a walk."
            )

    def entry(*arrays):
        return function(*arrays)

    entry.__name__ = function.__name__.replace(".", "_")  # the executable's name in SPU's log
    arguments = [jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in inputs]
    visibility = "".join("p" if spec.public else "s" for spec in inputs)
    if ring == HALF:
        check_small(function.__name__, jax.make_jaxpr(entry)(*arguments).jaxpr)
    try:
        hlo, result = _traced(entry, arguments)
        compile_hlo = compiler.compile_hlo if len(hlo) < LARGE_HLO else _compile_apart
        code = kept(visibility.encode() + hlo, lambda: shorten(compile_hlo(hlo, visibility)))
    except RuntimeError as error:
        # SPU's first line is 'loc("...", where it was traced): error: ...'.
        reason = str(error).strip().partition("\n")[0].rpartition("error: ")[2]
        raise CipherDMError(f"SPU cannot compile {function.__name__}: {reason}") from error
    if b"reveal" in code:
        raise CipherDMError(
            f"{function.__name__} reveals a secret to the parties; return it as an output, which only the client reads."
        )
    outputs = tuple(Spec(tuple(item.shape), str(item.dtype), ring=ring) for item in jax.tree_util.tree_leaves(result))
    return Program(hashlib.sha256(code).hexdigest()[:24], function.__name__, code, tuple(inputs), outputs)


@dataclass(frozen=True, eq=False)
class Walking:
    """How parties walk programs.

    Attributes:
        fraction_bits: fraction bits of the engine, in which words are counted.
        significant_bits: bits that factors of products keep (`kernels.narrow`), or None to leave them as they are.
        sizes: largest size of each secret value's words by number, by the digest of a program (`sizes_met`). Such a program
            has rings by value (`kernels.rings`), each other one that of 64 bits.
    """

    fraction_bits: int
    significant_bits: int | None = None
    sizes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def read(self, function: Callable, inputs: tuple[Spec, ...]) -> RingProgram | None:
        """Return `read_walk` of a function."""
        return read_walk(function, inputs, self.fraction_bits, by_value=self.significant_bits is not None)


@lru_cache(maxsize=256)
def read_walk(
    function: Callable, inputs: tuple[Spec, ...], fraction_bits: int, *, by_value: bool
) -> RingProgram | None:
    """Return a function as a program that parties walk, or None if it compares or divides, which SPU has to do.

    With rings `by_value`, joined products come apart (`kernels.apart`). Reading takes seconds for a whole step, so what came of
    it is kept for functions of this package.
    """

    def read() -> bytes:
        try:
            program = trace(function, inputs, fraction_bits)
        except CipherDMError:
            return b""
        return json.dumps((apart(program) if by_value else program).fields()).encode()

    content = _content_of((function, inputs, fraction_bits, by_value))
    text = read() if content is None else kept(b"walk" + content, read)
    return RingProgram.of_fields(json.loads(text)) if text else None


class _OwnPickler(pickle.Pickler):
    """Refuses functions and classes of other packages, which change without `kept` noticing."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__.partition(".")[0] not in _KNOWN:
            raise pickle.PicklingError(f"{value.__module__}.{value.__qualname__}")
        return NotImplemented


_KNOWN = ("cipherdm", "builtins", "collections", "functools", "jax", "numpy")


def _content_of(value: Any) -> bytes | None:
    """Return all that tells a value from others, or None if that is not known."""
    written = io.BytesIO()
    try:
        _OwnPickler(written).dump(value)
    except (pickle.PicklingError, AttributeError, TypeError):  # what each raises for a local function, by versions
        return None
    return written.getvalue()


_SMALL = frozenset(
    ("add", "sub", "neg", "max", "min", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "xor", "select_n")
    + (
        "reduce_max",
        "reduce_min",
        "reduce_sum",
        "argmax",
        "reshape",
        "broadcast_in_dim",
        "transpose",
        "squeeze",
        "slice",
    )
    + ("concatenate", "pad", "rev", "copy", "convert_element_type", "dynamic_slice", "gather")
)
"""What SPU computes in the ring of 32 bits here: sums, comparisons and movements of data."""


def check_small(name: str, jaxpr: Any) -> None:
    """Raise CipherDMError if a function has an operation that the ring of 32 bits has no room for, or on which SPU fails there.

    With 8 fraction bits an inverse or an exponential has a few bits left; a product's truncation fails for constants that are
    encoded as 1 to 3; and SPU 0.9.5 crashes in matrix products of more than about 100,000 multiply-adds.
    """
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if inner is not None:
            check_small(name, getattr(inner, "jaxpr", inner))
        elif equation.primitive.name not in _SMALL:
            raise CipherDMError(
                f"{name} has {equation.primitive.name!r}, which is not for the ring of 32 bits: compute it in that of 64, or, "
                "if it is a product, in a walk."
            )


def compile_walk(function: Callable, inputs: tuple[Spec, ...], walking: Walking, ring: int = FULL) -> Program:
    """Return a function that `read_walk` reads with the plan by which parties walk it, and whose results have this ring.

    Raises:
        CipherDMError: its numbers are too large for rings by value.
    """
    program = walking.read(function, inputs)
    sizes = walking.sizes.get(program.digest)
    held = [spec.ring for spec in inputs]
    if min((ring, *held)) < FULL:
        plan = WalkPlan.in_rings(program, held, ring)
        if any(plan.bits[number] > bits for number, bits in zip(program.inputs, held, strict=True)):
            raise CipherDMError(f"{function.__name__} reads a value of {HALF} bits as one of {FULL}: renew it first.")
    elif sizes is None or walking.significant_bits is None:
        plan = WalkPlan.in_64_bits(program)
    else:
        plan = planned(*narrowed(program, sizes, walking.significant_bits))
    code = plan.to_json().encode()
    outputs = tuple(Spec(plan.program.shapes[number], ring=ring) for number in plan.program.outputs)
    return Program(hashlib.sha256(code).hexdigest()[:24], function.__name__, code, inputs, outputs, walk=True)


# Bytes of HLO from which a program is compiled in another process. Whole steps are above, and blocks of a U-Net below, for
# which starting that process would take too long.
LARGE_HLO = 1 << 17


def _traced(entry: Callable, arguments: list[jax.ShapeDtypeStruct]) -> tuple[bytes, Any]:
    """Return a function's serialized HLO and its results' shapes: the first half of SPU's `frontend.compile`."""
    with frontend._jax_lock:
        patches = frontend._patch_jax()
        try:
            return frontend._jax_compilation(entry, (), None, arguments, {})
        finally:
            frontend._restore_jax_patch(patches)


def _compile_apart(hlo: bytes, visibility: str) -> bytes:
    """Do `compile_hlo` in another process, so that others of this process's threads go on, and an interrupt is obeyed."""
    command = [sys.executable, "-P", compiler.__file__, visibility]
    done = subprocess.run(command, input=hlo, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace") or f"its compiler ended with {done.returncode}")
    return done.stdout


# Values of at most so many elements are not freed before the end. They take 16 bytes each, so at most 128 KiB per value.
SMALL = 8192
_TYPE = re.compile(r"tensor<((?:\d+x)*)[^<>]*(?:<[^<>]*>)?>")
_FREE = re.compile(r"\n *pphlo\.free %\w+ : (tensor<.*>)(?=\n)")
_LAYOUT = re.compile(r' \{result_layout = dense<[^>]*> : tensor<[^>]*>, xla_shape = "[^"]*"\}')


def shorten(code: bytes, small: int = SMALL) -> bytes:
    """Shorten textual MLIR: name tensor types, drop XLA's layout notes, free only values of more than `small` elements."""
    text = _LAYOUT.sub("", code.decode())
    text = _FREE.sub(lambda line: "" if _elements(line[1]) <= small else line[0], text)
    names: dict[str, str] = {}
    text = _TYPE.sub(lambda match: names.setdefault(match[0], f"!t{len(names)}"), text)
    return "".join([*(f"{name} = {type_}\n" for type_, name in names.items()), text]).encode()


def _elements(type_: str) -> int:
    """Return the number of elements of a tensor type."""
    return math.prod(map(int, _TYPE.match(type_)[1].split("x")[:-1]))
