"""Recipes of the private digits: two kinds of public data, and two promises about the private ones."""

from dataclasses import dataclass
from typing import Literal

from cipherdm.errors import CipherDMError
from cipherdm.private import PARTS

from ..private_run import PrivateStage
from ..sd_mini.recipe import AutoencoderConfig, DenoiserConfig, Optimisation

CLASSES = 36
"""Classes that a prompt can name: 0 to 9 for digits and 10 to 35 for letters."""

_AUTOENCODER = AutoencoderConfig(
    optimisation=Optimisation(
        steps=5000, batch=32, learning_rate=2e-3, warmup=50, cooldown=2500, ema_decay=0.998, weight_decay=0.0
    ),
    in_channels=1,
    block_out_channels=(16, 32, 32, 32),
)
_DENOISER = DenoiserConfig(
    optimisation=Optimisation(steps=4000, batch=256, learning_rate=2e-3, warmup=100, cooldown=2000),
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    score_weight=0.0,
)


@dataclass(frozen=True)
class PrivateDigitsConfig:
    """A latent diffusion model of 28 x 28 pixels, by class: latents of 4 x 4 x 4, one token for a prompt.

    `source` says what the public data are: letters, so that every digit is learnt privately, or letters and digits. Models of
    one source share their public parts. Without a `private` stage the model is public only. Raises CipherDMError for another
    source.
    """

    name: str
    source: Literal["letters", "glyphs"]
    private: PrivateStage | None
    seed: int = 0
    autoencoder: AutoencoderConfig = _AUTOENCODER
    denoiser: DenoiserConfig = _DENOISER
    width: int = 32

    def __post_init__(self) -> None:
        if self.source not in ("letters", "glyphs"):
            raise CipherDMError(f"There are no public data {self.source!r}. Use 'letters' or 'glyphs'.")


def _recipe(source: Literal["letters", "glyphs"], epsilon: float) -> PrivateDigitsConfig:
    """The recipe for one promise."""
    # The more noise there is, the more is gained by draws of the same example, and the less by steps.
    steps, draws, rate = (400, 2, 2e-3) if epsilon > 3 else (250, 4, 1e-3)
    plan = {"batch": 4000, "warmup": 10, "cooldown": steps // 2, "ema_decay": 0.98, "weight_decay": 0.0}
    stage = PrivateStage(epsilon, Optimisation(steps, learning_rate=rate, **plan), sample_rate=1 / 15, draws=draws)
    return PrivateDigitsConfig(f"{source}-dp{epsilon:g}", source, stage)


def _bounds(source: Literal["letters", "glyphs"]) -> tuple[PrivateDigitsConfig, PrivateDigitsConfig]:
    """What the promises are compared with: public data alone, and no promise."""
    plan = Optimisation(1500, batch=256, learning_rate=1e-3, warmup=10, cooldown=750, ema_decay=0.99, weight_decay=0.0)
    stages = {"public": None, "open": PrivateStage(None, plan, draws=1)}
    return tuple(PrivateDigitsConfig(f"{source}-{name}", source, stage) for name, stage in stages.items())


def _part(part: str, epsilon: float) -> PrivateDigitsConfig:
    """A short training of one part of the denoiser; all parts have the same start, budget and steps."""
    plan = Optimisation(150, batch=2000, learning_rate=2e-3, warmup=10, cooldown=75, ema_decay=0.95, weight_decay=0.0)
    return PrivateDigitsConfig(
        f"glyphs-dp{epsilon:g}-{part}", "glyphs", PrivateStage(epsilon, plan, draws=1, part=part)
    )


_SOURCES: tuple[Literal["letters", "glyphs"], ...] = ("letters", "glyphs")
SHIPPED = tuple(_recipe(source, epsilon) for source in _SOURCES for epsilon in (1, 10))
PRIVATE_DIGITS = {
    recipe.name: recipe
    for recipe in (
        *SHIPPED,
        *(recipe for source in _SOURCES for recipe in _bounds(source)),
        *(_part(part, epsilon) for epsilon in (1, 10) for part in PARTS),
    )
}
