"""Federated averaging: one client is training in one place, and two average."""

import numpy as np
import torch
from splitting import examples

from cipherdm.split import Client, Defences, Optimisation, Trainer
from cipherdm_experiments.training.control.federated import federate

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
