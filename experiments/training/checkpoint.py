"""The state of a training run, and its checkpoint file."""

import copy
import dataclasses
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing

from .guidance import Guide
from .identity_start import start_at_identity
from .recipes import TrainingConfig
from .scores import ScoreRecorder


@dataclass
class Run:
    """Everything that changes during training. `step` counts finished steps; `losses` has one entry for each."""

    config: TrainingConfig
    device: str
    model: UNet2DModel
    averaged: UNet2DModel
    optimizer: torch.optim.Adam
    scores: ScoreRecorder | None = None
    guide: Guide | None = None
    teacher: UNet2DModel | None = None
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, config: TrainingConfig, device: str) -> "Run":
        """A run at step 0, its weights drawn from the configuration's seed or read from `config.initial`.

        Raises `CipherDMError` if the initial weights cannot be read or have other shapes.
        """
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = config.unet()
        if config.identity:
            start_at_identity(model)
        if config.initial is not None:
            _load_initial(model, config)
        # channels_last: oneDNN's convolutions are faster on it, and torch would convert back and forth otherwise.
        model = model.to(device, memory_format=torch.channels_last).train()
        averaged = copy.deepcopy(model).requires_grad_(False).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        scores = ScoreRecorder(model) if config.score_weight else None
        return cls(config, device, model, averaged, optimizer, scores, teacher=_teacher(config, device))

    @torch.no_grad()
    def average(self) -> None:
        """Move the averaged weights towards the current ones, faster in the beginning, when they change quickly."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)


def _load_initial(model: UNet2DModel, config: TrainingConfig) -> None:
    path = Path(config.initial) / "diffusion_pytorch_model.safetensors"
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CipherDMError(
            f"{config.name!r} starts from the weights in {path}, which cannot be used ({error}). Train that model "
            "first, or give another folder as initial."
        ) from error


def _teacher(config: TrainingConfig, device: str) -> UNet2DModel | None:
    if config.teacher is None:
        return None
    try:
        teacher = UNet2DModel.from_pretrained(config.teacher, low_cpu_mem_usage=False, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CipherDMError(
            f"{config.name!r} learns from the model in {config.teacher}, which cannot be used ({error}). Train that model "
            "first, or give another folder as teacher."
        ) from error
    return teacher.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


def save_checkpoint(folder: Path, run: Run) -> None:
    """Write `folder/checkpoint.pt`, whole or not at all."""
    with replacing(folder / "checkpoint.pt") as temporary:
        torch.save(
            {
                "config": run.config.as_json(),
                "model": run.model.state_dict(),
                "averaged": run.averaged.state_dict(),
                "optimizer": run.optimizer.state_dict(),
                "step": run.step,
                "seconds": run.seconds,
                "losses": run.losses,
            },
            temporary,
        )


def load_checkpoint(folder: Path, config: TrainingConfig, device: str) -> Run | None:
    """The run saved in `folder`, or None if there is none.

    Raises `CipherDMError` if the file is damaged or belongs to another configuration.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    remedy = f"Train with resume=False to begin anew, or move {folder} away."
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        found = saved["config"]
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise CipherDMError(f"The checkpoint {path} cannot be read ({error}). {remedy}") from error
    expected = config.as_json()
    # How often a checkpoint is written changes nothing that is trained.
    # A field that an older checkpoint lacks has its default there.
    found = {field.name: field.default for field in dataclasses.fields(config)} | found
    differing = [key for key in expected if found[key] != expected[key] and key != "checkpoint_every"]
    if differing:
        changes = ", ".join(f"{key} {found[key]} there and {expected[key]} now" for key in differing)
        raise CipherDMError(f"The checkpoint {path} is of another configuration: {changes}. {remedy}")
    run = Run.start(config, device)
    run.model.load_state_dict(saved["model"])
    run.averaged.load_state_dict(saved["averaged"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.step, run.seconds, run.losses = saved["step"], saved["seconds"], saved["losses"]
    return run
