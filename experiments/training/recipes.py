"""Recipes: one frozen configuration for each model of `data/models`."""

import dataclasses
import math
from dataclasses import dataclass

from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from torch import nn

from cipherdm.errors import CipherDMError

from .modules import start_at_identity, start_at_zero, use_cheap_functions, use_quadratic_gelu

_ARCHITECTURE = (
    "block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
    "attention_head_dim", "add_attention",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Data and optimisation of a model. The same configuration and seed give the same weights on one machine.

    Class ids are positions in `digits`. Exported weights are the moving average with `ema_decay`.
    """

    name: str
    digits: tuple[int, ...]
    batch: int = 64
    steps: int = 4000
    learning_rate: float = 2e-3
    warmup: int = 50
    ema_decay: float = 0.999
    clip_norm: float = 1.0
    mean_weight: float = 0.0  # of the error's mean over the image, in the loss
    score_weight: float = 0.0  # of the mean square of the attention scores, in the loss
    score_bound: float = 0.0  # if there is one, of the mean square by which they leave it
    inner_weight: float = (
        0.0  # of the mean square by which numbers before an activation leave `inner_bound`, in the loss
    )
    inner_bound: float = 3.0
    spread_weight: float = 0.0  # of how far apart tokens' variances are, in the loss; see `modules.SpreadRecorder`
    guidance: float = 0.0  # how far the target leans towards plain members of the class; see `guidance`
    focus: float = 0.0  # 0 to 1: how much more often timesteps around the middle are drawn
    seed: int = 0
    checkpoint_every: int = 250
    initial: str | None = None  # a diffusers folder of the same shapes, to start from its weights
    teacher: str | None = None  # a diffusers folder whose prediction is the target, instead of the noise
    half: bool = False  # whether weights are written in half precision
    images: int | None = None  # the first so many training images, for tests and quick trials

    def __post_init__(self) -> None:
        if self.batch < 1 or self.steps < 1 or self.checkpoint_every < 1:
            raise CipherDMError(
                f"Training {self.name!r} with batch {self.batch}, {self.steps} steps and a checkpoint every "
                f"{self.checkpoint_every}: each of the three must be at least 1."
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0: linear rise in `warmup` steps, then a cosine to 0 at `steps`."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def network(self) -> nn.Module:
        """Return a fresh module of diffusers, initialised from torch's current random state."""
        raise NotImplementedError

    @property
    def size(self) -> str:
        """The architecture in a few words, for the model's card."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class UNetTraining(TrainingConfig):
    """A `UNet2DModel` and how it is trained; the fields from `block_out_channels` to `add_attention` are diffusers'."""

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int
    norm_num_groups: int
    attention_head_dim: int
    act_fn: str = "silu"  # "quad" is ours, and brings attention without softmax; see `modules`
    add_attention: bool = True
    identity: bool = False  # start from weights that predict the input; see `start_at_identity`

    def network(self) -> UNet2DModel:
        """Return a fresh `UNet2DModel`."""
        cheap = self.act_fn == "quad"
        unet = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            act_fn="silu" if cheap else self.act_fn,
            num_class_embeds=len(self.digits),
            **{name: getattr(self, name) for name in _ARCHITECTURE},
        )
        unet = use_cheap_functions(unet) if cheap else unet
        if self.identity:
            start_at_identity(unet)
        return unet

    @property
    def size(self) -> str:
        """The architecture in a few words, for the model's card."""
        blocks = ", ".join(self.down_block_types)
        layers = f"{self.layers_per_block} residual block(s) a level"
        return f"channels\n{self.block_out_channels}, {layers}, {blocks}, activation {self.act_fn}"


@dataclass(frozen=True, kw_only=True)
class DiTTraining(TrainingConfig):
    """A `DiTTransformer2DModel` and how it is trained; the fields from `patch_size` on are diffusers'."""

    patch_size: int
    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    activation_fn: str = "gelu-approximate"  # "gelu_quad" is ours

    def network(self) -> DiTTransformer2DModel:
        """Return a fresh `DiTTransformer2DModel`."""
        names = ("patch_size", "num_layers", "num_attention_heads", "attention_head_dim")
        sizes = {name: getattr(self, name) for name in names}
        classes = {"num_embeds_ada_norm": len(self.digits)}
        dit = start_at_zero(DiTTransformer2DModel(sample_size=28, in_channels=1, **classes, **sizes))
        return use_quadratic_gelu(dit) if self.activation_fn == "gelu_quad" else dit

    @property
    def size(self) -> str:
        """The architecture in a few words, for the model's card."""
        width = self.num_attention_heads * self.attention_head_dim
        patches = f"patches\nof {self.patch_size} x {self.patch_size}"
        return f"{patches}, {self.num_layers} layers of width {width}, {self.num_attention_heads} heads"


NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
}
"""The noise schedule of every model here, CipherDM's, as diffusers' schedulers take it."""


def scheduler() -> DDPMScheduler:
    """Return `NOISE_SCHEDULE` as a scheduler."""
    return DDPMScheduler(**NOISE_SCHEDULE)


_ALL_DRAW = {"mean_weight": 0.05, "focus": 0.5}
_BOTH = _ALL_DRAW | {"batch": 32, "identity": True}

# CipherDM's size: 28x28 and 14x14, attention over the 196 positions of the lower level. One group of the normalisation
# where CipherDM has two: with two channels per group the last one hides the mean of its input, and samples turn all white,
# all black or noise. Parameters, activations and layers are the same.
_TINY = UNetTraining(
    name="mnist01-tiny",
    digits=(0, 1),
    block_out_channels=(4, 8),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=2,
    norm_num_groups=1,
    attention_head_dim=8,
    steps=30000,
    score_weight=2e-2,
    checkpoint_every=1000,
    **_BOTH,
)

# Three levels, one layer each, attention at 7x7 in the middle block only. Four channels per group at 28x28: with one, the last
# normalisation hides the mean and the scale of its input, and samples drift to black or white.
_TEN = UNetTraining(
    name="mnist10",
    digits=tuple(range(10)),
    block_out_channels=(8, 32, 64),
    down_block_types=("DownBlock2D",) * 3,
    up_block_types=("UpBlock2D",) * 3,
    layers_per_block=1,
    norm_num_groups=2,
    attention_head_dim=64,
    steps=25000,
    score_weight=1e-3,
    guidance=0.5,
    checkpoint_every=500,
    **_BOTH,
)

# Mish is close to SiLU, so that the SiLU model's weights are a start that saves most of the steps.
_TINY_MISH = dataclasses.replace(
    _TINY,
    name="mnist01-tiny-mish",
    act_fn="mish",
    initial="data/models/mnist01-tiny",
    identity=False,
    steps=4000,
    learning_rate=1e-3,
)


def _distilled(base: UNetTraining, *, steps: int) -> UNetTraining:
    """Return the recipe of a network with a quadratic activation and attention without softmax, taught by the trained one."""
    teacher = f"data/models/{base.name}"
    own = {"name": f"{base.name}-quad", "act_fn": "quad", "initial": teacher, "teacher": teacher, "steps": steps}
    return dataclasses.replace(base, **own, guidance=0.0, score_weight=0.0, identity=False)


# 49 tokens, four layers. Scores, ratios of tokens' variances, and what activations get are kept small: exponentials need few
# squarings on shares then, inverse roots few steps, and a polynomial is near GELU. The model that ships was trained in four
# stages, each from the weights of the one before.
_DIT = DiTTraining(
    name="mnist-dit",
    digits=tuple(range(10)),
    patch_size=4,
    num_layers=4,
    num_attention_heads=4,
    attention_head_dim=32,
    steps=20000,
    learning_rate=1e-3,
    warmup=500,
    score_weight=0.1,
    score_bound=2.0,
    inner_weight=0.1,
    spread_weight=1e-2,
    guidance=0.8,
    checkpoint_every=1000,
    half=True,
    **_ALL_DRAW,
)

# Its student for Ditto, whose feed-forward networks have a quadratic activation.
_DIT_QUAD = dataclasses.replace(
    _DIT,
    name="mnist-dit-quad",
    activation_fn="gelu_quad",
    initial="data/models/mnist-dit",
    teacher="data/models/mnist-dit",
    guidance=0.0,
    steps=3000,
    learning_rate=1e-3,
)

_ALL = (_TINY, _TINY_MISH, _distilled(_TINY, steps=8000), _TEN, _distilled(_TEN, steps=6000), _DIT, _DIT_QUAD)
RECIPES: dict[str, TrainingConfig] = {config.name: config for config in _ALL}
