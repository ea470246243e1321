"""What an audit shows is below the promise of a right step, and above it for each planted fault."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cipherdm.private import PrivateStep, audit_step, membership_roc, most_true_positives
from cipherdm.private import clipping as clipping_module
from cipherdm.private import step as step_module
from cipherdm.private.audit import epsilon_at_least

SEEDS = (0, 1, 2)


def noise_missing(patch):
    patch.setattr(step_module, "gaussian", lambda count, random: np.zeros(count))


def noise_of_the_mean(patch):
    """Noise for a mean over 8 examples, on their sum."""
    right = step_module.gaussian
    patch.setattr(step_module, "gaussian", lambda count, random: right(count, random) / 8)


def batch_clipped(patch):
    """The mean gradient of a microbatch is clipped, as trainings without privacy do."""

    def mean_norm(gradients):
        part = [each.weighted_sum(torch.ones(len(each.g)), parameter) for parameter, each in gradients]
        squares = sum(each.square().sum() for each in part) / len(gradients[0][1].g) ** 2
        return squares.expand(len(gradients[0][1].g))

    patch.setattr(clipping_module, "_squared_norms", mean_norm)


def layer_left_out(patch):
    right = clipping_module._squared_norms
    patch.setattr(clipping_module, "_squared_norms", lambda gradients: right(gradients[:1]))


def draws_clipped_apart(patch):
    """Each draw is clipped as if it were an example, and they are added up."""
    patch.setattr(step_module, "ClippedSums", lambda module, clip, draws: clipping_module.ClippedSums(module, clip))


@pytest.mark.parametrize("steps, draws", [(1, 1), (4, 1), (1, 8)])
def test_a_right_step_keeps_its_promise(steps, draws):
    for seed in SEEDS:
        found = audit_step(seed=seed, steps=steps, draws=draws, canaries=2000)
        assert found.stated == 1
        assert 0.05 < found.shown < 1, found  # 0 would say that the audit sees nothing


@pytest.mark.parametrize(
    "fault",
    [noise_missing, noise_of_the_mean, batch_clipped, layer_left_out, draws_clipped_apart],
    ids=lambda f: f.__name__,
)
def test_each_fault_is_found(fault, monkeypatch):
    fault(monkeypatch)
    for seed in SEEDS:
        found = audit_step(seed=seed, canaries=2000, draws=8 if fault is draws_clipped_apart else 1)
        assert found.shown > 1, found


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


def test_a_promise_that_holds_is_rarely_refuted():
    """Randomised response with epsilon 1, the best that its promise allows, over 400 audits."""
    random = np.random.default_rng(0)
    right = random.binomial(1000, 1 / (1 + np.exp(-1)), size=300)
    refuted = np.mean([epsilon_at_least(1000, 1000, int(each), 0.0, 0.05) > 1 for each in right])
    assert 0.02 < refuted < 0.08


def test_the_roc_is_that_of_two_normal_distributions():
    quantiles = norm.ppf((np.arange(2000) + 0.5) / 2000)
    false, true, area = membership_roc(quantiles + 1, quantiles)
    assert area == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=1e-3)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert membership_roc(np.zeros(3), np.zeros(5))[2] == 0.5
    # One Gaussian mechanism of epsilon 1 stays below its bound, and one of four times its distance does not.
    for shift, inside in ((1 / 3.731, True), (4 / 3.731, False)):
        false = np.linspace(0, 1, 201)
        true = norm.cdf(norm.ppf(false) + shift)
        assert (true <= most_true_positives(false, 1.0, 1e-5) + 1e-12).all() == inside
