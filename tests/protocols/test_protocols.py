"""Protocol functions against the exact functions, on dense grids, with the errors that their docstrings state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stated import activations, random, stated_errors, stated_rows

from cipherdm.approximations import exact
from cipherdm.approximations.exp import exp_bounded, exp_cipherdm, exp_corrected, exp_limit, exp_puma
from cipherdm.approximations.gelu import gelu_polynomial, gelu_puma, gelu_quad
from cipherdm.approximations.inverses import InverseSqrt, Reciprocal, inverse_sqrt_newton
from cipherdm.approximations.mish import mish_cipherdm, mish_corrected, mish_polynomial
from cipherdm.approximations.piecewise import clamp, weighted_sum
from cipherdm.approximations.silu import silu_bumblebee, silu_cipherdm, silu_corrected, silu_llama, silu_polynomial
from cipherdm.approximations.softmax import softmax_2quad, softmax_bounded, softmax_limit
from cipherdm.engine import Node, Spec, compile_plan, compile_program
from cipherdm.errors import CipherDMError
from cipherdm.protocols import CIPHERDM, CIPHERDM_CORRECTED, DIRECT, FAST, FAST_64, PUMA, default, named


@pytest.mark.parametrize(
    ("function", "kind", "end"),
    [
        *((f, "silu", 20) for f in (silu_cipherdm, silu_corrected, silu_llama, silu_bumblebee)),
        *((f, "mish", 20) for f in (mish_cipherdm, mish_corrected)),
        (gelu_puma, "gelu", 20),
        (gelu_quad, "gelu", 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_piecewise_activations_have_their_stated_errors(function, kind, end):
    largest, place, mean = stated_errors(function.name)
    x, y = function.curve(-end, end, 400_001)
    error = np.abs(y - getattr(exact, kind)(x.astype(np.float64)))
    assert error.max() == pytest.approx(largest, abs=1.5e-4)
    assert x[error.argmax()] == pytest.approx(place, abs=0.05)
    assert function.weighted_error(getattr(exact, kind), activations()) == pytest.approx(mean, abs=1.5e-4)


@pytest.mark.parametrize(
    ("kind", "make", "degrees"),
    [("silu", silu_polynomial, (4, 6, 8)), ("gelu", gelu_polynomial, (4, 6, 8)), ("mish", mish_polynomial, (4, 6))],
)
def test_polynomials_have_their_stated_errors(kind, make, degrees):
    reference, rows = getattr(exact, kind), stated_rows(f"{kind}_polynomial")
    assert len(rows) == 5
    for bound, *numbers in rows:
        for degree, largest, mean in zip(degrees, numbers[::2], numbers[1::2], strict=True):
            polynomial = make(bound, degree)
            assert polynomial.domain == (-bound, bound)
            assert polynomial.max_error(reference, -bound, bound, points=20_001) == pytest.approx(largest, abs=1.5e-4)
            clipped = np.clip(activations(), -bound, bound)
            assert polynomial.weighted_error(reference, clipped) == pytest.approx(mean, abs=1.5e-4)


def test_a_spread_trades_the_largest_error_for_the_mean():
    minimax, weighted = silu_polynomial(6, 8), silu_polynomial(6, 8, spread=2)
    samples = np.clip(activations(), -6, 6)
    assert weighted.weighted_error(exact.silu, samples) < 0.7 * minimax.weighted_error(exact.silu, samples)
    assert weighted.max_error(exact.silu, -6, 6) > minimax.max_error(exact.silu, -6, 6)
    assert weighted.name != minimax.name and silu_polynomial(6, 8) is minimax


def test_a_polynomial_leaves_its_function_outside_of_its_domain():
    for degree, direction in ((4, -1), (6, 1), (8, -1)):
        assert direction * silu_polynomial(6, degree)(np.float32([20]))[0] > 40
    guarded = silu_polynomial(6, 8)(clamp(6)(np.float32([-20, 20])))
    np.testing.assert_allclose(guarded, [0, 6], atol=0.03)


@pytest.mark.parametrize(
    ("iteration", "reference"), [(InverseSqrt, exact.inverse_sqrt), (Reciprocal, exact.reciprocal)]
)
def test_newtons_iterations_have_their_stated_errors(iteration, reference):
    rows = stated_rows(iteration.__name__)
    assert len(rows) == 4
    for ratio, *errors in rows:
        for steps, stated_error in enumerate(errors):
            for low in (0.3, 1.0):  # a relative error depends on the ratio alone
                function = iteration("newton", (low, low * ratio), steps)
                found = function.max_error(reference, *function.domain, relative=True)
                assert found == pytest.approx(stated_error, abs=1.5e-4)


def test_newtons_first_step_is_affine():
    variance, start = np.float32([0.8, 1.0, 1.3]), np.float32(1.0)
    expected = 1.5 * start - start**3 / 2 * variance
    np.testing.assert_allclose(inverse_sqrt_newton(variance, jnp.full((3,), start)), expected, rtol=1e-6)
    np.testing.assert_allclose(inverse_sqrt_newton(variance, jnp.full((3,), start), 4), variance**-0.5, rtol=1e-5)


def test_corrected_functions_beat_the_published_ones():
    for name in ("silu", "mish"):
        published, corrected = (getattr(protocols, name) for protocols in (CIPHERDM, CIPHERDM_CORRECTED))
        reference = getattr(exact, name)
        assert corrected.max_error(reference, -20, 20) < 0.65 * published.max_error(reference, -20, 20)
        assert corrected.breakpoints == published.breakpoints
    assert exp_corrected.max_error(np.exp, -14, 0) < 0.2 * exp_cipherdm.max_error(np.exp, -14, 0)


# What rounding the public coefficients to 18 fraction bits may do: x^6 is up to 46656 on the published segments.
LOOSE = {
    "silu_cipherdm": 0.02,
    "silu_llama": 0.03,
    "mish_cipherdm": 0.05,
    "silu_bumblebee": 0.12,
    "exp_limit_bound4": 0.5,
}


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        *((f, -10, 10) for f in (silu_cipherdm, silu_corrected, silu_llama, silu_bumblebee)),
        *((f, -10, 10) for f in (mish_cipherdm, mish_corrected, gelu_puma, gelu_quad, clamp(6))),
        *((silu_polynomial(6, degree), -6, 6) for degree in (4, 6, 8)),
        *((mish_polynomial(6, degree), -6, 6) for degree in (4, 6)),
        *((gelu_polynomial(4, degree), -4, 4) for degree in (4, 6, 8)),
        *((f, -16, 0) for f in (exp_cipherdm, exp_corrected, exp_puma)),
        *((f(4), -4, 4) for f in (exp_limit, exp_bounded)),
        *((InverseSqrt(f"inverse_sqrt_steps{k}", (0.5, 2), k), 0.5, 2) for k in (0, 2)),
        *((Reciprocal(f"reciprocal_steps{k}", (0.5, 2), k), 0.5, 2) for k in (0, 2)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_approximations_are_the_same_on_shares(session, function, low, high):
    # Steps of 2^-5 are exact in fixed point, so both sides agree which side of a breakpoint a value is on.
    x = np.arange(low, high, 2.0**-5, dtype=np.float32)
    on_shares(session, function, x, LOOSE.get(function.name, 0.01))


@pytest.mark.parametrize(
    "function",
    [
        *(protocols.softmax for protocols in (CIPHERDM, CIPHERDM_CORRECTED, PUMA)),
        *(softmax_2quad, softmax_limit(4), softmax_bounded(4)),
        softmax_bounded(4, reciprocal=Reciprocal("row_mean", (1.25, 6), 2)),
    ],
    ids=lambda function: function.__name__,
)
def test_softmaxes_are_the_same_on_shares(session, function):
    on_shares(session, function, np.clip(random(2, 3, 40, seed=5), -4, 4), 0.01)


def on_shares(session, function, x, tolerance):
    """Assert that three parties compute what the function gives in plaintext."""
    session.share({"x": x})
    session.run(compile_plan([Node("f", function, ("x",), ("y",))], {"x": Spec.of(x)}, ("y",)))
    np.testing.assert_allclose(session.reveal("y"), function(x), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "formulas"),
    [
        (
            "silu",
            (
                lambda x: -0.52212664 - 0.16910363 * x - 0.01420163 * x**2,
                lambda x: 0.03453821 + 0.49379432 * x + 0.19784596 * x**2 - 0.00602401 * x**4 + 0.00008032 * x**6,
            ),
        ),
        (
            "mish",
            (
                lambda x: -0.55684445 - 0.18375535 * x - 0.01572019 * x**2,
                lambda x: 0.07559242 + 0.54902050 * x + 0.20152583 * x**2 - 0.00735309 * x**4 + 0.00010786 * x**6,
            ),
        ),
    ],
)
def test_segments_meet_where_published(name, formulas):
    low, middle = formulas
    below = np.nextafter(np.float32([-6, -2]), np.float32(-9))
    x = np.float32([below[0], -6, below[1], -2, np.nextafter(np.float32(6), np.float32(0)), 6, 1000, -1000])
    expected = [0, low(-6), low(-2), middle(-2), middle(6), 6, 1000, 0]
    np.testing.assert_allclose(getattr(CIPHERDM, name)(x), expected, rtol=0, atol=1e-4)


def test_weighted_sum_stays_one_product():
    """On shares XLA must not split it into a product for each array, each of which would be truncated on its own."""
    arrays = [random(2, 3, seed=seed) for seed in range(4)]

    def function(*arrays):
        return weighted_sum(arrays, (0.5, -2.0, 3.0, 0.25), 1.5)

    expected = 1.5 + 0.5 * arrays[0] - 2 * arrays[1] + 3 * arrays[2] + 0.25 * arrays[3]
    np.testing.assert_allclose(jax.jit(function)(*arrays), expected, atol=1e-5)
    code = compile_program(function, (Spec((2, 3)),) * 4).code
    assert code.count(b"pphlo.dot") == 1 and b"pphlo.multiply" not in code


def test_sets_are_values():
    assert named("direct") is DIRECT and named("CipherDM") is CIPHERDM
    assert named("cipherdm-corrected") is CIPHERDM_CORRECTED and named("puma") is PUMA
    for protocols in (CIPHERDM, CIPHERDM_CORRECTED, PUMA):
        assert protocols.time_embedding == "precomputed"
    assert PUMA.silu is silu_llama and PUMA.mish is DIRECT.mish and CIPHERDM_CORRECTED.gelu is DIRECT.gelu
    assert hash(replace(CIPHERDM)) == hash(CIPHERDM) and replace(CIPHERDM) == CIPHERDM
    assert (DIRECT.time_embedding, CIPHERDM.time_embedding) == ("inside", "precomputed")
    assert CIPHERDM.group_norm is DIRECT.group_norm
    for name in ("fastest", None):
        with pytest.raises(CipherDMError, match="direct, cipherdm, cipherdm-corrected, puma"):
            named(name)


def test_the_default_is_walked_where_it_can_be():
    assert default("loop") is FAST and FAST.walk_bits is None
    assert default("block") is default("step") is FAST_64


def test_results_are_float32():
    for protocols in (DIRECT, CIPHERDM, CIPHERDM_CORRECTED, PUMA):
        for function in (protocols.silu, protocols.mish, protocols.gelu, protocols.softmax):
            assert function(random(2, 3)).dtype == jnp.float32
