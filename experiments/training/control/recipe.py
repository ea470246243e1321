"""Recipes of the ControlNets of sd-mini."""

from dataclasses import dataclass, replace
from typing import Literal

from cipherdm.split import Defences, Training

from ..sd_mini.recipe import Optimisation


@dataclass(frozen=True)
class ControlNetConfig:
    """diffusers' ControlNetModel of a U-Net, which reads a hint and no prompt."""

    optimisation: Optimisation = Optimisation(steps=8000, batch=32, learning_rate=1e-3, warmup=50, cooldown=4000)
    hint_channels: tuple[int, ...] = (
        16,
        32,
        96,
    )  # each but the first halves the hint, down to the size of sd-mini's latents
    no_caption: float = 0.1  # share of pictures for which the U-Net gets the empty caption


@dataclass(frozen=True)
class ControlConfig:
    """A plain ControlNet of the pipeline `base` in `data/models`, trained in one place. It fixes every batch."""

    name: str = "sd-mini-control"
    base: str = "sd-mini"
    source: str = "mnist"
    seed: int = 0
    judged: int = 100  # pictures of held-out digits by which it is judged on the way
    controlnet: ControlNetConfig = ControlNetConfig()


@dataclass(frozen=True)
class SplitControlConfig:
    """A ControlNet of `base` that processes of a server and of clients train, each client with `pictures` of its own.

    `digits` is the part of MNIST that these are composed from: its training set, or every other digit of its test set where the
    training set has been promised privacy.
    """

    name: str = "sd-mini-control-split"
    base: str = "sd-mini"
    seed: int = 0
    judged: int = 100
    pictures: int = 8000
    digits: Literal["train", "test"] = "train"
    # All timesteps: leaving out the first ones costs likeness to the hint, and hides nothing.
    training: Training = Training(clients=("client0", "client1"), batch=16, steps=4000, defences=Defences())


@dataclass(frozen=True)
class HintEncoderConfig:
    """The hint encoder of a plain ControlNet, which learns to give what a split one gives by the pipeline's autoencoder."""

    optimisation: Optimisation = Optimisation(
        steps=3000, batch=64, learning_rate=2e-3, warmup=50, cooldown=2000, weight_decay=0.0
    )
    hint_channels: tuple[int, ...] = ControlNetConfig.hint_channels


@dataclass(frozen=True)
class PlainControlConfig:
    """A plain ControlNet with the weights of a split one, whose sum of hint and noise one convolution takes apart again."""

    name: str
    split: SplitControlConfig
    source: str = "glyphs"
    seed: int = 0
    encoder: HintEncoderConfig = HintEncoderConfig()

    @property
    def base(self) -> str:
        """The pipeline that both are for."""
        return self.split.base


SD_MINI_CONTROL = ControlConfig()
SD_MINI_CONTROL_SPLIT = SplitControlConfig()
_LEAN = replace(SD_MINI_CONTROL_SPLIT.training, structure="lean", defences=Defences(activation=False))
SD_MINI_DP10_CONTROL = PlainControlConfig(
    "sd-mini-dp10-control",
    SplitControlConfig("sd-mini-dp10-control-split", base="sd-mini-dp10", digits="test", training=_LEAN),
)
CONTROLS: dict[str, ControlConfig | SplitControlConfig | PlainControlConfig] = {
    config.name: config
    for config in (SD_MINI_CONTROL, SD_MINI_CONTROL_SPLIT, SD_MINI_DP10_CONTROL.split, SD_MINI_DP10_CONTROL)
}
"""The recipes, by name."""
