"""The server's side of a split training: the frozen U-Net from its first convolution on, and the ControlNet that learns."""

import copy
import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from ..errors import CipherDMError, check_whole
from ..files import replacing
from .controlnet import SplitControlNetModel
from .features import Features


@dataclass(frozen=True)
class Optimisation:
    """AdamW on `steps` batches, and the moving average of the weights. Raises CipherDMError for what cannot be.

    The learning rate rises over `warmup` steps, and falls to 0 along a cosine over all of them.
    """

    steps: int = 3000
    learning_rate: float = 1e-3
    warmup: int = 50
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 1)
        if not (0 < self.learning_rate < math.inf and 0 <= self.ema_decay < 1):
            raise CipherDMError("a training needs a learning_rate above 0 and an ema_decay from 0 to below 1.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Trainer:
    """A ControlNet in training, at step 0 until steps are taken or a checkpoint is restored.

    Args:
        pipeline: as `load_base` returns it; it stays as it is.
        optimisation: of the ControlNet.
        activation: whether clients apply `phi`; the network is marked with it.
        lean: whether messages have noisy latents instead of the first convolution of them.
        empty: embedding of the empty prompt, float32 [1, tokens, width], for batches without prompts.
        conventional: whether clients own the first layers, and h is what these return.

    Attributes:
        controlnet: the network in training.
        averaged: the network with the moving average of the weights.
        step: finished steps.
        losses: one per step.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        optimisation: Optimisation,
        *,
        activation: bool = True,
        lean: bool = False,
        empty: torch.Tensor | None = None,
        conventional: bool = False,
    ) -> None:
        self._optimisation, self._lean, self._empty, self._conventional = optimisation, lean, empty, conventional
        self._first = pipeline.unet.conv_in
        self._rest = copy.deepcopy(pipeline.unet)
        self._rest.conv_in = nn.Identity()
        self.controlnet = SplitControlNetModel.of(pipeline.unet, activation=activation).train()
        if conventional:
            self.controlnet.conv_in = nn.Identity()

        @torch.no_grad()
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
            # Faster in the beginning, when the weights change quickly.
            decay = min(optimisation.ema_decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averaged, current, 1 - decay)

        self._average = AveragedModel(self.controlnet, multi_avg_fn=average).requires_grad_(False).eval()
        self._average.n_averaged += 1  # the initial weights count; with 0 the first average would be a copy
        settings = {"lr": optimisation.learning_rate, "weight_decay": optimisation.weight_decay}
        self._adam = torch.optim.AdamW(self.controlnet.parameters(), **settings)
        self.step, self.losses = 0, []

    @property
    def averaged(self) -> SplitControlNetModel:
        """The network with averaged weights."""
        return self._average.module

    @property
    def finished(self) -> bool:
        """True once all steps are taken."""
        return self.step >= self._optimisation.steps

    def loss(self, features: Features, h: torch.Tensor) -> torch.Tensor:
        """Return the mean square error of the predicted noise of a batch, whose h is given again in float32."""
        down, middle = self.controlnet.residuals(h, features.timesteps, return_dict=False)
        predicted = self._rest(
            self._first(features.noisy) if self._lean else features.noisy,
            features.timesteps,
            self._empty.expand(len(h), -1, -1) if features.prompts is None else features.prompts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return functional.mse_loss(predicted, features.noise)

    def take_step(self, features: Features) -> tuple[float, torch.Tensor | None]:
        """Take one step of AdamW, and move the averaged weights.

        Returns:
            The loss; and, in conventional split learning, its gradient by h, float32 of the same shape.

        Raises:
            CipherDMError: the loss is not finite.
        """
        h = features.h.float().detach().requires_grad_(self._conventional)
        loss = self.loss(features, h)
        if not loss.isfinite():
            raise CipherDMError(
                f"the loss is {loss.item()} at step {self.step}: lower learning_rate, and begin anew in another folder."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.controlnet.parameters(), self._optimisation.clip_norm)
        for group in self._adam.param_groups:
            group["lr"] = self._optimisation.rate(self.step)
        self._adam.step()
        self._adam.zero_grad()
        self._average.update_parameters(self.controlnet)
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1], h.grad

    def save(self, path: Path, about: str) -> None:
        """Write a checkpoint, whole or not at all; `about` is a text of what the training depends on."""
        parts = {"controlnet": self.controlnet, "average": self._average, "adam": self._adam}
        state = {name: part.state_dict() for name, part in parts.items()}
        with replacing(path) as temporary:
            torch.save(state | {"about": about, "step": self.step, "losses": self.losses}, temporary)

    def restore(self, path: Path, about: str) -> None:
        """Go on from a checkpoint, if there is one. Raises CipherDMError if it is of another training or cannot be read."""
        if not path.exists():
            return
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["about"] != about:
                raise CipherDMError(f"{path} is of a training with other settings: give another folder.")
            for name, part in {"controlnet": self.controlnet, "average": self._average, "adam": self._adam}.items():
                part.load_state_dict(saved[name])
            self.step, self.losses = saved["step"], saved["losses"]
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise CipherDMError(f"{path} cannot be read ({error}): move it away, and begin anew.") from error
