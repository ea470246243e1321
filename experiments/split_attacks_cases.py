"""Messages captured from processes of a split training, and attacks on them, for the experiment split-attacks."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from scipy.optimize import brentq
from scipy.special import log_ndtr
from skimage.metrics import structural_similarity

from cipherdm.files import private_folder
from cipherdm.models import find_model
from cipherdm.split import (
    Client,
    Examples,
    Features,
    Head,
    SplitTrial,
    Training,
    attacks,
    decoded,
    encoded,
    make_split_trial,
    published_level,
)

from .target import PROMPT_MODEL
from .training.control.attacks import train_inverse, unsplit

FROM = (0, 300, 618, 900)  # first timesteps of the policy
DELTA = 1e-5
_LIMIT = 900.0  # seconds for a training
_KINDS = ("picture", "hint")

Took = Callable[[str], None]
"""Told what comes next."""


@dataclass(frozen=True)
class Private:
    """A client's pictures [N, 3, H, W] in [-1, 1] and hints in [0, 1], which attacks look for."""

    vae: torch.nn.Module
    pictures: torch.Tensor
    hints: torch.Tensor

    def score(self, pictures: torch.Tensor | None, hints: torch.Tensor | None) -> dict[str, float | None]:
        """Return the mean SSIM of latents, decoded: of pictures in colour, and of hints in grey, both in [0, 1]."""
        found = {"picture": pictures, "hint": hints}
        return {
            name: None if each is None else self.likeness(name, decoded(self.vae, each) / 2 + 0.5)
            for name, each in found.items()
        }

    def likeness(self, name: str, found: torch.Tensor) -> float:
        """Return the mean SSIM of images [N, 3, H, W] in [0, 1] with the pictures, or with the hints."""
        wanted = self.hints if name == "hint" else self.pictures / 2 + 0.5
        if name == "hint":
            found, wanted = found.mean(1, keepdim=True), wanted.mean(1, keepdim=True)
        pairs = zip(found.numpy(), wanted.numpy(), strict=True)
        return float(np.mean([structural_similarity(*pair, data_range=1.0, channel_axis=0) for pair in pairs]))


@dataclass(frozen=True)
class Captured:
    """The last message that a server took from its client's process, the client that made it, and what is in it."""

    features: Features
    client: Client
    private: Private
    head: Path


def capture(folder: Path, base: StableDiffusionPipeline, own: Examples, training: Training) -> Captured:
    """Let a server and one client train, and return the last message, with what the client drew its batch from."""
    last = training.steps - 1
    with private_folder() as sockets:
        where = {"addresses": [f"unix:{sockets}/server.sock"], "seed": 0, "captured": training.steps}
        data = [folder.parent / "own.npz"]
        with SplitTrial(make_split_trial(folder, find_model(PROMPT_MODEL), data, training, **where)) as trial:
            trial.records(_LIMIT)
    pictures, hints, _ = own.batch(training.batch, np.random.default_rng((0, last)))
    features = Features.load(folder / "server-state" / f"client0-{last:03d}.safetensors")
    client = Client(base, training.defences, training.structure)
    return Captured(features, client, Private(base.vae, pictures, hints), folder / "client0-state" / "head.safetensors")


def _row(attack: str, scores: Mapping[str, float | None], **about: Any) -> dict[str, Any]:
    return {"attack": attack, **about, **scores}


def bounds(private: Private, public: Examples) -> list[dict[str, Any]]:
    """The best that can be found by latents, and what is known without any message: the mean of public ones."""
    latents = encoded(private.vae, private.pictures), encoded(private.vae, 2 * private.hints - 1)
    pictures, hints, _ = public.batch(1000, np.random.default_rng(0))
    means = {"picture": pictures / 2 + 0.5, "hint": hints}
    nothing = {
        name: private.likeness(name, each.mean(0, keepdim=True).expand(len(private.hints), -1, -1, -1))
        for name, each in means.items()
    }
    return [_row("bound", private.score(*latents)), _row("nothing", nothing)]


def computed(captured: Captured) -> dict[str, Any]:
    begin = time.perf_counter()
    latents = attacks.algebraic(captured.features, captured.client)
    seconds = time.perf_counter() - begin
    client = captured.client
    about = {"structure": client.structure, "from": client.defences.timesteps_from, "seconds": seconds}
    private = captured.private
    wanted = encoded(private.vae, private.pictures), encoded(private.vae, 2 * private.hints - 1)
    off = {
        f"{name}_error": float((found - right).square().mean().sqrt())
        for name, found, right in zip(_KINDS, latents, wanted, strict=True)
    }
    return _row("algebraic", private.score(*latents), **about, **off)


