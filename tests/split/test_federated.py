"""Federated averaging: one client is training in one place, and two average."""

from dataclasses import replace

import numpy as np
import torch
from splitting import examples

from cipherdm.private.chance import gaussian, source, uniform
from cipherdm.split import Client, Defences, Optimisation, Trainer
from cipherdm_experiments.training.control.federated import federate, federate_privately
from cipherdm_experiments.training.private_run import PrivateStage
from cipherdm_experiments.training.sd_mini.recipe import Optimisation as Plan

PLAN = Optimisation(4, 1e-3, 1)


def alone(pipeline, seed: int, steps: int) -> dict[str, torch.Tensor]:
    client, pictures = Client(pipeline, Defences(hide_prompts=False)), examples(seed)
    trainer = Trainer(client, PLAN)
    for step in range(steps):
        generator = np.random.default_rng((seed, step))
        trainer.take_step(client.features(*pictures.batch(2, generator), generator))
    return dict(trainer.controlnet.state_dict())


def test_rounds_of_one_client_are_training_in_one_place(pipeline):
    client = Client(pipeline, Defences(hide_prompts=False))
    made, rounds = federate([(client, examples(0))], PLAN, rounds=2, batch=2)
    wanted = alone(pipeline, 0, 4)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    size = sum(each.numel() * 4 for each in made.parameters())
    assert [(each.up, each.down) for each in rounds] == [(size, size)] * 2


def test_a_round_of_two_clients_is_the_mean_of_both(pipeline):
    client = Client(pipeline, Defences(hide_prompts=False))
    made, (only,) = federate([(client, examples(seed)) for seed in range(2)], PLAN, rounds=1, batch=2)
    first, second = (alone(pipeline, seed, 4) for seed in range(2))
    for name, tensor in made.state_dict().items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)
    assert only.up == 2 * sum(each.numel() * 4 for each in made.parameters())


def test_private_rounds_clip_every_picture_and_state_what_they_keep(pipeline):
    """One step with all pictures. Adam's first is the learning rate times the sign of the noisy sum of clipped gradients."""
    client, pictures = Client(pipeline, Defences(hide_prompts=False)), examples(0)
    plan = Plan(steps=1, batch=20, learning_rate=1e-3, warmup=0, cooldown=1, weight_decay=0.0, ema_decay=0.0)
    stage = PrivateStage(8.0, plan, sample_rate=1.0, clip=0.5, draws=1, part="all", microbatch=20)
    made, told = federate_privately([(client, pictures)], stage, rounds=1, noise_seed=3)

    trainer, generator = Trainer(client, PLAN), np.random.default_rng(3)
    features = client.features(*pictures.rows(np.arange(20)), generator)
    before = {name: each.detach().clone() for name, each in trainer.controlnet.named_parameters()}
    sums = {name: torch.zeros_like(each) for name, each in before.items()}
    for error in trainer.errors(features):
        names, parameters = zip(*trainer.controlnet.named_parameters(), strict=True)
        found = torch.autograd.grad(error, parameters, retain_graph=True, allow_unused=True)
        gradients = {name: each for name, each in zip(names, found, strict=True) if each is not None}
        norm = torch.cat([each.flatten() for each in gradients.values()]).norm()
        for name, each in gradients.items():
            sums[name] += each * min(1.0, 0.5 / norm.item())
    random = source(3)
    uniform(20, random)  # that of the sample, which takes all
    for name, parameter in made.named_parameters():
        noise = torch.from_numpy(gaussian(parameter.numel(), random)).reshape(parameter.shape)
        noisy = sums[name].double() + 0.5 * stage.budget.noise_multiplier * noise
        sure = noisy.abs() > 1e-3
        moved = (parameter - before[name])[sure]
        torch.testing.assert_close(moved, -1e-3 * noisy.sign()[sure].float(), rtol=0.01, atol=1e-6)
    assert not told.private and replace(told, private=True).text.startswith(
        "(8, 1e-05)-differentially private with respect to adding or removing one picture of the clients' pictures. "
        "Only the ControlNet (100.0% of the network's parameters)"
    )


def test_private_rounds_end_with_one_network_for_all(pipeline):
    clients = [(Client(pipeline), examples(seed)) for seed in range(2)]
    plan = Plan(steps=4, batch=5, learning_rate=1e-3, warmup=0, cooldown=1)
    stage = PrivateStage(8.0, plan, sample_rate=0.25, draws=1, part="all")
    one, told = federate_privately(clients, stage, rounds=2)
    other, _ = federate_privately(clients, stage, rounds=2)
    assert told.private and told.budget == stage.budget and "; the client whose picture it is; prompts" in told.text
    assert any(not torch.equal(each, twin) for each, twin in zip(one.parameters(), other.parameters(), strict=True))
