"""Federated averaging of a ControlNet, in which each client has the whole network and keeps its pictures; and privately."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from cipherdm.private import PrivacyStatement
from cipherdm.split import Client, Examples, Optimisation, SplitControlNetModel, Trainer

from ..private_run import PrivateRun, PrivateStage


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
    trainers, told = [Trainer(client, optimisation) for client, _ in clients], []
    networks = [trainer.controlnet for trainer in trainers]
    size = sum(tensor.nbytes for tensor in networks[0].state_dict().values()) * len(clients)
    for _ in range(rounds):
        losses = []
        for number, (trainer, (client, examples)) in enumerate(zip(trainers, clients, strict=True)):
            for _ in range(optimisation.steps // rounds):
                generator = np.random.default_rng((seed + number, trainer.step))
                features = client.features(*examples.batch(batch, generator), generator)
                losses.append(trainer.take_step(features)[0])
        _average(networks)
        told.append(Round(size, size, float(np.mean(losses))))
    return networks[0].eval(), told


def federate_privately(
    clients: Sequence[tuple[Client, Examples]],
    stage: PrivateStage,
    *,
    rounds: int,
    noise_seed: int | None = None,
) -> tuple[SplitControlNetModel, PrivacyStatement]:
    """Train a ControlNet by federated averaging of differentially private steps; return it, and what is promised.

    Every step of a client is one of DP-SGD (`PrivateStep`) on its own pictures, at home. Whatever leaves it is made of noisy
    sums and of others' weights, so the promise about each of its pictures holds against the server, the other clients, and
    whoever gets the model; nobody but the client itself has to be trusted. A picture has one client, so clients' budgets do
    not add up.

    Args:
        clients: each client with its pictures, of one pipeline. No two share a picture.
        stage: each client's promise and optimisation, over all rounds.
        rounds: number of rounds.
        noise_seed: seed of the first client's noise, for tests; the model is then not private.
    """
    trainers = [Trainer(client, Optimisation(1)) for client, _ in clients]
    seeds = [None if noise_seed is None else noise_seed + number for number in range(len(clients))]
    runs = [
        PrivateRun(f"client{number}", stage, trainer.controlnet, noise_seed=seeds[number])
        for number, trainer in enumerate(trainers)
    ]
    for _ in range(rounds):
        for run, trainer, (client, examples) in zip(runs, trainers, clients, strict=True):
            own = len(examples.pictures), _errors(trainer, client, examples, np.random.default_rng(noise_seed))
            for _ in range(stage.optimisation.steps // rounds):
                run.take_step(lambda _, own=own: own)
        _average([run.model for run in runs])
    averaged = [run.averaged.module for run in runs]  # moving averages, which have less of the noise
    _average(averaged)
    told = runs[0].statement("the clients' pictures", "copies of the U-Net's own layers")
    own = {"unit": "picture", "trained": "the ControlNet", "trusted": "the client whose picture it is"}
    return averaged[0].eval(), replace(told, **own)


def _errors(
    trainer: Trainer, client: Client, examples: Examples, generator: np.random.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what gives the errors [n] of pictures by their rows [n], each at a timestep and with noise of its own."""
    return lambda rows: trainer.errors(client.features(*examples.rows(rows.numpy()), generator))


@torch.no_grad()
def _average(networks: Sequence[nn.Module]) -> None:
    """Give all networks the mean of their weights."""
    weights = [dict(network.named_parameters()) for network in networks]
    for name in weights[0]:
        mean = torch.stack([each[name] for each in weights]).mean(0)
        for each in weights:
            each[name].copy_(mean)
