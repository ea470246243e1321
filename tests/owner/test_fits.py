"""Fits against the functions that they stand for, and against NumPy's own least squares."""

import jax
import numpy as np
import pytest

from cipherdm.approximations.exact import mish, silu
from cipherdm.owner.fits import (
    fit_even,
    fit_exponential,
    fit_inverse_root,
    fit_reciprocal,
    fit_with_cubic,
    widened_ends,
)

POINTS = 128  # of the grid over the range, which together weighs a tenth of the samples


@pytest.fixture(scope="module")
def samples():
    """What three channels carry: wide about zero, narrow on one side, and wide on the other."""
    means, deviations = [[0], [0.5], [-1]], [[1.2], [0.7], [1]]
    return np.random.default_rng(0).normal(means, deviations, (3, 2000))


def ends_of(samples):
    """Ends 0.3 beyond the samples of each row."""
    return np.stack([samples.min(1) - 0.3, samples.max(1) + 0.3], axis=1)


def weighted(samples):
    """Points and square roots of weights of the fit to one channel."""
    grid = np.linspace(samples.min() - 0.3, samples.max() + 0.3, POINTS)
    weights = np.append(np.full(len(samples), 1 / len(samples)), np.full(POINTS, 0.1 / POINTS))
    return np.append(samples, grid), np.sqrt(weights)


@pytest.mark.parametrize(("function", "exact"), [(silu, jax.nn.silu), (mish, jax.nn.mish)], ids=["silu", "mish"])
def test_activations_are_jaxs(function, exact):
    x = np.linspace(-30, 30, 1001, dtype=np.float32)
    np.testing.assert_allclose(function(x), exact(x), atol=2e-6)


def test_even_fits_are_near_silu(samples):
    fits = fit_even(samples, ends_of(samples))
    assert fits.shape == (3, 5) and (fits[:, 4] < 0).all()
    for fit, row in zip(fits, samples, strict=True):
        errors = row / 2 + np.polyval(fit[::-1], row**2) - silu(row)
        assert np.sqrt(np.mean(errors**2)) < 0.004 and np.abs(errors).max() < 0.03


def test_fits_with_a_cubic_are_near_mish(samples):
    fits = fit_with_cubic(mish, samples, ends_of(samples))
    assert fits.shape == (3, 7) and (fits[:, 6] < 0).all()
    for (c1, c3, *even), row in zip(fits, samples, strict=True):
        errors = c1 * row + c3 * row**3 + np.polyval(even[::-1], row**2) - mish(row)
        assert np.sqrt(np.mean(errors**2)) < 0.02 and np.abs(errors).max() < 0.15


def test_a_fit_with_a_cubic_stays_small_on_values_of_one_sign():
    row = np.random.default_rng(1).uniform(2, 6, 2000)
    ((c1, c3, *even),) = fit_with_cubic(mish, row[None], ends_of(row[None]))
    errors = c1 * row + c3 * row**3 + np.polyval(even[::-1], row**2) - mish(row)
    assert np.sqrt(np.mean(errors**2)) < 0.02
    assert np.abs([c1, *even[:2]]).max() < 2


def test_a_fit_with_a_cubic_finds_the_polynomial_that_it_is_given(samples):
    coefficients = np.array([0.4, -0.02, 0.1, 0.3, -0.01, 0.002, -0.0005])
    function = np.polynomial.Polynomial([0.1, 0.4, 0.3, -0.02, -0.01, 0, 0.002, 0, -0.0005])
    for fit in fit_with_cubic(function, samples, ends_of(samples)):
        np.testing.assert_allclose(fit, coefficients, rtol=1e-6, atol=1e-10)


def test_an_even_fit_is_numpys_weighted_least_squares(samples):
    points, weights = weighted(samples[0])
    expected = np.polyfit(points**2, silu(points) - points / 2, 4, w=weights)
    reach = np.abs(points).max()
    assert expected[0] * reach**8 < -0.02  # not the case of the smallest leading coefficient
    np.testing.assert_allclose(fit_even(samples[:1], ends_of(samples[:1]))[0][::-1], expected, rtol=1e-5)


def test_the_ends_of_a_fit_leave_room_for_new_values(samples):
    low, high = widened_ends(samples).T
    room = 0.3 + 0.15 * np.ptp(samples, axis=1)
    np.testing.assert_allclose([samples.min(1) - low, high - samples.max(1)], [room, room])


def test_an_even_fit_has_a_leading_coefficient_that_can_be_scaled_to_one():
    row = np.random.default_rng(2).uniform(-0.2, 0.2, 500)
    (fit,) = fit_even(row[None], ends_of(row[None]))
    reach = np.abs(ends_of(row[None])).max()
    assert fit[4] * reach**8 == pytest.approx(-0.02, rel=0.02)
    assert np.abs(row / 2 + np.polyval(fit[::-1], row**2) - silu(row)).max() < 1e-4


def test_the_line_for_an_inverse_root():
    x = np.random.default_rng(3).uniform(0.9, 1.1, 500)
    p, q = fit_inverse_root(x, x)
    assert np.abs((p - q * x) * np.sqrt(x) - 1).max() < 0.005
    # In other units it is the same line.
    np.testing.assert_allclose(fit_inverse_root(100 * x, 100 * x), [p / 10, q / 1000], rtol=1e-6)


def test_the_line_for_an_inverse_root_knows_a_constant_difference_of_square_and_variance():
    squares = np.random.default_rng(4).uniform(0.9, 1.1, 500)
    p, q = fit_inverse_root(squares, squares - 0.1)
    errors = (p - q * squares) * np.sqrt(squares - 0.1) - 1
    p, q = fit_inverse_root(squares, squares)
    assert np.sqrt(np.mean(errors**2)) < 0.25 * abs(np.mean((p - q * squares) * np.sqrt(squares - 0.1) - 1))


def test_squarings_make_the_exponential_exact():
    scores = np.random.default_rng(5).normal(0, 1, (100, 64))
    scores -= scores.mean(1, keepdims=True)
    errors = []
    for squarings in range(5):
        fit, error = fit_exponential(scores, squarings)
        powers = np.polyval(fit, scores) ** 2**squarings
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        assert error == pytest.approx(np.sqrt((shares * (powers / np.exp(scores) - 1) ** 2).sum() / shares.sum()))
        assert fit[0] > 0
        errors.append(error)
    assert all(later < 0.5 * earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[0] < 0.5 and errors[-1] < 0.005


def test_the_exponential_of_small_scores_needs_no_squaring():
    scores = np.random.default_rng(6).normal(0, 0.2, (100, 64))
    fit, error = fit_exponential(scores, 0)
    assert error < 0.005
    np.testing.assert_allclose(np.polyval(fit, scores), np.exp(scores), rtol=0.06)


def test_the_quadratic_for_a_reciprocal_has_the_error_it_states():
    sums = np.random.default_rng(7).uniform(0.8, 1.3, 200)
    (factor, r0, r1), error = fit_reciprocal(sums)
    x = factor * np.linspace(sums.min() / 1.1, sums.max() * 1.1, 100_001)

    def largest(r0, r1):
        return np.abs(((x + r0) ** 2 + r1) * x - 1).max()

    assert error == pytest.approx(largest(r0, r1), abs=1e-8)
    for worse in ((1.001 * r0, r1), (0.999 * r0, r1), (r0, 1.003 * r1), (r0, 0.997 * r1)):
        assert largest(*worse) > error
