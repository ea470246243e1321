"""The server's side of a split training: the frozen U-Net from its first convolution on, and the ControlNet that learns."""

import copy
import math
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ..errors import CipherDMError
from ..files import replacing
from .client import Client, embedded
from .controlnet import SplitControlNetModel
from .features import Features


@dataclass(frozen=True)
class Optimisation:
    """AdamW on `steps` batches, and the moving average of the weights.

    The learning rate rises over `warmup` steps, and falls to 0 along a cosine over all of them.
    """

    steps: int = 3000
    learning_rate: float = 1e-3
    warmup: int = 50
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    clip_norm: float = 1.0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network whose weights follow its weights, less and less quickly until the decay is reached."""

    @torch.no_grad()
    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        # Faster in the beginning, when the weights change quickly.
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(count)) / (10 + int(count))))

    made = AveragedModel(model, multi_avg_fn=average).requires_grad_(False).eval()
    made.n_averaged += 1  # the initial weights count; with 0 the first average would be a copy
    return made


class Trainer:
    """A ControlNet in training, at step 0 until steps are taken or a checkpoint is restored.

    Args:
        client: one with the pipeline, the structure and the defences of those who send batches. Its pipeline stays as it is.
        optimisation: of the ControlNet.

    Attributes:
        controlnet: the network in training.
        step: finished steps.
        losses: one per step.
    """

    def __init__(self, client: Client, optimisation: Optimisation) -> None:
        pipeline, self._structure, self._optimisation = client.pipeline, client.structure, optimisation
        self._empty = embedded(pipeline, [""])
        self._first, self._rest = pipeline.unet.conv_in, copy.deepcopy(pipeline.unet)
        self._rest.conv_in = nn.Identity()
        self.controlnet = SplitControlNetModel.of(pipeline.unet, activation=client.defences.activation).train()
        if client.structure == "conventional":
            self.controlnet.conv_in = nn.Identity()

        self._average = moving_average(self.controlnet, optimisation.ema_decay)
        self._adam = torch.optim.AdamW(self.controlnet.parameters(), weight_decay=optimisation.weight_decay)
        self._parts = {"controlnet": self.controlnet, "average": self._average, "adam": self._adam}
        self.step, self.losses = 0, []

    @property
    def averaged(self) -> SplitControlNetModel:
        """The network with averaged weights."""
        return self._average.module

    @property
    def finished(self) -> bool:
        """True once all steps are taken."""
        return self.step >= self._optimisation.steps

    def errors(self, features: Features) -> torch.Tensor:
        """Return the mean square error [B] of the noise that is predicted for each picture."""
        down, middle = self.controlnet.residuals(features.h.float(), features.timesteps, return_dict=False)
        predicted = self._rest(
            self._first(features.noisy) if self._structure == "lean" else features.noisy,
            features.timesteps,
            self._empty.expand(len(features.h), -1, -1) if features.prompts is None else features.prompts,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return (predicted - features.noise).square().mean((1, 2, 3))

    def take_step(self, features: Features) -> tuple[float, torch.Tensor | None]:
        """Take one step of AdamW on the mean square error of the predicted noise, and move the averaged weights.

        Returns:
            The loss; and, in conventional split learning, its gradient by h, float32 of the same shape.

        Raises:
            CipherDMError: the loss is not finite.
        """
        h = features.h.float().detach().requires_grad_(self._structure == "conventional")
        loss = self.errors(replace(features, h=h)).mean()
        if not loss.isfinite():
            raise CipherDMError(
                f"the loss is {loss.item()} at step {self.step}: lower learning_rate, and begin anew in another folder."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.controlnet.parameters(), self._optimisation.clip_norm)
        self._adam.param_groups[0]["lr"] = self._optimisation.rate(self.step)
        self._adam.step()
        self._adam.zero_grad()
        self._average.update_parameters(self.controlnet)
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1], h.grad

    def save(self, path: Path, about: str) -> None:
        """Write a checkpoint, whole or not at all; `about` is a text of what the training depends on."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
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
            for name, part in self._parts.items():
                part.load_state_dict(saved[name])
            self.step, self.losses = saved["step"], saved["losses"]
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise CipherDMError(f"{path} cannot be read ({error}): move it away, and begin anew.") from error
