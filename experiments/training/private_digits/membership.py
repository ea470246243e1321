"""Membership inference: who can tell from the weights which images a training has seen, with and without privacy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from scipy.stats import rankdata

from cipherdm.progress import Progress

from ..private_run import PrivateStage
from ..run import one_thread
from ..sd_mini.networks import scheduler
from ..sd_mini.recipe import Optimisation
from .draw import prompts
from .recipe import PrivateDigitsConfig
from .train import encoded, further, losses_of

MEMBERS = 500
_LEVELS, _NOISES = 10, 4  # timesteps and noises that an image is scored at
_PLAN = Optimisation(4000, batch=100, learning_rate=1e-3, warmup=10, cooldown=2000, ema_decay=0.99, weight_decay=0.0)
# With privacy there are fewer steps: noise grows with them.
STAGES = {
    "no privacy": PrivateStage(None, _PLAN, sample_rate=0.2, draws=1),
    "eps 10": PrivateStage(10, replace(_PLAN, steps=300, cooldown=150), sample_rate=0.2, draws=2),
    "eps 1": PrivateStage(1, replace(_PLAN, steps=300, cooldown=150), sample_rate=0.2, draws=2),
}


def membership(
    config: PrivateDigitsConfig,
    public: tuple[UNet2DConditionModel, AutoencoderKL],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    stages: Mapping[str, PrivateStage] = STAGES,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train on the first half of images [2 N, 1, 28, 28], and guess for all of them whether they were in it.

    The score of an image is how much training has lowered its loss, at the same timesteps and noises before and after: the
    larger, the likelier it was seen. Returns a row for each stage, as `attack_scores` gives it.
    """
    unet, vae = public
    rows = []
    with one_thread():
        latents = encoded(vae, images, vae.config.scaling_factor)
        half = len(images) // 2
        before = mean_losses(unet, latents, labels)
        for done, (name, stage) in enumerate(stages.items()):
            own = replace(config, private=stage)
            run, objective = further(own, unet), losses_of(own, latents[:half], labels[:half])
            while not run.finished:
                if progress is not None:
                    progress(1000 * done + 1000 * run.step // run.steps, 1000 * len(stages), name)
                run.take_step(objective)
            lowered = before - mean_losses(run.averaged.module, latents, labels)
            about = {"name": name, "epsilon": stage.epsilon, "delta": stage.delta, "steps": run.step}
            rows.append(about | attack_scores(lowered[:half], lowered[half:]))
    return rows


@torch.no_grad()
def mean_losses(unet: UNet2DConditionModel, latents: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Return each latent's mean loss, float64 [N], over fixed timesteps and noises, the same for all."""
    kept, generator = scheduler().alphas_cumprod, torch.Generator().manual_seed(0)
    told, total = prompts()[torch.from_numpy(labels)], torch.zeros(len(latents), dtype=torch.float64)
    for timestep in np.linspace(20, 900, _LEVELS).astype(int):
        for _ in range(_NOISES):
            noise = torch.randn(latents.shape[1:], generator=generator)
            noisy = kept[timestep].sqrt() * latents + (1 - kept[timestep]).sqrt() * noise
            total += (unet(noisy, int(timestep), told).sample - noise).square().mean((1, 2, 3)).double()
    return (total / (_LEVELS * _NOISES)).numpy()


def attack_scores(members: np.ndarray, others: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return the area under the ROC of scores that should be larger for members, its 95% bootstrap interval, and the ROC.

    "roc" has the true positive rates at the false positive rates 0, 0.01, ..., 1.
    """
    generator = np.random.default_rng(seed)

    def area(one: np.ndarray, two: np.ndarray) -> float:
        ranks = rankdata(np.concatenate([one, two]))[: len(one)]
        return float((ranks.sum() - len(one) * (len(one) + 1) / 2) / (len(one) * len(two)))

    drawn = [area(*(generator.choice(each, len(each)) for each in (members, others))) for _ in range(samples)]
    ends = np.sort(others)[::-1]
    # A threshold at the k-th largest of the others lets k of them pass.
    passed = [int(np.floor(rate * len(others))) for rate in np.linspace(0, 1, 101)]
    thresholds = [np.inf if len(ends) == 0 else ends[k] if k < len(ends) else -np.inf for k in passed]
    roc = [float((members > threshold).mean()) for threshold in thresholds]
    return {"auc": area(members, others), "auc_interval": np.quantile(drawn, [0.025, 0.975]).tolist(), "roc": roc}
