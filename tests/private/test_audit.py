"""What an audit shows is below the promise of a right step, and above it for each planted fault."""

import numpy as np
import pytest
from scipy.stats import binom

from cipherdm.private import PrivateStep, audit_step
from cipherdm.private.audit import epsilon_at_least
from cipherdm_experiments.private_audit import SEEDS, STEPS, audited, most


@pytest.mark.parametrize("steps, draws", [(1, 1), (4, 1), (1, 8)])
def test_a_right_step_keeps_its_promise(steps, draws):
    for seed in SEEDS:
        assert 0.05 < audit_step(seed=seed, steps=steps, draws=draws) < 1  # 0 would say that the audit sees nothing


@pytest.mark.parametrize("fault", list(STEPS)[1:])
def test_each_fault_is_found(fault):
    for seed in SEEDS:
        assert audited(STEPS[fault], seed) > 1


def test_a_step_may_be_given():
    made = []

    def make(*arguments, **settings):
        made.append(PrivateStep(*arguments, **settings))
        return made[0]

    audit_step(make, canaries=100, steps=2)
    assert made[0].taken == 2 and not made[0].private


def test_the_bound_is_that_of_exact_tails():
    """All of 10 guesses right: (1 / (1 + e^-eps))^10 = 0.05 at the bound, without delta."""
    rate = 0.05**0.1
    assert epsilon_at_least(100, 10, 10, 0.0, 0.05) == pytest.approx(np.log(rate / (1 - rate)), abs=1e-6)
    assert epsilon_at_least(100, 10, 10, 1e-3, 0.05) < epsilon_at_least(100, 10, 10, 0.0, 0.05)
    assert epsilon_at_least(100, 10, 5, 0.0, 0.05) == 0


@pytest.mark.parametrize("guesses, right, delta", [(100, 90, 1e-5), (40, 40, 1e-4), (400, 300, 1e-6)])
def test_the_bound_is_where_the_papers_probability_is_the_chance(guesses, right, delta):
    """Theorem 5.2 term by term."""

    def probability(epsilon):
        masses = binom.pmf(np.arange(guesses + 1), guesses, np.exp(epsilon) / (1 + np.exp(epsilon)))
        most = max(masses[right - lost : right].sum() / lost for lost in range(1, right + 1))
        return masses[right:].sum() + 2 * 1000 * delta * most

    found = epsilon_at_least(1000, guesses, right, delta, 0.05)
    assert found > 0.1
    assert probability(found) == pytest.approx(0.05, rel=1e-6)


def test_a_promise_that_holds_is_rarely_refuted():
    """Randomised response with epsilon 1, the best that its promise allows, over 400 audits."""
    random = np.random.default_rng(0)
    right = random.binomial(1000, 1 / (1 + np.exp(-1)), size=300)
    refuted = np.mean([epsilon_at_least(1000, 1000, int(each), 0.0, 0.05) > 1 for each in right])
    assert 0.02 < refuted < 0.08


def test_no_test_of_a_promise_does_better_than_its_curve():
    """Randomised response with epsilon 1 and delta 0.01 lies on the curve; the curve joins (0, delta) and (1 - delta, 1)."""
    delta, keep = 0.01, 1 / (1 + np.exp(-1))
    corner = np.array((1 - delta) * (1 - keep))
    assert most(1, delta, corner) == pytest.approx(delta + (1 - delta) * keep, abs=1e-12)
    np.testing.assert_allclose(most(1, delta, np.array([0, 1 - delta, 1])), [delta, 1, 1], atol=1e-12)
