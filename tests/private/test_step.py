"""A step adds the stated noise to a Poisson sample's clipped sum, divides by a constant, and tells nothing else."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from cipherdm import CipherDMError, PrivacyBudget
from cipherdm.private import PrivateStep
from cipherdm.private import step as step_module
from cipherdm.private.chance import gaussian, poisson_sample, source, uniform

HALF = PrivacyBudget.of(epsilon=4, delta=1e-5, sample_rate=0.5, steps=4)
WHOLE = PrivacyBudget.of(epsilon=4, delta=1e-5, sample_rate=1.0, steps=4)


def made(budget=WHOLE, *, width=6, clip=0.5, rate=1.0, **settings):
    """A step of plain descent on a linear layer without bias, whose weights begin at 0."""
    module = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(module.weight)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    return module, PrivateStep(module, optimizer, budget, **{"clip": clip, "public_size": 10} | settings)


def linear(module, inputs):
    """Losses whose gradients are the inputs."""
    return lambda rows: module(inputs[rows])[:, 0]


@pytest.fixture
def silent(monkeypatch):
    """No noise."""
    monkeypatch.setattr(step_module, "gaussian", lambda count, random: np.zeros(count))


def test_noise_has_the_stated_size_and_is_new_in_each_step_and_tensor():
    """Without examples a step is noise alone: of standard deviation sigma C / divisor, within 4 standard errors."""
    module = nn.Sequential(nn.Linear(200, 100), nn.Linear(200, 100))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    step = PrivateStep(module, optimizer, WHOLE, clip=0.5, public_size=10)
    noises = []
    for _ in range(3):
        before = [each.detach().clone() for each in step.sums.parameters]
        step.take(0, None)  # the losses of no example are not asked for
        noises += [(old - new.detach()).flatten() for old, new in zip(before, step.sums.parameters, strict=True)]
    expected = WHOLE.noise_multiplier * 0.5 / 10
    weights = torch.stack([each for each in noises if each.numel() == 20_000]).double()
    assert len(weights) == 6
    count = weights.numel()
    assert abs(weights.mean()) < 4 * expected / math.sqrt(count)
    assert abs(weights.std() / expected - 1) < 4 / math.sqrt(2 * count)
    assert stats.kstest(weights.flatten().numpy() / expected, "norm").pvalue > 1e-4
    correlations = torch.corrcoef(weights)[torch.triu_indices(6, 6, 1).unbind()]
    assert correlations.abs().max() < 4.5 / math.sqrt(20_000)


def test_without_noise_a_step_is_clipped_descent(silent):
    torch.manual_seed(0)
    inputs = torch.randn(7, 6) * torch.tensor([0.1, 0.1, 0.1, 1, 1, 1, 1])[:, None]
    module, step = made(rate=0.3, microbatch=3)
    wanted = torch.zeros(6)
    for _ in range(3):
        step.take(7, linear(module, inputs))
        wanted -= 0.3 * sum(each * min(1, 0.5 / float(each.norm())) for each in inputs) / 10
    torch.testing.assert_close(module.weight.detach()[0], wanted, rtol=1e-5, atol=1e-7)
    assert module.weight.grad is None


def test_the_divisor_does_not_change_when_an_example_is_added(silent):
    """Opacus' issue 819: with N = 2 and N = 3 the first two examples move the weights equally."""
    moved = []
    for count in (2, 3):
        module, step = made(clip=2.0)
        step.take(count, linear(module, torch.eye(6)))
        moved.append(module.weight.detach()[0])
    torch.testing.assert_close(moved[0], -torch.tensor([0.1, 0.1, 0, 0, 0, 0]))
    torch.testing.assert_close(moved[1], -torch.tensor([0.1, 0.1, 0.1, 0, 0, 0]))


