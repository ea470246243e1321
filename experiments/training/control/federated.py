"""Federated averaging of a ControlNet, the baseline in which each client has the whole network and keeps its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cipherdm.split import Client, Examples, Optimisation, SplitControlNetModel, Trainer


@dataclass(frozen=True)
class Round:
    """Bytes of weights that went up from all clients and down to them in a round, and the mean loss of its steps."""

    up: int
    down: int
    loss: float


def federate(
    clients: Sequence[tuple[Client, Examples]],
    optimisation: Optimisation,
    *,
    rounds: int,
    batch: int = 16,
    seed: int = 0,
) -> tuple[SplitControlNetModel, list[Round]]:
    """Train a ControlNet by McMahan et al.'s FedAvg (AISTATS 2017); return it, and what each round took.

    In each round every client begins with the common weights and takes its share of `optimisation.steps` steps on `batch` of
    its own pictures. The mean of the clients' weights is the next common one. AdamW's moments stay at the clients. All run in
    this process, one after another.

    Args:
        clients: each client with its pictures, of one pipeline and with the same defences.
        optimisation: of each client, over all rounds.
        rounds: number of rounds.
        batch: number of pictures of a client's step.
        seed: client k draws step s from the generator of (seed + k, s).
    """
    trainers = [Trainer(client, optimisation) for client, _ in clients]
    common, told = trainers[0].controlnet.state_dict(), []
    size = sum(tensor.nbytes for tensor in common.values()) * len(clients)
    for _ in range(rounds):
        common, losses = {name: tensor.clone() for name, tensor in common.items()}, []
        for number, (trainer, (client, examples)) in enumerate(zip(trainers, clients, strict=True)):
            trainer.controlnet.load_state_dict(common)
            for _ in range(optimisation.steps // rounds):
                generator = np.random.default_rng((seed + number, trainer.step))
                features = client.features(*examples.batch(batch, generator), generator)
                losses.append(trainer.take_step(features)[0])
        weights = [trainer.controlnet.state_dict() for trainer in trainers]
        common = {name: torch.stack([each[name] for each in weights]).mean(0) for name in common}
        told.append(Round(size, size, float(np.mean(losses))))
    trainers[0].controlnet.load_state_dict(common)
    return trainers[0].controlnet.eval(), told
