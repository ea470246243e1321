"""Exponentials and softmaxes against the exact functions, with the errors that their docstrings state."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from stated import grid, random, stated, stated_largest, stated_rows

from cipherdm.approximations import exact
from cipherdm.approximations.exp import (
    LOWEST,
    ChebyshevExp,
    exp_bounded,
    exp_cipherdm,
    exp_corrected,
    exp_limit,
    exp_nimbus,
    exp_puma,
)
from cipherdm.approximations.inverses import Reciprocal
from cipherdm.approximations.softmax import PADDING, softmax_2quad, softmax_bounded, softmax_limit
from cipherdm.errors import CipherDMError
from cipherdm.protocols import CIPHERDM, NIMBUS, PUMA


@pytest.mark.parametrize("bound", [0, 19, 50, np.nan])
def test_an_exponential_that_fixed_point_cannot_hold_is_refused(bound):
    with pytest.raises(CipherDMError, match="does not fit into fixed-point"):
        exp_bounded(bound)


def test_bounded_exponentials_have_their_stated_errors():
    rows = stated_rows("exp_bounded")
    assert len(rows) == 6
    for bound, squarings, largest in rows:
        bounded, limit = exp_bounded(bound), exp_limit(bound)
        assert bounded.squarings == squarings
        assert bounded.max_error(np.exp, -bound, bound, relative=True) == pytest.approx(largest, abs=1.5e-4)
        assert limit.max_error(np.exp, -bound, bound, relative=True) < 0.01
        assert bounded.squarings + 2 < limit.squarings
        fewer = replace(limit, squarings=limit.squarings - 1)
        assert fewer.max_error(np.exp, -bound, bound, relative=True) > 0.01


def test_nimbus_exp_has_its_stated_error():
    assert exp_nimbus.max_error(np.exp, -14, 0) == pytest.approx(stated_largest("exp_nimbus"), abs=1e-4)
    np.testing.assert_array_equal(exp_nimbus(np.float32([-3.91, -100])), [0, 0])


def test_pumas_exp_has_its_stated_error():
    assert exp_puma.max_error(np.exp, -14, 0) == pytest.approx(stated_largest("exp_puma"), abs=1e-4)
    np.testing.assert_array_equal(exp_puma(np.float32([-14.01, -100])), [0, 0])


@pytest.mark.parametrize("make", [softmax_bounded, softmax_limit])
def test_bounded_softmaxes_are_within_two_percent(make):
    scores = np.clip(random(50, 100) * 1.5, -4, 4)
    softmax = make(4)
    expected = exact.softmax(scores.astype(np.float64))
    assert softmax.domain == (-4, 4)
    np.testing.assert_allclose(softmax(scores), expected, rtol=0.02)
    np.testing.assert_allclose(softmax.of_scaled(scores * np.float32(softmax.input_scale)), expected, rtol=0.02)
    if make is softmax_bounded:
        calibrated = make(4, reciprocal=Reciprocal("row_mean", (1.25, 6), 2))
        np.testing.assert_allclose(calibrated(scores), expected, rtol=0.03)


def test_published_softmaxes_have_their_stated_errors():
    scores = np.random.default_rng(0).normal(0, 1.5, (1000, 100)).astype(np.float32)
    expected = exact.softmax(scores.astype(np.float64))
    for function in (PUMA.softmax, NIMBUS.softmax, softmax_2quad):
        bound = stated_largest(function.__name__)
        assert 0.9 * bound < np.abs(function(scores) - expected).max() < bound
    shifted = (scores + 5.0) ** 2
    np.testing.assert_allclose(softmax_2quad(scores), shifted / shifted.sum(-1, keepdims=True), rtol=1e-4)


def test_2quad_leaves_out_what_is_masked():
    scores, kept = random(5, 8), np.arange(8) < 6
    masked = np.asarray(softmax_2quad.masked(scores, np.where(kept, 0, PADDING).astype(np.float32)[None]))
    np.testing.assert_allclose(masked[:, kept], softmax_2quad(scores[:, kept]), rtol=1e-5)
    assert not masked[:, ~kept].any()


def test_published_exp_has_its_stated_error():
    x = grid(-30, 0)
    y = np.asarray(exp_cipherdm(x))
    assert np.abs(y - np.exp(x)).max() == pytest.approx(stated_largest("exp_cipherdm"), abs=1e-4)
    assert y[-1] == pytest.approx(0.9515, abs=1e-4)
    inside = x > LOWEST
    assert np.mean(y[inside] < 0) == pytest.approx(0.68, abs=0.01)
    assert not y[~inside].any()


def test_true_chebyshev_coefficients_are_better():
    x = grid(-14, 0)[1:]
    interpolant = np.polynomial.chebyshev.chebinterpolate(lambda t: np.exp(7 * (t - 1)), 7)
    series = [scipy.special.ive(k, 7) * (1 if k == 0 else 2) for k in range(8)]
    np.testing.assert_allclose(
        interpolant, listed := [0.15374, 0.28458, 0.22617, 0.15533, 0.09299, 0.04891, 0.02257, 0.00838], atol=1e-5
    )
    ours = stated_largest("exp_corrected")
    for coefficients, bound in ((interpolant, 0.0073), (series, ours), (exp_corrected.coefficients, ours)):
        function = ChebyshevExp("exp", (-14, 0), tuple(coefficients))
        assert np.abs(function(x) - np.exp(x)).max() == pytest.approx(bound, abs=1e-4)
    assert all(f"{value:g}" in stated("exp_corrected") for value in listed)


def test_exp_is_the_chebyshev_series():
    x = grid(-14, 0)[1:]
    series = np.polynomial.chebyshev.chebval(2 * (x.astype(np.float64) + 14) / 14 - 1, exp_cipherdm.coefficients)
    np.testing.assert_allclose(exp_cipherdm(x), series, rtol=0, atol=2e-6)


def test_published_softmax_is_its_formula():
    scores = random(2, 3, 5, 6)
    series = np.polynomial.chebyshev.chebval(
        2 * (scores - scores.max(-1, keepdims=True) + 14) / 14 - 1, exp_cipherdm.coefficients
    )
    expected = series / series.sum(-1, keepdims=True)
    np.testing.assert_allclose(CIPHERDM.softmax(scores), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(CIPHERDM.softmax(np.full((2, 4), 3, np.float32)), np.full((2, 4), 0.25), atol=1e-6)


def test_published_softmax_has_no_bound():
    """One score at the maximum and 27 where the polynomial is most negative: the sum all but vanishes."""
    x = grid(-14, 0)[1:]
    lowest = x[np.argmin(exp_cipherdm(x))]
    row = np.concatenate([np.zeros(1), np.full(27, lowest)]).astype(np.float32)
    assert np.abs(CIPHERDM.softmax(row[None])).max() > 1.1
