"""Split a function with kernels into several programs, with the kernels between them.

The function is traced once. Each of its equations gets a level: the number of kernels that must be computed before it.
Equations of one level form one program, followed by the kernels that need its results. Reading a float's share as words is
repeated wherever the words are read. So a layer's weights reach the kernel under their own name, and no program copies them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from ..errors import CipherDMError
from ..kernels.operation import is_after, kernel_of
from .programs import KernelProgram, Spec


@dataclass(frozen=True)
class Stage:
    """Part of a split function: the function of a program, or a kernel with the spec of its result."""

    function: "Callable | KernelProgram"
    inputs: tuple[str, ...]  # "in0", "in1", ... for the whole function's arguments, or names that earlier stages write
    outputs: tuple[str, ...]  # "out0", "out1", ... for the whole function's results, or other names


@dataclass(frozen=True)
class Part:
    """Function that computes the equations of one level of another function."""

    function: Callable
    shapes: tuple[tuple[tuple[int, ...], str], ...]
    level: int

    @property
    def __name__(self) -> str:
        return f"{self.function.__name__}.{self.level}"

    def __call__(self, *arrays):
        traced = _trace(self.function, self.shapes)
        values = dict(zip(traced.reads(self.level), arrays, strict=True))
        values.update(traced.constants)
        for equation in traced.at(self.level):
            if is_after(equation):
                values[equation.outvars[0]] = values[equation.invars[0]]
                continue
            operands = [atom.val if isinstance(atom, Literal) else values[atom] for atom in equation.invars]
            results = equation.primitive.bind(*operands, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
            values.update(zip(equation.outvars, results, strict=True))
        return tuple(values[name] for name in traced.writes(self.level))


def split_at_kernels(function: Callable, shapes: tuple[tuple[tuple[int, ...], str], ...]) -> tuple[Stage, ...] | None:
    """Return the stages of a function of arrays with these shapes and dtypes, or None if it contains no kernel.

    Raises:
        CipherDMError: a kernel is inside a loop, a condition or a jitted function.
    """
    traced = _trace(function, shapes)
    return traced.stages() if traced.kernels else None


class _Traced:
    """Traced function with the level of each of its equations."""

    def __init__(self, function: Callable, shapes: tuple[tuple[tuple[int, ...], str], ...]):
        self.function, self.shapes = function, shapes
        closed = jax.make_jaxpr(partial(_with_copies, function))(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
        self.inputs, self.outputs = closed.jaxpr.invars, closed.jaxpr.outvars
        self.constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        self.kernels = [equation for equation in closed.jaxpr.eqns if kernel_of(equation)]
        self._renamings = {e.outvars[0]: e.invars[0] for e in closed.jaxpr.eqns if _renames(e)}
        self._equations = _with_levels(closed.jaxpr)
        self.depth = max((level for level, _ in self._equations), default=0)

    def at(self, level: int) -> list:
        """Return the equations of a level's program that are needed, and renamings of values that it reads."""
        needed = set(self.writes(level))
        kept = []
        for made_at, equation in reversed(self._equations):
            here = made_at == level and not kernel_of(equation)
            if (here or _renames(equation)) and needed.intersection(equation.outvars):
                kept.append(equation)
                needed.update(_read_by(equation))
        return kept[::-1]

    def writes(self, level: int) -> list:
        """Return the values of a level's program that kernels, later levels or the caller read."""
        computed = [(at, e) for at, e in self._equations if not kernel_of(e)]
        made = {v for at, e in computed if at == level and not _renames(e) for v in e.outvars}
        read = [self._origin(v) for at, e in computed if at > level for v in _read_by(e)]
        read += [self._origin(v) for kernel in self.kernels for v in _variables(kernel)]
        results = {v for at, e in computed if at == level for v in e.outvars}
        return list(dict.fromkeys([v for v in read if v in made] + [v for v in self.outputs if v in results]))

    def reads(self, level: int) -> list:
        """Return the values that a level's program reads and does not compute itself."""
        equations = self.at(level)
        made = {v for equation in equations for v in equation.outvars} | set(self.constants)
        return list(dict.fromkeys(v for e in equations for v in _read_by(e) if v not in made))

    def stages(self) -> tuple[Stage, ...]:
        """Return all programs and kernels in order."""
        variables = dict.fromkeys(v for _, e in self._equations for v in e.outvars)
        names = {v: f"in{index}" for index, v in enumerate(self.inputs)}
        names |= {v: f"v{index}" for index, v in enumerate(variables)}
        names |= {v: f"out{index}" for index, v in enumerate(self.outputs)}
        stages = []
        for level in range(self.depth + 1):
            if self.writes(level):
                reads, writes = (tuple(names[v] for v in group) for group in (self.reads(level), self.writes(level)))
                stages.append(Stage(Part(self.function, self.shapes, level), reads, writes))
            for at, equation in self._equations:
                if at == level and kernel_of(equation):
                    operands = tuple(names[self._origin(v)] for v in equation.invars)
                    (result,) = equation.outvars
                    program = KernelProgram(kernel_of(equation), (Spec.of(result.aval),))
                    stages.append(Stage(program, operands, (names[result],)))
        return tuple(stages)

    def _origin(self, variable):
        """Return the variable of which this one is only another reading."""
        while variable in self._renamings:
            variable = self._renamings[variable]
        return variable


_trace = lru_cache(maxsize=256)(_Traced)


def _with_copies(function: Callable, *arrays) -> tuple:
    """Return the function's results as a tuple; arguments that it returns unchanged are copied."""
    results = function(*arrays)
    results = results if isinstance(results, tuple) else (results,)
    return tuple(jnp.copy(result) if any(result is array for array in arrays) else result for result in results)


def _with_levels(jaxpr) -> list[tuple[int, Any]]:
    """Return each equation with its level. Those that need no kernel run late, so programs pass on fewer values."""
    available: dict[Any, int] = dict.fromkeys([*jaxpr.invars, *jaxpr.constvars], 0)
    earliest = []
    for equation in jaxpr.eqns:
        _check_flat(equation)
        level = max((available[v] for v in _variables(equation)), default=0)
        available.update(dict.fromkeys(equation.outvars, level + bool(kernel_of(equation))))
        earliest.append(level)
    wanted: dict[Any, int] = {}
    found = []
    for level, equation in zip(reversed(earliest), reversed(jaxpr.eqns), strict=True):
        if level == 0 and not kernel_of(equation):
            level = min((wanted[v] for v in equation.outvars if v in wanted), default=max(earliest))
        for variable in _variables(equation):
            wanted[variable] = min(level, wanted.get(variable, level))
        found.append((level, equation))
    return found[::-1]


def _variables(equation) -> list:
    return [atom for atom in equation.invars if not isinstance(atom, Literal)]


def _read_by(equation) -> list:
    """Return the variables whose values an equation needs; `_variables` also has those for which it only waits."""
    atoms = equation.invars[:1] if is_after(equation) else equation.invars
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def _renames(equation) -> bool:
    """Return whether an equation only gives words another type, or another place in the order."""
    return equation.primitive.name == "bitcast_convert_type" or is_after(equation)


def _check_flat(equation) -> None:
    """Raise CipherDMError if there is a kernel within an equation: in a loop, a condition, or a jitted function."""
    inner = [e for jaxpr in jax.core.jaxprs_in_params(equation.params) for e in jaxpr.eqns]
    for nested in inner:
        if kernel_of(nested):
            raise CipherDMError(
                f"a kernel is inside a {equation.primitive.name}, which is one program on SPU; "
                'run each step by itself, with granularity "step" or "block".'
            )
        _check_flat(nested)
