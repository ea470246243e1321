"""Piecewise and adapted polynomials as values, and their fits."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherdm.approximations import exact
from cipherdm.approximations.fitting import Form, even_plus_half, fit_minimax, fit_weighted
from cipherdm.approximations.knuth import KnuthPolynomial
from cipherdm.approximations.mish import mish_corrected
from cipherdm.approximations.piecewise import PiecewisePolynomial, powers
from cipherdm.approximations.silu import silu_corrected, silu_polynomial
from cipherdm.engine import Node, Spec, compile_plan
from cipherdm.errors import CipherDMError

INF = float("inf")
ROUNDED_SEXTIC = Form((0, 1, 2, 4, 6))
OUTSIDE = ((0.0,), (0.0, 1.0))


def numpy_piecewise(breakpoints, coefficients, x):
    """The same function by NumPy: the segment by searchsorted, its value by polyval."""
    segment = np.searchsorted(np.float32(breakpoints), x, side="right")
    choices = [np.polynomial.polynomial.polyval(x.astype(np.float64), c) for c in coefficients]
    return np.select([segment == i for i in range(len(coefficients))], choices)


def piecewise(breakpoints, coefficients):
    return PiecewisePolynomial("drawn", (-INF, INF), tuple(breakpoints), tuple(map(tuple, coefficients)))


NUMBERS = st.floats(-2, 2, width=32).map(lambda value: round(value, 3))


@st.composite
def functions(draw):
    breakpoints = sorted(draw(st.sets(st.integers(-16, 16), max_size=4)))
    segment = st.one_of(st.lists(NUMBERS, min_size=1, max_size=8), st.just([0.0]), st.just([0.0, 1.0]))
    count = len(breakpoints) + 1
    return [b / 4 for b in breakpoints], draw(st.lists(segment, min_size=count, max_size=count))


@settings(max_examples=25, deadline=None)
@given(functions(), st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6))
def test_it_is_the_piecewise_polynomial(function, points):
    x = np.array([*points, *function[0]], np.float32)  # on the breakpoints too
    expected = numpy_piecewise(*function, x)
    np.testing.assert_allclose(piecewise(*function)(x), expected, rtol=1e-4, atol=1e-4 * (1 + np.abs(x).max() ** 7))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 15), min_size=1, max_size=6))
def test_powers_are_powers(exponents):
    x = np.linspace(-1.2, 1.2, 5, dtype=np.float32)
    found = powers(x, exponents)
    for k in exponents:
        np.testing.assert_allclose(found[k], x**k, rtol=1e-5, atol=1e-7)


def test_neighbouring_segments_meet():
    """Continuous where the polynomials agree: the tent of |x|, on the breakpoint and beside it."""
    tent = piecewise((0.0,), ((0.0, -1.0), (0.0, 1.0)))
    x = np.float32([-2, -1e-6, 0, 1e-6, 2])
    np.testing.assert_array_equal(tent(x), np.abs(x))


def test_values_outside_their_segment_do_no_harm():
    cubic = piecewise((-1.0, 1.0), ((0.0,), (0.0, 0.0, 0.0, 1.0), (0.0, 1.0)))
    np.testing.assert_array_equal(cubic(np.float32([-1e12, 1e12])), np.float32([0, 1e12]))


def test_shapes_and_types_are_kept():
    x = np.zeros((2, 3, 4), np.float32)
    for function in (silu_corrected, silu_polynomial(6), piecewise((), ((1.0, 2.0, 3.0),))):
        assert function(x).shape == x.shape and function(x).dtype == np.float32


def test_it_is_a_value():
    again = piecewise((0.0,), ((0.0,), (0.0, 1.0)))
    assert again == piecewise((0.0,), ((0.0,), (0.0, 1.0))) and hash(again) == hash(
        piecewise((0.0,), ((0.0,), (0.0, 1.0)))
    )
    assert again.__name__ == again.name == "drawn"
    x, y = again.curve(-1, 1, 5)
    np.testing.assert_array_equal(y, [0, 0, 0, 0.5, 1])
    assert again.max_error(lambda x: 0 * x, -1, 1) == 1
    assert again.weighted_error(lambda x: 0 * x, np.array([-3, 1, 1, -5])) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("breakpoints", "coefficients"),
    [
        ((0.0,), ((1.0,),)),
        ((1.0, 0.0), ((1.0,),) * 3),
        ((0.0, 0.0), ((1.0,),) * 3),
        ((0.0,), ((), (1.0,))),
        ((INF,), ((1.0,),) * 2),
    ],
    ids=["segments", "descending", "repeated", "empty", "infinite"],
)
def test_mistakes_are_named(breakpoints, coefficients):
    with pytest.raises(CipherDMError, match="drawn"):
        piecewise(breakpoints, coefficients)


# Knuth's adaptation.


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([4, 6, 8]),
    st.lists(st.floats(-1, 1), min_size=9, max_size=9),
    st.sampled_from([-1, 1]),
    st.floats(0.002, 0.02),
)
def test_adapted_coefficients_give_the_same_polynomial(degree, drawn, sign, leading):
    coefficients = np.array(drawn[: degree + 1]) / 4.0 ** np.arange(degree + 1)
    if degree == 8:
        coefficients[3::2] = 0
        coefficients[1] = 0.5
    coefficients[degree] = sign * leading * 4.0**-degree * 20
    polynomial = KnuthPolynomial("drawn", (-4, 4), tuple(coefficients))
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    expected = np.polynomial.polynomial.polyval(x.astype(np.float64), coefficients)
    size = max(1, *(abs(constant) for constant in polynomial._constants)) ** 2
    np.testing.assert_allclose(polynomial(x), expected, atol=1e-5 * size)
    folded = polynomial.of_scaled(x * np.float32(polynomial.input_scale)) / polynomial.output_scale
    np.testing.assert_allclose(folded, expected, atol=1e-5 * size)


@pytest.mark.parametrize(
    "coefficients", [(1.0, 2.0), (0.0,) * 5, (0.0, 0.5, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.1), (1.0,) * 6]
)
def test_polynomials_that_cannot_be_adapted_are_refused(coefficients):
    with pytest.raises(CipherDMError, match="degree 4, 6 or 8"):
        KnuthPolynomial("drawn", (-1, 1), coefficients)


@pytest.mark.parametrize(("degree", "multiplications"), [(4, 2), (6, 3), (8, 3)])
def test_adapted_polynomials_have_few_multiplications(degree, multiplications):
    jaxpr = jax.make_jaxpr(silu_polynomial(6, degree).of_scaled)(np.zeros(3, np.float32))
    assert [equation.primitive.name for equation in jaxpr.eqns].count("mul") == multiplications


# Fits.


@pytest.mark.parametrize("function", [exact.silu, exact.mish])
def test_the_minimax_fit_is_a_minimax_fit(function):
    """Chebyshev's criterion: the largest error is reached with alternating signs at degree + 2 points."""
    fit = fit_minimax(function, (-2, 6), (4,), name="fit")
    x = np.linspace(-2, 6, 20_001)
    error = np.polynomial.polynomial.polyval(x, fit.coefficients[0]) - function(x)
    extreme = x[np.abs(error) > 0.999 * np.abs(error).max()]
    signs = np.sign(np.interp(extreme, x, error))
    assert 1 + np.count_nonzero(np.diff(signs)) >= 6
    assert fit.domain == (-2, 6)


