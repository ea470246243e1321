"""What the server reads from messages: exactly, by averaging, and by learning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from splitting import examples

from cipherdm import CipherDMError
from cipherdm.split import Client, Defences, Head, attacks, encoded, mixed
from cipherdm_experiments.training.control import attacks as learned

DEFENDED = Defences(activation=True, timesteps_from=618, hide_prompts=True)


def latents(pipeline, seed: int, count: int):
    """A batch, and the latents that an attack looks for: (batch, of the pictures, of the hints)."""
    batch = examples(seed).batch(count, np.random.default_rng(seed))
    return batch, encoded(pipeline.vae, batch[0]).double(), encoded(pipeline.vae, 2 * batch[1] - 1).double()


@pytest.mark.attack
@pytest.mark.parametrize("structure", ["published", "lean"])
@pytest.mark.parametrize("defences", [Defences(), DEFENDED, Defences(activation=False)], ids=str)
def test_the_algebraic_attack_is_exact_whatever_the_defences(pipeline, defences, structure):
    batch, pictures, hints = latents(pipeline, 1, 6)
    client = Client(pipeline, defences, structure)
    features = client.features(*batch, np.random.default_rng(0))
    found = attacks.algebraic(features, client)
    kept = pipeline.scheduler.alphas_cumprod[features.timesteps].min().sqrt()
    # float32 of the message is all that the picture loses, enlarged by one over its share of the noisy latents.
    assert (found[0] - pictures).abs().max() < 2e-5 / kept
    # float16 of h is all that the hint loses: 2^-11 of a number below 8, where phi has at least a third of its slope.
    assert (found[1] - hints).square().mean().sqrt() < 2e-3


def test_it_refuses_messages_without_noise(pipeline):
    batch, *_ = latents(pipeline, 1, 2)
    client = Client(pipeline)
    features = client.features(*batch, np.random.default_rng(0))
    with pytest.raises(CipherDMError, match="no noise.*averaging"):
        attacks.algebraic(replace(features, noise=None), client)


@pytest.mark.attack
def test_averaging_finds_the_hint_with_the_root_of_the_visits(pipeline):
    (pictures, hints, captions), of_pictures, of_hints = latents(pipeline, 1, 1)
    visits = 1024
    batch = (pictures.expand(visits, -1, -1, -1), hints.expand(visits, -1, -1, -1), captions * visits)
    features = Client(pipeline, DEFENDED).features(*batch, np.random.default_rng(0))
    kept = pipeline.scheduler.alphas_cumprod[618:].sqrt().mean()
    errors = []
    for used in (4, 64, 1024):
        parts = features.h.reshape(-1, used, *features.h.shape[1:])
        found = torch.stack([attacks.averaging(part) for part in parts])
        errors.append((found - of_hints - kept * of_pictures).square().mean().sqrt())
    assert 2.5 < errors[0] / errors[1] < 5 and 2.5 < errors[1] / errors[2] < 5.5  # 4 is the root of 16 times the visits


@pytest.mark.attack
def test_an_inverse_network_learns_where_nothing_defends(pipeline):
    bare, defended = (Client(pipeline, each) for each in (Defences(activation=False), DEFENDED))
    (pictures, hints, captions), of_pictures, of_hints = latents(pipeline, 2, 64)
    mean = encoded(pipeline.vae, 2 * examples(1).batch(64, np.random.default_rng(0))[1] - 1).mean(0).double()
    errors = {}
    for name, attacked in (("bare", bare), ("defended", defended)):
        network = learned.train_inverse(attacked, examples(1, 100), steps=50, batch=16)
        features = attacked.features(pictures, hints, captions, np.random.default_rng(3))
        found = network(features.h, features.timesteps)[:, 4:].double()
        errors[name] = (found - of_hints).square().mean() / (mean - of_hints).square().mean()
    assert errors["bare"] < 1 and errors["defended"] < 1  # better than the public mean, also for what it has not seen
    assert next(network.parameters()).requires_grad is False


@pytest.mark.attack
def test_unsplit_finds_a_hint_behind_known_and_unknown_layers(pipeline):
    torch.manual_seed(0)
    secret, guess = Head(pipeline).requires_grad_(False), Head(pipeline)
    for head in (secret, guess):
        torch.nn.init.normal_(head.controlnet_cond_embedding.conv_out.weight, std=0.3)
    hints = torch.rand(2, 1, 16, 16).round()  # grey: 256 numbers of each hint against 512 that are sent
    noisy, start = torch.randn(2, 4, 8, 8), torch.full_like(hints, 0.5)

    def of(head):
        return lambda guess: head(noisy, guess.expand(-1, 3, -1, -1))

    weights = list(guess.controlnet_cond_embedding.parameters())
    known = learned.unsplit(of(secret)(hints), of(secret), start, smoothness=1e-7)
    unknown = learned.unsplit(of(secret)(hints), of(guess), start, weights=weights, rounds=5)
    off = [(each - hints).square().mean() / (start - hints).square().mean() for each in (known, unknown)]
    assert off[0] < 0.1 < off[1]
    assert unknown.min() >= 0 and unknown.max() <= 1


def test_mixing_is_what_the_attacks_undo():
    first, second = torch.linspace(-3, 3, 5), torch.linspace(2, -1, 5)
    assert torch.equal(mixed(first, second, activation=False), (first + second).half())
