"""Shapes of operations: those that are made, and that nothing else is taken for an operation."""

import numpy as np
import pytest

from cipherdm import CipherDMError
from cipherdm.kernels.ring_program import Operation, RingProgram, WalkPlan, in_the_clear

SHAPES = ((2, 3), (3, 2), (), (1, 4, 6, 6), (5, 4, 3, 3), (2, 3))
SECRET, PUBLIC = (0, 1, 3, 4), (2, 5)


def program(kind, inputs, shape, **parameters):
    """One operation on arguments of SHAPES, of which those of PUBLIC are public."""
    operation = Operation(kind, tuple(inputs), len(SHAPES), tuple(shape), parameters)
    return RingProgram((operation,), (*SHAPES, tuple(shape)), tuple(range(len(SHAPES))), (len(SHAPES),), PUBLIC_SET, {})


PUBLIC_SET = frozenset(PUBLIC)
RIGHT = [
    ("reshape", [0], [6], {}),
    ("broadcast", [0], [4, 2, 3], {"axes": [1, 2]}),
    ("slice", [0], [2, 2], {"start": [0, 0], "stop": [2, 3], "step": [1, 2]}),
    ("dynamic_slice", [0, 2, 2], [1, 2], {}),
    ("transpose", [0], [3, 2], {"axes": [1, 0]}),
    ("concatenate", [0, 0], [2, 6], {"axis": 1}),
    ("pad", [0], [3, 2], {"edges": [[0, 1], [-1, 0]]}),
    ("add", [0, 0], [2, 3], {}),
    ("subtract", [0, 0], [2, 3], {}),
    ("negate", [0], [2, 3], {}),
    ("sum", [0], [2], {"axes": [1]}),
    ("shift", [0], [2, 3], {"bits": 4}),
    ("truncate", [0], [2, 3], {"bits": 4}),
    ("multiply", [0, 0], [2, 3], {}),
    ("scale", [0, 2], [2, 3], {}),
    ("offset", [0, 5], [2, 3], {}),
    ("share", [5], [2, 3], {}),
    ("matmul", [0, 1], [2, 2], {}),
    ("conv2d", [4, 3], [1, 5, 3, 4], {"stride": 2, "padding": [[1, 1], [2, 2]]}),
]


@pytest.mark.parametrize(("kind", "inputs", "shape", "parameters"), RIGHT, ids=[kind for kind, *_ in RIGHT])
def test_each_operation_makes_the_shape_that_is_asked_for(kind, inputs, shape, parameters):
    made = program(kind, inputs, shape, **parameters)
    arrays = [np.ones(extents, np.int64) for extents in SHAPES]
    assert in_the_clear(made, arrays)[len(SHAPES)].shape == tuple(shape)
    with pytest.raises(CipherDMError, match=f"there is no {kind}"):
        program(kind, inputs, [*shape[:-1], 7], **parameters)
    with pytest.raises(CipherDMError, match=f"there is no {kind}"):
        program(kind, inputs, shape, **parameters | {"more": 1})
    for name in parameters:
        for wrong in (-1, [-1], [[-1, -1]], "1", None, [1.0, 0.0], 1 << 70):
            with pytest.raises(CipherDMError, match=f"there is no {kind}"):
                program(kind, inputs, shape, **parameters | {name: wrong})


@pytest.mark.parametrize(
    ("kind", "inputs", "shape", "parameters"),
    [
        ("dynamic_slice", [0, 1, 2], [1, 2], {}),  # a place that is secret, with which a message's length would tell it
        ("dynamic_slice", [0, 2], [1, 2], {}),
        ("dynamic_slice", [0, 2, 2], [3, 2], {}),  # more than there is
        ("sum", [0], [2], {"axes": [-1]}),  # which would be the sum of components
        ("sum", [0], [], {"axes": [0, 1, 1]}),
        ("transpose", [0], [3, 3], {"axes": [1, 1]}),
        ("concatenate", [0, 1], [2, 5], {"axis": 1}),
        ("broadcast", [0], [2, 3, 1 << 40], {"axes": [0, 1]}),
        ("broadcast", [0], [3, 2], {"axes": [1, 0]}),
        ("pad", [0], [2, 1 << 31], {"edges": [[0, 0], [0, (1 << 31) - 3]]}),
        ("slice", [0], [2, 3], {"start": [0, 0], "stop": [2, 4], "step": [1, 1]}),
        ("shift", [0], [2, 3], {"bits": 64}),
        ("shift", [0], [2, 3], {"bits": True}),
        ("truncate", [0], [2, 3], {"bits": -1}),
        ("matmul", [0, 0], [2, 3], {}),
        ("multiply", [0, 5], [2, 3], {}),
        ("add", [0, 5], [2, 3], {}),
        ("scale", [0, 0], [2, 3], {}),
        ("offset", [5, 0], [2, 3], {}),
        ("share", [0], [2, 3], {}),
        ("less", [0, 0], [2, 3], {}),
        ("reveal", [0], [2, 3], {}),
        ("negate", [], [2, 3], {}),
        ("negate", [0, 0], [2, 3], {"count": 2}),
    ],
)
def test_what_is_no_operation_is_refused(kind, inputs, shape, parameters):
    with pytest.raises(CipherDMError):
        program(kind, inputs, shape, **parameters)


def test_rings_and_cuts_of_a_plan_must_be_possible():
    made = program("truncate", [0], [2, 3], bits=8)
    other = program("negate", [0], [2, 3])
    full = (64,) * 7
    WalkPlan(made, full, frozenset({6}))
    for bits in ((0, *full[1:]), (65, *full[1:]), (64.0, *full[1:]), (True, *full[1:]), (8, *full[1:])):
        with pytest.raises(CipherDMError):
            WalkPlan(made, bits, frozenset({6}))
    for cuts in ({0}, {7}, {"6"}):
        with pytest.raises(CipherDMError, match="no truncation"):
            WalkPlan(made, full, frozenset(cuts))
    with pytest.raises(CipherDMError, match="no truncation"):
        WalkPlan(other, full, frozenset({6}))
    with pytest.raises(CipherDMError, match="bits that what it reads"):
        WalkPlan(made, full, frozenset())