@pytest.mark.parametrize(("corrected", "function"), [(silu_corrected, exact.silu), (mish_corrected, exact.mish)])
def test_the_corrected_coefficients_are_the_fit(corrected, function):
    fit = fit_minimax(
        function, (-6, -2, 6), (2, ROUNDED_SEXTIC), name=corrected.name, outside=OUTSIDE, fraction_bits=18
    )
    for found, stored in zip(fit.coefficients, corrected.coefficients, strict=True):
        np.testing.assert_allclose(found, stored, rtol=0, atol=2.0**-17)
    assert all(value * 2**18 == round(value * 2**18) for segment in corrected.coefficients for value in segment)


def test_rounding_coefficients_while_fitting_is_better_than_afterwards():
    exactly, stepwise = (
        fit_minimax(exact.silu, (-2, 6), (ROUNDED_SEXTIC,), name="fit", fraction_bits=bits) for bits in (None, 18)
    )
    rounded = tuple(round(value * 2**18) / 2**18 for value in exactly.coefficients[0])
    afterwards = PiecewisePolynomial("fit", (-2, 6), (), (rounded,))
    assert stepwise.max_error(exact.silu, -2, 6) < 0.7 * afterwards.max_error(exact.silu, -2, 6)


def test_a_weighted_fit_is_better_where_the_weight_is():
    samples = np.random.default_rng(0).normal(0, 1, 5_000)
    form = even_plus_half(6)
    minimax = fit_minimax(exact.silu, (-6, 6), (form,), name="fit")
    weighted = fit_weighted(exact.silu, samples, (-6, 6), (form,), name="fit")
    assert weighted.weighted_error(exact.silu, samples) < 0.5 * minimax.weighted_error(exact.silu, samples)
    assert minimax.max_error(exact.silu, -6, 6) < weighted.max_error(exact.silu, -6, 6)
    assert weighted.coefficients[0][1] == 0.5 and not any(weighted.coefficients[0][3::2])
    counts, edges = np.histogram(samples, 400, (-6, 6))
    histogram = fit_weighted(exact.silu, (edges[1:] + edges[:-1]) / 2, (-6, 6), (form,), name="fit", weights=counts)
    np.testing.assert_allclose(histogram.coefficients[0], weighted.coefficients[0], atol=2e-3)