def averaged(client: Client, own: Examples, visits: Sequence[int], visited: int) -> list[dict[str, Any]]:
    """What h alone tells of a picture that comes back, without noise, timestep and first convolution."""
    pictures, hints, captions = own.batch(visited, np.random.default_rng(1))
    private, generator = Private(client.pipeline.vae, pictures, hints), np.random.default_rng(2)
    found: dict[int, list[torch.Tensor]] = {count: [] for count in visits}
    for picture, hint, caption in zip(pictures, hints, captions, strict=True):
        times = max(visits)
        batch = (each.expand(times, -1, -1, -1) for each in (picture, hint))
        h = client.features(*batch, [caption] * times, generator).h
        for count in visits:
            found[count].append(attacks.averaging(h[:count], activation=client.defences.activation))
    about = {"from": client.defences.timesteps_from}
    return [
        _row("averaging", private.score(None, torch.stack(each)), visits=count, **about)
        for count, each in found.items()
    ]


def learned(
    bare: Captured, defended: Sequence[Captured], public: Examples, steps: int, took: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Inverse networks, of h and timestep: one that knows of no defence, and one for each policy."""

    def attacked(name: str, network: torch.nn.Module, captured: Captured) -> dict[str, Any]:
        guess = network(captured.features.h, captured.features.timesteps).chunk(2, dim=1)
        return _row(name, captured.private.score(*guess), **{"from": captured.client.defences.timesteps_from})

    took("inverse network, undefended")
    network = train_inverse(bare.client, public, steps=steps)
    rows = [attacked("inverse, undefended", network, bare)]
    rows += [attacked("inverse, not adaptive", network, captured) for captured in defended]
    for captured in defended:
        took("inverse network, adaptive")
        rows.append(attacked("inverse, adaptive", train_inverse(captured.client, public, steps=steps), captured))
    return rows


def searched(captured: Captured) -> list[dict[str, Any]]:
    """UnSplit against conventional messages: with a guess of the client's layers, and, as a bound, with its own."""
    base, features = captured.client.pipeline, captured.features
    noisy = attacks.undone(base.unet.conv_in, features.noisy, features.noise.shape[1:]).float()
    heads = {"unsplit": Head(base), "unsplit, own layers": Head(base)}
    heads["unsplit, own layers"].load_state_dict(load_file(captured.head))
    start, rows = captured.private.hints.new_full((len(noisy), 1, *captured.private.hints.shape[2:]), 0.5), []
    for name, head in heads.items():
        weights = list(head.parameters()) if name == "unsplit" else ()
        found = unsplit(
            features.h,
            lambda guess, head=head: head(noisy, guess.expand(-1, 3, -1, -1)),
            start,
            weights=weights,
            smoothness=1e-7,
        )
        scores = {"picture": None, "hint": captured.private.likeness("hint", found.expand(-1, 3, -1, -1))}
        rows.append(_row(name, scores, structure="conventional", **{"from": 0}))
    return rows


def worth(base: StableDiffusionPipeline, public: Examples) -> list[dict[str, float]]:
    """What the timestep policy would be worth if noise were not sent, by the analytic Gaussian mechanism for one visit.

    The picture's latents are scaled by sqrt(kept), the hint's are not; the noise of both has the deviation sqrt(1 - kept). How
    far two latents may be apart is taken from public ones. Beside it stands the rule of the paper, as reconstructed.
    """
    pictures, hints, _ = public.batch(500, np.random.default_rng(0))
    apart = [float(torch.cdist(*[encoded(base.vae, each).flatten(1)] * 2).max()) for each in (pictures, 2 * hints - 1)]
    rows = []
    for first in (*FROM, 999):
        kept = float(base.scheduler.alphas_cumprod[first])
        shares = (kept / (1 - kept)) ** 0.5, (1 - kept) ** -0.5
        told = {name: gaussian(far * share) for name, far, share in zip(_KINDS, apart, shares, strict=True)}
        rows.append({"from": first, "published": published_level(base.scheduler.betas.numpy(), first), **told})
    return rows


def gaussian(apart: float, delta: float = DELTA) -> float:
    """Return the epsilon of one Gaussian mechanism whose results are `apart` deviations apart at most.

    Source: Balle and Wang, "Improving the Gaussian mechanism for differential privacy" (ICML 2018), theorem 8.
    """

    def beyond(epsilon: float) -> float:
        first, second = (log_ndtr(sign * apart / 2 - epsilon / apart) for sign in (1, -1))
        return np.exp(first) - np.exp(epsilon + second) - delta

    return float(brentq(beyond, 0, apart**2 / 2 + 10 * apart))
