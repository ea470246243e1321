"""Which shape each operation of a `ring_program` makes, and which operations there are.

Shapes are public, and messages of a walk are as long as its values. So a program is taken only if no value's shape can depend
on anything but the shapes of its arguments: each operation is one of those known here, written in the one way known here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import CipherDMError

Shape = tuple[int, ...]
MOST = 1 << 31  # numbers of one value; more is a mistake, or meant to use up a party's memory


def check_shape(kind: str, inputs: Sequence[Shape], shape: Shape, parameters: Mapping[str, Any]) -> None:
    """Check that an operation of this kind makes a value of this shape, from values of those shapes.

    Raises:
        CipherDMError: it does not, or there is no such operation.
    """
    try:
        found = _MADE[kind](tuple(map(tuple, inputs)), tuple(shape), **parameters)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        found = None
    if found is None or tuple(found) != tuple(shape) or not all(map(_whole, shape)) or math.prod(shape) > MOST:
        raise CipherDMError(f"there is no {kind} of {list(inputs)} to {list(shape)} with {dict(parameters)}")


def _whole(*numbers: Any, least: int = 0, below: int = 1 << 62) -> bool:
    return all(type(number) is int and least <= number < below for number in numbers)


def _checked(fits: bool, shape: Sequence[int]) -> Shape | None:
    return tuple(shape) if fits else None


def _elementwise(count: int) -> Callable[..., Shape | None]:
    return lambda inputs, shape: _checked(len(inputs) == count, np.broadcast_shapes(*inputs))


def _places(axes, extents: Sequence[int]) -> bool:
    """Return whether these are different axes of an array."""
    return _whole(*axes, below=len(extents)) and len(set(axes)) == len(axes)


def _reshape(inputs, shape):
    (x,) = inputs
    return _checked(math.prod(x) == math.prod(shape), shape)


def _broadcast(inputs, shape, axes):
    (x,) = inputs
    extents = zip(x, axes, strict=True)
    return _checked(
        _places(axes, shape) and sorted(axes) == list(axes) and all(n in (1, shape[axis]) for n, axis in extents), shape
    )


def _slice(inputs, shape, start, stop, step):
    (x,) = inputs
    ends = list(zip(x, start, stop, step, strict=True))
    fits = all(_whole(a, b) and _whole(s, least=1) and a <= b <= extent for extent, a, b, s in ends)
    return _checked(fits, [-(-(b - a) // s) for _, a, b, s in ends])


def _dynamic_slice(inputs, shape):
    x, *places = inputs
    fits = all(size <= extent for size, extent in zip(shape, x, strict=True))
    return _checked(fits and places == [()] * len(x), shape)


def _transpose(inputs, shape, axes):
    (x,) = inputs
    return _checked(_places(axes, x) and len(axes) == len(x), [x[axis] for axis in axes])


def _concatenate(inputs, shape, axis):
    first = inputs[0]
    rest = {(*x[:axis], *x[axis + 1 :]) for x in inputs}
    fits = _whole(axis, below=len(first)) and len(rest) == 1 and len({len(x) for x in inputs}) == 1
    return _checked(fits, (*first[:axis], sum(x[axis] for x in inputs), *first[axis + 1 :]))


def _pad(inputs, shape, edges):
    (x,) = inputs
    ends = [(extent, low, high) for extent, (low, high) in zip(x, edges, strict=True)]
    fits = all(
        _whole(low, high, least=-extent) and extent + min(low, 0) + min(high, 0) >= 0 for extent, low, high in ends
    )
    return _checked(fits, [extent + low + high for extent, low, high in ends])


def _sum(inputs, shape, axes):
    (x,) = inputs
    return _checked(_places(axes, x), [extent for axis, extent in enumerate(x) if axis not in axes])


def _shifted(inputs, shape, bits, least=1):
    (x,) = inputs
    return _checked(_whole(bits, least=least, below=64), x)


def _truncated(inputs, shape, bits):
    return _shifted(inputs, shape, bits, least=0)  # by none, a value only changes its ring


def _matmul(inputs, shape):
    (*lead, rows, inner), (*other, again, columns) = inputs
    return _checked(lead == other and inner == again, (*lead, rows, columns))


def _conv2d(inputs, shape, stride, padding):
    (outputs, channels, size, wide), (batch, same, *extents) = inputs
    (above, below), (left, right) = padding
    fits = channels == same and size == wide and _whole(stride, least=1) and _whole(above, below, left, right)
    around = [extents[0] + above + below, extents[1] + left + right]
    fits = fits and len(extents) == 2 and min(around) >= size > 0
    return _checked(fits, (batch, outputs, *((extent - size) // stride + 1 for extent in around)))


_MADE: dict[str, Callable[..., Shape | None]] = {
    "reshape": _reshape,
    "broadcast": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "pad": _pad,
    "sum": _sum,
    "shift": _shifted,
    "truncate": _truncated,
    "matmul": _matmul,
    "conv2d": _conv2d,
    "select": _elementwise(3),
    **dict.fromkeys(("negate", "share"), _elementwise(1)),
    **dict.fromkeys(("add", "subtract", "less", "multiply", "scale", "offset"), _elementwise(2)),
}
