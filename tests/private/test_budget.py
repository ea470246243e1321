"""Epsilon is that of the analytic Gaussian mechanism where there is one, and that of opacus' accountant elsewhere."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from cipherdm import CipherDMError, PrivacyBudget
from cipherdm.private.budget import FINE, epsilon_of

ROWS = [(1.0, 0.05, 100, 1e-5), (0.6, 0.034, 60, 1e-5), (2.4, 0.1, 300, 1e-6)]


def analytic(noise, steps, delta):
    """Epsilon without sampling (Balle and Wang, ICML 2018, theorem 8)."""
    distance = math.sqrt(steps) / noise

    def too_much(epsilon):
        first = norm.cdf(distance / 2 - epsilon / distance)
        return first - math.exp(epsilon) * norm.cdf(-distance / 2 - epsilon / distance) - delta

    return brentq(too_much, 0, 50)


def test_without_sampling_it_is_the_analytic_gaussian():
    assert analytic(5, 20, 1e-5) == pytest.approx(3.8486103, abs=1e-7)
    budget = PrivacyBudget(4, 1e-5, 1.0, 20, 5.0)
    assert 0 <= budget.spent(grid=FINE) - analytic(5, 20, 1e-5) < 1e-6
    for steps in (1, 7, 20):
        assert 0 <= budget.spent(steps) - analytic(5, steps, 1e-5) < 1e-3


@pytest.mark.parametrize("noise, rate, steps, delta", ROWS)
def test_it_is_within_a_percent_of_opacus(noise, rate, steps, delta):
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    assert epsilon_of(noise, rate, steps, delta, 1e-3) == pytest.approx(
        accountant.get_epsilon(delta, eps_error=0.005), rel=0.01
    )


@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(st.floats(0.8, 5), st.floats(0.01, 0.3), st.integers(10, 200), st.sampled_from([1e-7, 1e-5, 1e-3]))
def test_it_rises_with_rate_and_steps_and_falls_with_noise_and_delta(noise, rate, steps, delta):
    epsilon = epsilon_of(noise, rate, steps, delta, 1e-3)
    assert epsilon > epsilon_of(noise * 1.2, rate, steps, delta, 1e-3)
    assert epsilon > epsilon_of(noise, rate, steps, delta * 10, 1e-3)
    assert epsilon < epsilon_of(noise, rate * 1.2, steps, delta, 1e-3)
    assert epsilon < epsilon_of(noise, rate, steps * 2, delta, 1e-3)


@pytest.mark.parametrize("epsilon, rate, steps", [(1, 1 / 30, 100), (10, 1 / 30, 60), (1, 1.0, 1)])
def test_the_noise_that_is_found_is_the_least(epsilon, rate, steps):
    budget = PrivacyBudget.of(epsilon=epsilon, delta=1e-5, sample_rate=rate, steps=steps)
    assert epsilon * 0.998 < budget.spent(grid=FINE) <= budget.spent() <= epsilon
    assert epsilon_of(budget.noise_multiplier * 0.9998, rate, steps, 1e-5, 1e-3) > epsilon
    assert budget.spent(0) == 0 and budget.spent(steps) == budget.spent()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilon": math.nan}, "epsilon must be above 0"),
        ({"epsilon": "1"}, "epsilon must be above 0"),
        ({"delta": 0}, "delta must be in"),
        ({"delta": 1.0}, "delta must be in"),
        ({"sample_rate": 0}, "sample_rate must be in"),
        ({"sample_rate": 1.001}, "sample_rate must be in"),
        ({"steps": 0}, "steps must be between 1 and 1000000"),
        ({"steps": 1.5}, "steps must be between"),
        ({"epsilon": 0.01, "sample_rate": 1.0, "steps": 10_000}, "lower sample_rate or steps"),
        ({"epsilon": 90, "sample_rate": 0.01}, "lower epsilon or take more steps"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(changed, message):
    with pytest.raises(CipherDMError, match=message):
        PrivacyBudget.of(**{"epsilon": 1, "delta": 1e-5, "sample_rate": 0.1, "steps": 10} | changed)


def test_a_budget_that_its_noise_does_not_keep_cannot_be_made():
    with pytest.raises(CipherDMError, match=r"gives an epsilon of 3\.848.*not 3.8: take PrivacyBudget.of"):
        PrivacyBudget(3.8, 1e-5, 1.0, 20, 5.0)
    with pytest.raises(CipherDMError, match="noise_multiplier must be in"):
        PrivacyBudget(3.8, 1e-5, 1.0, 20, 0.0)
    with pytest.raises(CipherDMError, match="gives an epsilon of inf"):  # and does not fill the memory
        PrivacyBudget(3.8, 1e-5, 1.0, 10**6, 1.0)
    with pytest.raises(CipherDMError, match="steps must be between 0 and 20"):
        PrivacyBudget(4, 1e-5, 1.0, 20, 5.0).spent(21)
