"""Recipes of the ControlNets of sd-mini."""

from dataclasses import dataclass

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
    """A ControlNet of `base` that processes of a server and of clients train, each client with `pictures` of its own."""

    name: str = "sd-mini-control-split"
    base: str = "sd-mini"
    seed: int = 0
    judged: int = 100
    pictures: int = 8000
    # All timesteps: leaving out the first ones costs likeness to the hint, and hides nothing.
    training: Training = Training(clients=("client0", "client1"), batch=16, steps=4000, defences=Defences())


SD_MINI_CONTROL = ControlConfig()
SD_MINI_CONTROL_SPLIT = SplitControlConfig()