def test_fits_of_a_polynomial_are_that_polynomial():
    coefficients = (0.3, -0.2, 0.1, 0.05)
    x = np.linspace(-3, 3, 200)
    for fit in (
        fit_minimax(lambda x: np.polynomial.polynomial.polyval(x, coefficients), (-3, 3), (3,), name="fit"),
        fit_weighted(lambda x: np.polynomial.polynomial.polyval(x, coefficients), x, (-3, 3), (3,), name="fit"),
    ):
        np.testing.assert_allclose(fit.coefficients[0], coefficients, atol=1e-6)


def test_unusable_fits_are_refused():
    with pytest.raises(CipherDMError, match="2 segments need 3"):
        fit_minimax(exact.silu, (-1, 1), (2, 2), name="fit")
    with pytest.raises(CipherDMError, match="floor"):
        fit_weighted(exact.silu, np.zeros(3), (-1, 1), (2,), name="fit", floor=0.0)


# On shares.


def test_segments_far_away_do_not_overflow_into_the_result(session):
    """x^6 of 3,000 wraps around in the ring, in a segment that is not chosen."""
    x = np.float32([-3000, -100, -5, -3, -2, 0, 2, 5.5, 100, 3000])
    session.share({"x": x})
    session.run(compile_plan([Node("silu", silu_corrected, ("x",), ("y",))], {"x": Spec.of(x)}, ("y",)))
    np.testing.assert_allclose(session.reveal("y"), silu_corrected(x), atol=1e-3)


def test_the_number_of_segments_does_not_change_the_messages(session):
    two = piecewise((0.0,), ((0.0,), (0.5, 0.25, 0.125)))
    five = piecewise((-2.0, -1.0, 1.0, 2.0), ((0.0,), (0.1, 0.2), (0.5, 0.25, 0.125), (0.3, 0.4, 0.5), (0.0, 1.0)))
    x = np.linspace(-4, 4, 50, dtype=np.float32)
    session.share({"x": x})
    sends = []
    for function in (two, five):
        plan = compile_plan([Node("piecewise", function, ("x",), ("y",))], {"x": Spec.of(x)}, ("y",))
        sends.append(session.run(plan).sends)
        np.testing.assert_allclose(session.reveal("y"), function(x), atol=1e-3)
    assert sends[0] == sends[1]


@settings(max_examples=25, deadline=None)
@given(functions())
def test_one_selection_on_shares_is_one_for_each_segment_in_plaintext(function):
    """Both readings, in plaintext, on the breakpoints too."""
    breakpoints, coefficients = function
    drawn = piecewise(breakpoints or (0.0,), coefficients if breakpoints else coefficients * 2)
    x = np.array([-5, *drawn.breakpoints, 5, 0.3], np.float32)
    values = [np.float32(np.polynomial.polynomial.polyval(x, drawn.coefficients[i])) for i in drawn._selected]
    np.testing.assert_array_equal(drawn._select_in_one(x, *values), drawn._select(x, *values))
