"""What one party sees in `cipherdm.sharing` is uniform whatever the secret; what two see is the secret.

All from fixed seeds: these tests give the same p-values each time.
"""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from cipherdm.sharing import (
    Ring,
    ThreeParties,
    bit_decomposition,
    less_than_zero,
    polynomial,
    select,
    truncate,
    truncate_local,
)

COUNT = 4096
SECRETS = {"zeros": np.zeros(COUNT), "one number": np.full(COUNT, -1234.5), "ramp": np.linspace(-100, 100, COUNT)}
OPERATIONS = {
    "share": lambda parties, x: x,
    "multiply": lambda parties, x: parties.multiply(x, x),
    "matmul": lambda parties, x: parties.matmul(x.reshape(64, 64), x.reshape(64, 64)),
    "truncate": lambda parties, x: truncate(parties, x, 9),
    "truncate locally": lambda parties, x: truncate_local(parties, x, 9),
    "less than zero": less_than_zero,
    "bit decomposition": bit_decomposition,
    "select": lambda parties, x: select(parties, parties.random(Ring(1), x.shape), x, x + 1),
    "polynomial": lambda parties, x: polynomial(parties, [1.0, 2.0, 0.5], x),
}
# A truncation's helper is told nothing, and of the local one party 0 alone is told something.
SENT_NOTHING = {("truncate", 2), ("truncate locally", 1), ("truncate locally", 2)}

RING = Ring(64)
SIGNS = np.array([0, 1, -1]).astype(np.uint64)
# Bits of numbers go to party 1; all else in a comparison has other sizes than words.
NO_WORDS = {("less than zero", 0), ("less than zero", 2)}


def received(operation, secret, party, seed):
    """uint8: the bytes that a party is sent for an operation on a secret."""
    parties = ThreeParties(seed=seed)
    OPERATIONS[operation](parties, parties.share(secret))
    return np.frombuffer(b"".join(message.payload for message in parties.view(party).of(operation)), np.uint8)


def histogram(payload):
    return np.bincount(payload, minlength=256)


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_messages_to_one_party_are_uniform_and_the_same_for_all_secrets(operation, party):
    counts = [histogram(received(operation, secret, party, seed)) for seed, secret in enumerate(SECRETS.values())]
    if (operation, party) in SENT_NOTHING:
        assert not np.any(counts)
        return
    for count in counts:
        assert count.sum() >= COUNT
        assert stats.chisquare(count).pvalue > 1e-4
    for one, other in combinations(counts, 2):
        assert stats.chi2_contingency([one, other]).pvalue > 1e-4


def test_without_zero_shares_the_same_test_finds_messages_that_are_not_uniform():
    parties = ThreeParties(zero_shares=False)
    OPERATIONS["multiply"](parties, parties.share(SECRETS["zeros"]))
    payload = np.frombuffer(parties.view(0).of("multiply")[0].payload, np.uint8)
    assert stats.chisquare(histogram(payload)).pvalue < 1e-10


def words_sent(parties, party, operation):
    """The messages to a party that have 64 bits for each of COUNT numbers, as words."""
    for message in parties.view(party).of(operation):
        if message.word_bits == 64:
            yield from message.words.reshape(-1, COUNT)
        elif message.words.size % (64 * COUNT) == 0:
            yield from RING.from_bits(message.words.reshape(-1, COUNT, 64))


@pytest.mark.parametrize("party", range(3))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_messages_are_uniform_beside_what_the_party_holds_and_beside_each_other(operation, party):
    """A component that the party lacks would pass for uniform by itself, but not when its own two are added to it."""
    parties = ThreeParties(seed=party)
    x = parties.share(SECRETS["one number"])
    OPERATIONS[operation](parties, x)
    first, second = x.of(party)
    sent = list(words_sent(parties, party, operation)) if operation != "share" else []
    mixed = [first + second, first - second]
    mixed += [word + sign * first + other * second for word in sent for sign in SIGNS for other in SIGNS]
    mixed += [one + sign * other for one, other in combinations(sent, 2) for sign in SIGNS[1:]]
    assert len(mixed) >= 2 + 9 * ((operation, party) not in SENT_NOTHING | {("share", party)} | NO_WORDS)
    for words in mixed:
        assert stats.chisquare(histogram(np.frombuffer(words.tobytes(), np.uint8))).pvalue > 1e-5


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("secret", SECRETS)
def test_two_views_are_the_secret(secret, pair):
    """From messages alone: what the client sent to two parties has all three components."""
    parties = ThreeParties(seed=5)
    x = parties.share(SECRETS[secret])
    seen = {}
    for party in pair:
        (message,) = parties.view(party).of("share")
        seen |= {party: message.words[0], (party + 1) % 3: message.words[1]}
    assert sorted(seen) == [0, 1, 2]
    together = seen[0] + seen[1] + seen[2]
    np.testing.assert_allclose(x.encoding.decode(together), SECRETS[secret], atol=2.0**-19)


def solve_square(view, x):
    """What a party makes of a square if nothing masks it: it holds x_i and x_{i+1}, and is sent
    z = x_{i+1}^2 + 2 x_{i+1} x_{i+2}. Where x_{i+1} is odd it has an inverse, and x_{i+2} follows but for its top bit.

    Returns:
        The words of x modulo 2^63 and where x_{i+1} is odd.
    """
    (message,) = view.of("multiply")
    first, second = x.of(view.party)
    inverse = second.copy()
    for _ in range(6):  # Newton's iteration: each step doubles the number of right bits
        inverse = inverse * (np.uint64(2) - second * inverse)
    third = ((message.words - second * second) >> np.uint64(1)) * inverse
    return Ring(63).reduce(first + second + third), second % np.uint64(2) == 1


@pytest.mark.parametrize("party", range(3))
def test_zero_shares_are_needed(party):
    """Without them one party alone computes the secret from a square. With them, the same computation gives noise."""
    secret = np.linspace(-100, 100, COUNT)
    parties = ThreeParties(zero_shares=False)
    x = parties.share(secret)
    parties.multiply(x, x)
    solved, odd = solve_square(parties.view(party), x)
    assert odd.mean() == pytest.approx(0.5, abs=0.05)
    exact = Ring(63).reduce(x.encoding.encode(secret))
    assert np.array_equal(solved[odd], exact[odd])

    parties = ThreeParties()
    x = parties.share(secret)
    parties.multiply(x, x)
    solved, odd = solve_square(parties.view(party), x)
    assert not (solved[odd] == exact[odd]).any()
    low = np.frombuffer(solved[odd].tobytes(), np.uint8).reshape(-1, 8)[:, :7]
    assert stats.chisquare(histogram(low.ravel())).pvalue > 1e-4


def test_two_sharings_of_a_secret_have_nothing_in_common():
    one, other = (ThreeParties(seed=seed).share(np.full(COUNT, 7.0)) for seed in (1, 2))
    for party in range(3):
        first, second = (np.frombuffer(x.held[party].tobytes(), np.uint8) for x in (one, other))
        assert stats.binomtest(int((first == second).sum()), first.size, 1 / 256).pvalue > 1e-4