def test_poisson_samples_are_independent_choices():
    """Frequencies, sizes and pairs within 4.5 standard errors; a shuffled or fixed-size batch fails the sizes or the pairs."""
    size, rate, steps = 40, 0.3, 20_000
    random = source(1)
    taken = np.zeros((steps, size))
    for row in taken:
        row[poisson_sample(size, rate, random)] = 1
    assert np.abs(taken.mean(0) - rate).max() < 4.5 * math.sqrt(rate * (1 - rate) / steps)
    correlations = np.corrcoef(taken.T)[np.triu_indices(size, 1)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(steps)
    after = np.corrcoef(taken[:-1].T, taken[1:].T)[:size, size:]  # an epoch would not take an example twice
    assert np.abs(after).max() < 4.5 / math.sqrt(steps)
    sizes = np.bincount(taken.sum(1).astype(int), minlength=size + 1)
    expected = stats.binom.pmf(np.arange(size + 1), size, rate) * steps
    common = expected > 10
    found, wanted = sizes[common], expected[common]
    assert stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 1e-4


def test_a_step_takes_the_sample_in_microbatches_and_an_empty_one_too(monkeypatch):
    sizes = []
    module, step = made(HALF, microbatch=4)

    def losses(rows):
        sizes.append(len(rows))
        return module(torch.eye(6)[rows % 6])[:, 0]

    monkeypatch.setattr(step_module, "poisson_sample", lambda *_: np.arange(10))
    step.take(10, losses)
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(step_module, "poisson_sample", lambda *_: np.arange(0))
    before = module.weight.detach().clone()
    step.take(10, losses)
    assert sizes == [4, 4, 2] and step.taken == 2 and bool((module.weight != before).all())


def test_draws_are_averaged_before_they_are_clipped(silent):
    inputs = torch.tensor([[4.0, 0], [0, 4.0], [0.2, 0], [0.0, 0.0]])  # two examples of two draws each
    module, step = made(width=2, clip=1.0, draws=2)
    step.take(2, lambda rows: module(inputs.unflatten(0, (2, 2))[rows].flatten(0, 1))[:, 0])
    torch.testing.assert_close(module.weight.detach()[0], -torch.tensor([0.5**0.5 + 0.1, 0.5**0.5]) / 10)


def test_runs_differ_and_those_with_a_seed_are_equal_and_not_private():
    def trained(seed):
        module, step = made(HALF, noise_seed=seed)
        for _ in range(2):
            step.take(6, linear(module, torch.eye(6)))
        return module.weight.detach(), step

    (one, private), (other, _) = trained(None), trained(None)
    assert private.private and not (one == other).any()
    (one, step), (other, _) = trained(3), trained(3)
    assert torch.equal(one, other) and not step.private
    assert not torch.equal(one, trained(4)[0])


def test_a_global_seed_does_not_reach_the_noise():
    moved = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        module, step = made()
        step.take(0, None)
        moved.append(module.weight.detach())
    assert not (moved[0] == moved[1]).any()


def test_a_checkpoint_goes_on_with_the_steps_and_has_no_seed(tmp_path):
    module, step = made(HALF, noise_seed=71_823)
    step.take(6, linear(module, torch.eye(6)))
    torch.save(step.state_dict(), tmp_path / "step.pt")
    assert b"71823" not in (tmp_path / "step.pt").read_bytes()
    state = torch.load(tmp_path / "step.pt", weights_only=True)
    assert "seed" not in str(state) and state["taken"] == 1
    _, resumed = made(HALF)
    resumed.load_state_dict(state)
    assert not resumed.private  # for good
    _, seeded = made(HALF, noise_seed=1)
    seeded.load_state_dict(made(HALF)[1].state_dict())
    assert not seeded.private
    for _ in range(HALF.steps - 1):
        resumed.take(0, None)
    with pytest.raises(CipherDMError, match="used up: 4 of 4"):
        resumed.take(0, None)
    for other in (made(WHOLE)[1], made(HALF, clip=1.0)[1], made(HALF, public_size=11)[1], made(HALF, draws=2)[1]):
        with pytest.raises(CipherDMError, match="The checkpoint has"):
            other.load_state_dict(state)


def test_nothing_about_the_data_is_left_after_a_step():
    module, step = made()
    inputs = 7.0 * torch.eye(6)
    assert step.take(6, linear(module, inputs)) is None
    assert not any(total.any() for total in step.sums.sums.values())
    assert module.weight.grad is None


def test_an_interrupted_step_leaves_no_sum():
    module, step = made(microbatch=2)

    def losses(rows):
        if 2 in rows:
            raise KeyboardInterrupt
        return module(torch.eye(6)[rows])[:, 0]

    with pytest.raises(KeyboardInterrupt):
        step.take(6, losses)
    assert not any(total.any() for total in step.sums.sums.values())
    assert module.weight.grad is None and not module.weight.any() and step.taken == 0


def test_weights_that_are_not_finite_are_told_because_anybody_sees_them():
    _, step = made(rate=math.inf)
    with pytest.raises(CipherDMError, match="not finite after step 1"):
        step.take(0, None)


def test_the_optimizer_has_the_trainable_parameters_and_no_others():
    module, other = nn.Linear(2, 1), nn.Linear(2, 1)
    for parameters in ([module.weight], [*module.parameters(), *other.parameters()]):
        with pytest.raises(CipherDMError, match="optimizer must have"):
            PrivateStep(module, torch.optim.SGD(parameters, lr=1.0), WHOLE, clip=1.0, public_size=1)


@pytest.mark.parametrize("setting", ["public_size", "microbatch", "draws"])
def test_numbers_below_1_are_refused(setting):
    with pytest.raises(CipherDMError, match=f"{setting} must be"):
        made(**{setting: 0})


def test_normal_numbers_of_one_call_are_independent():
    """Box and Muller make two of each pair: neither they nor their sizes are correlated."""
    numbers = gaussian(200_000, source(2))
    halves = np.abs(np.fft.rfft(numbers)) ** 2 / len(numbers)  # flat, if no distance between two numbers is special
    assert stats.kstest(halves[1:-1], "expon").pvalue > 1e-4
    for one, other in ((numbers[:100_000], numbers[100_000:]), (numbers[1:], numbers[:-1])):
        for power in (1, 2):
            assert abs(np.corrcoef(one**power, other**power)[0, 1]) < 4.5 / math.sqrt(len(one))


def test_numbers_fill_the_open_interval():
    ends = iter((b"\0" * 8, b"\xff" * 8))
    assert uniform(1, lambda _: next(ends))[0] > 0 and 0.99 < uniform(1, lambda _: next(ends))[0] <= 1
    assert len(gaussian(5, source())) == 5
