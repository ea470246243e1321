"""A Stable Diffusion folder in diffusers' format: the owner's U-Net, and what the client encodes and decodes with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import AutoencoderKL
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import CipherDMError
from ..models import UNet, UNetConditionConfig, load_unet
from ..models.checkpoint import PIPELINE, read_json

_CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
# What must be there, by component.
_CLIENT_FILES = {"tokenizer": "tokenizer_config.json", "text_encoder": "config.json", "vae": "config.json"}
_FILES = {"unet": "config.json", "scheduler": "scheduler_config.json", **_CLIENT_FILES}


@dataclass(frozen=True, eq=False)
class ClientComponents:
    """What a client encodes its prompt and decodes its picture with. They see both, and stay on the client's machine.

    Attributes:
        tokenizer: cuts a prompt into tokens.
        text_encoder: makes the embedding that the U-Net attends to.
        vae: decodes latents to pictures, and encodes pictures to latents.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL


@dataclass(frozen=True, eq=False)
class Pipeline(ClientComponents):
    """The components of a StableDiffusionPipeline: the client's, and the model owner's.

    Attributes:
        unet: the model owner's secret, with the scheduler's configuration, which is public.
    """

    unet: UNet

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels, from those of the latents that the U-Net was made for."""
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, tuple) else (size, size)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return height * factor, width * factor


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder says that it is one of diffusers' pipelines."""
    return (Path(folder) / PIPELINE).is_file()


def load_pipeline(folder: str | Path) -> Pipeline:
    """Read a folder that StableDiffusionPipeline.save_pretrained wrote; SD 1.x and 2.x with CLIP's tokenizer.

    A safety checker and its feature extractor are left where they are. As StableDiffusionPipeline does, schedules count
    timesteps with steps_offset 1 and without clip_sample, whatever the folder says. Weights of any type become float32.

    Raises:
        CipherDMError: another kind of pipeline; a component is missing, unreadable, of an unsupported kind, or does not fit
            the others.
    """
    folder = Path(folder)
    _check_files(folder, _FILES)
    unet = load_unet(folder)
    if not isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(
            f"{folder / 'unet'} holds a UNet2DModel, which takes no prompt; a UNet2DConditionModel is needed."
        )
    unet = replace(unet, scheduler_config=_scheduler_config(folder, unet.scheduler_config))
    loaded = Pipeline(**_client_components(folder), unet=unet)
    _check_fit(folder, loaded)
    return loaded


def load_client_components(folder: str | Path) -> ClientComponents:
    """Read what a client needs of such a folder, whose U-Net may be missing.

    Raises:
        CipherDMError: as `load_pipeline`, for the client's components.
    """
    folder = Path(folder)
    _check_files(folder, _CLIENT_FILES)
    return ClientComponents(**_client_components(folder))


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    if not is_pipeline(folder):
        raise CipherDMError(
            f"{folder} has no {PIPELINE}: give a folder that StableDiffusionPipeline.save_pretrained wrote."
        )
    kind = read_json(folder / PIPELINE).get("_class_name")
    if kind not in _CLASSES:
        raise CipherDMError(f"{folder} is of a {kind}; supported is {_CLASSES[0]}.")
    missing = [name for name, file in files.items() if not (folder / name / file).is_file()]
    if missing:
        raise CipherDMError(
            f"{folder} lacks {', '.join(f'{name}/{files[name]}' for name in missing)}. A pipeline has the components "
            f"{', '.join(_FILES)}; save it again with StableDiffusionPipeline.save_pretrained."
        )


def _client_components(folder: Path) -> dict[str, Any]:
    return {
        "tokenizer": _loaded(folder, "tokenizer", CLIPTokenizer.from_pretrained),
        "text_encoder": _loaded(folder, "text_encoder", CLIPTextModel.from_pretrained, dtype=torch.float32),
        "vae": _loaded(
            folder, "vae", AutoencoderKL.from_pretrained, torch_dtype=torch.float32, low_cpu_mem_usage=False
        ),
    }


def _scheduler_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    supported = [entry.name for entry in KarrasDiffusionSchedulers]  # those that are made of betas
    kind = config.get("_class_name")
    if kind not in supported:
        raise CipherDMError(
            f"{folder / 'scheduler'} is of a {kind}, whose noise levels are not supported; those of these are: "
            f"{', '.join(sorted(supported))}."
        )
    return dict(config) | {"steps_offset": 1, "clip_sample": False}


def _loaded(folder: Path, component: str, load: Callable, **options):
    """A component by its library's own loader, with that library's errors as ours."""
    try:
        model = load(folder / component, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CipherDMError(
            f"{folder / component} cannot be read: {str(error).strip().partition(chr(10))[0]} "
            "Save it again with StableDiffusionPipeline.save_pretrained."
        ) from error
    return model.eval().requires_grad_(False) if isinstance(model, torch.nn.Module) else model


def _check_fit(folder: Path, pipeline: Pipeline) -> None:
    config, text, vae = pipeline.unet.config, pipeline.text_encoder.config, pipeline.vae.config
    problems = {
        f"the text encoder's width is {text.hidden_size}, and the U-Net attends to {config.cross_attention_dim}": (
            text.hidden_size != config.cross_attention_dim
        ),
        f"the VAE's latents have {vae.latent_channels} channels, and the U-Net takes {config.in_channels}": (
            vae.latent_channels != config.in_channels
        ),
        f"the U-Net returns {config.out_channels} channels for {config.in_channels}": (
            config.out_channels != config.in_channels
        ),
        "the U-Net has classes beside prompts": config.num_class_embeds is not None,
        "the U-Net's sample_size is missing": config.sample_size is None,
    }
    found = [problem for problem, present in problems.items() if present]
    if found:
        raise CipherDMError(f"{folder} cannot draw from a prompt: {'; '.join(found)}.")
