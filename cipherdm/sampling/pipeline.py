"""A Stable Diffusion folder in diffusers' format: the owner's U-Net, and the components of the client.

The client uses its components by itself and in the clear: it tokenises and embeds prompts, and encodes and decodes images.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from ..errors import CipherDMError, refuse
from ..models import Config, ControlledConfig, UNet, UNetConditionConfig, check_hint, load_unet, takes_prompts
from ..models.checkpoint import HOW_TO_SAVE, PIPELINE, VARIANTS, find_model, first, has_control, read_json
from ..models.transformer import Transformer
from ..models.transformer_files import is_transformer, load_transformer
from ..schedules import check_levels

# Files that must be there, by component.
_CLIENT_FILES = {"tokenizer": "tokenizer_config.json", "text_encoder": "config.json", "vae": "config.json"}
# Values of a field of the component's configuration, which name its class.
_KINDS = {
    "vae": ("_class_name", ("AutoencoderKL",)),
    "text_encoder": ("architectures", (["CLIPTextModel"], ["CLIPModel"], None)),
}
# Tensors that folders may hold and that a text encoder has no use for.
_UNUSED = r".*position_ids|(vision_model|visual_projection|text_projection|logit_scale)\b.*"
CAPTIONS = "captions.txt"  # file in a model's folder with captions that its owner knows, one per line
HINTS = "hints"  # folder in a model's folder with hints that its owner knows, as PNG files
_FILES = {"unet": "config.json", "scheduler": "scheduler_config.json", **_CLIENT_FILES}


@dataclass(frozen=True, eq=False)
class ClientComponents:
    """Components that encode a client's prompt and decode its image. They see both, and stay on the client's machine."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel  # makes the embedding to which the U-Net attends
    vae: AutoencoderKL  # decodes latents to images, and encodes images to latents


@dataclass(frozen=True, eq=False)
class Pipeline(ClientComponents):
    """Components of a StableDiffusionPipeline: the client's, and the model owner's."""

    unet: UNet  # the model owner's secret, with the scheduler's configuration, which is public

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels, from those of the latents that the U-Net was made for."""
        _, height, width = self.unet.config.sample_shape
        return height * self.image_factor, width * self.image_factor

    @property
    def image_factor(self) -> int:
        """Factor by which the VAE shrinks height and width."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def load_model(folder: str | Path) -> "UNet | Pipeline | Transformer":
    """Read a folder as what it is: by `load_transformer`, by `load_pipeline` if it takes prompts, and by `load_unet`."""
    folder = find_model(folder)
    if is_transformer(folder):
        return load_transformer(folder)
    return load_pipeline(folder) if takes_prompts(folder) else load_unet(folder)


def load_pipeline(folder: str | Path) -> Pipeline:
    """Read a folder that StableDiffusionPipeline.save_pretrained wrote: SD 1.x and 2.x with CLIP's tokenizer.

    A StableDiffusionControlNetPipeline's is read too, if it has one ControlNet, which becomes part of the U-Net. The folder
    may be given by its name in data/models. A safety checker and its feature extractor are not read. Schedules count
    timesteps with steps_offset 1 and without clip_sample, whatever the folder says, as in StableDiffusionPipeline. Weights of
    any type become float32. Raises CipherDMError if the pipeline is of another kind, or a component is missing, unreadable, of
    an unsupported kind, or does not fit the others.
    """
    folder = find_model(folder)
    _check_files(folder, _FILES | ({"controlnet": "config.json"} if has_control(folder) else {}))
    unet = load_unet(folder)
    if not isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(
            f"{folder / 'unet'} holds a UNet2DModel, which takes no prompt; a UNet2DConditionModel is needed."
        )
    check_levels(unet.scheduler_config)
    unet = replace(unet, scheduler_config=dict(unet.scheduler_config) | {"steps_offset": 1, "clip_sample": False})
    loaded = Pipeline(**_client_components(folder), unet=unet)
    _check_fit(folder, loaded)
    return loaded


def load_client_components(folder: str | Path) -> ClientComponents:
    """Read the client's components of a pipeline's folder, whose U-Net may be missing.

    Raises CipherDMError if the pipeline is of another kind, or one of these components is missing or unreadable.
    """
    folder = find_model(folder)
    _check_files(folder, _CLIENT_FILES)
    return ClientComponents(**_client_components(folder))


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    if not takes_prompts(folder):
        lack = "takes no prompts" if (folder / PIPELINE).is_file() else f"has no {PIPELINE}"
        raise CipherDMError(f"{folder} {lack}: give a folder that StableDiffusionPipeline.save_pretrained wrote.")
    wanted = [f"{name}/{file}" for name, file in files.items()]
    if not (folder / "tokenizer" / "tokenizer.json").is_file():  # which holds what these two hold
        wanted += ["tokenizer/vocab.json", "tokenizer/merges.txt"]
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise CipherDMError(
            f"{folder} lacks {', '.join(missing)}. A pipeline has the components "
            f"{', '.join(_FILES)}; save it again with StableDiffusionPipeline.save_pretrained."
        )
    for name, (field, supported) in _KINDS.items():
        kind = read_json(folder / name / files[name]).get(field)
        if kind not in supported:
            raise CipherDMError(f"{folder / name} is of {kind}, and only {supported[0]} is supported.")


def _client_components(folder: Path) -> dict[str, Any]:
    text = {"dtype": torch.float32, "output_loading_info": True}
    vae = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False, "output_loading_info": True}
    tokenizer = _loaded(folder, "tokenizer", CLIPTokenizer.from_pretrained)
    encoder = _loaded(folder, "text_encoder", CLIPTextModel.from_pretrained, **text)
    if len(tokenizer) != encoder.config.vocab_size:
        raise CipherDMError(
            f"{folder / 'tokenizer'} has {len(tokenizer)} tokens, and the text encoder {encoder.config.vocab_size}: they are "
            "of different models, or a file is cut off. Copy both from one source."
        )
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": _loaded(folder, "vae", AutoencoderKL.from_pretrained, **vae),
    }


def _loaded(folder: Path, component: str, load: Callable, **options):
    """Read a component by its library's own loader, and turn into our errors what that library raises or fills up at random."""
    kinds = [kind for kind in VARIANTS if any((folder / component).glob(f"*model{kind}.safetensors"))]
    if kinds and kinds[0]:
        options["variant"] = kinds[0].removeprefix(".")
    try:
        model = load(folder / component, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CipherDMError(
            f"{folder / component} cannot be read: {str(error).strip().partition(chr(10))[0].rstrip('.')}. "
            f"{HOW_TO_SAVE}"
        ) from error
    model, report = model if isinstance(model, tuple) else (model, {})
    problems = [f"{name} is missing" for name in sorted(report.get("missing_keys", ()))]
    extra = [name for name in sorted(report.get("unexpected_keys", ())) if not re.fullmatch(_UNUSED, name)]
    problems += [f"{name} is not expected" for name in extra]
    if problems:
        raise CipherDMError(
            f"{folder / component} holds other weights than its config.json describes: {first(problems)}. "
            "Copy it again from its source."
        )
    return model.eval().requires_grad_(False) if isinstance(model, torch.nn.Module) else model


def _check_fit(folder: Path, pipeline: Pipeline) -> None:
    config, vae = pipeline.unet.config, pipeline.vae.config
    width, wanted = pipeline.text_encoder.config.hidden_size, config.cross_attention_dim
    channels, inside, outside = vae.latent_channels, config.in_channels, config.out_channels
    problems = {
        f"the text encoder's width is {width}, and the U-Net attends to {wanted}": width != wanted,
        f"the VAE's latents have {channels} channels, and the U-Net takes {inside}": channels != inside,
        f"the U-Net returns {outside} channels for {inside}": outside != inside,
        "the U-Net has classes beside prompts": config.num_class_embeds is not None,
        "the U-Net's sample_size is missing": config.sample_size is None,
    }
    if isinstance(config, ControlledConfig):
        ours, vaes = config.control.hint_factor, pipeline.image_factor
        told = f"the ControlNet's hint encoder (conditioning_embedding_out_channels) shrinks by {ours}, and the VAE by {vaes}"
        problems |= {told: ours != vaes}
    refuse(problems, f"{folder} cannot draw from a prompt: ")


def embed_prompts(
    pipeline: ClientComponents,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None = None,
    *,
    guided: bool = True,
) -> np.ndarray:
    """Return the embeddings that the U-Net attends to: float32 [B, tokens, width], or [2 B, tokens, width] if guided.

    With guidance the negative prompts, empty by default, come first. Prompts are padded to the tokenizer's length, and longer
    ones are cut, as in diffusers, with a warning that quotes the rest. Raises CipherDMError if there is no prompt, or not one
    negative prompt per prompt.
    """
    if not prompts:
        raise CipherDMError("there must be at least one prompt.")
    texts = list(prompts)
    if guided:
        negative = [""] * len(prompts) if negative_prompts is None else list(negative_prompts)
        if len(negative) != len(prompts):
            raise CipherDMError(
                f"{len(negative)} negative prompts for {len(prompts)} prompts: give one for each, or none."
            )
        texts = negative + texts
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    # A tokenizer may have no length, or a larger one than the text encoder has positions for.
    longest = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    for text in texts:
        whole = tokenizer(text).input_ids
        if len(whole) > longest:
            cut = f"a prompt has more than {longest} tokens, and what is beyond was cut"
            warnings.warn(f"{cut}: {tokenizer.decode(whole[longest - 1 : -1])!r}", UserWarning, stacklevel=3)
    # Most text encoders attend to the padding too; diffusers decides in this way.
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.no_grad():
        return encoder(tokens.input_ids, attention_mask=mask).last_hidden_state.numpy().astype(np.float32)


def known_captions(pipeline: Pipeline, count: int, captions: Sequence[str] | None = None) -> list[str]:
    """Return at most `count` captions like the prompts to come, spread evenly over those that the owner has.

    These are `captions`, or the lines of CAPTIONS in the model's folder. Raises CipherDMError if there are none.
    """
    if captions is None:
        folder = pipeline.unet.folder
        if folder is None or not (folder / CAPTIONS).is_file():
            raise CipherDMError(
                f"{folder or 'this pipeline'} has no {CAPTIONS}: write one into the model's folder, with captions like the "
                "prompts to come, one per line."
            )
        captions = read_captions(folder / CAPTIONS)
    return spread_over(captions, count)


def known_hints(pipeline: Pipeline, count: int, hints: np.ndarray | None = None) -> np.ndarray | None:
    """Return `count` hints like those to come, [count, C, H, W] in [0, 1]; None for a pipeline without a ControlNet.

    These are spread evenly over `hints`, or over the PNG files of HINTS in the model's folder in the order of their names, as
    captions are; if there are fewer, they are repeated. Raises CipherDMError if there are none, or they do not fit.
    """
    if hints is None and isinstance(pipeline.unet.config, ControlledConfig):
        folder = pipeline.unet.folder
        files = [] if folder is None else sorted((folder / HINTS).glob("*.png"))
        if not files:
            raise CipherDMError(
                f"{folder or 'this pipeline'} has no {HINTS}/*.png: write hints like those to come into the model's folder."
            )
        opened = [np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files]
        refuse({f"the images in {folder / HINTS} differ in size": len({image.shape for image in opened}) > 1})
        hints = np.stack(opened).transpose(0, 3, 1, 2) / np.float32(255)
    hints = checked_hints(pipeline.unet.config, hints, 0 if hints is None else len(hints))
    return None if hints is None else hints[np.resize(spread_over(range(len(hints)), count), count)]


def checked_hints(config: Config, hints: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return hints for so many images as float32 [count, C, H, W]; None for a model without a ControlNet.

    Raises CipherDMError if there are none for a ControlNet, or some without; if they have another shape than the images that
    are drawn, or values out of [0, 1].
    """
    check_hint(config, hints, count, config.sample_shape[1:])
    if hints is None:
        return None
    hints = np.asarray(hints, np.float32)
    if not (hints.min() >= 0 and hints.max() <= 1):  # refuses NaN too
        raise CipherDMError("the hints have values outside of [0, 1]; scale them to that range.")
    return hints


def blank_hints(pipeline: Pipeline, count: int) -> np.ndarray | None:
    """Return zeros in the place of hints, where nothing but their shape matters; None for a pipeline without a ControlNet."""
    config = pipeline.unet.config
    if not isinstance(config, ControlledConfig):
        return None
    return np.zeros(config.hint_shape(count, config.sample_shape[1:]), np.float32)


def spread_over(captions: Sequence, count: int) -> list:
    """Return at most `count` of some captions, spread evenly over them."""
    places = np.linspace(0, len(captions) - 1, min(count, len(captions))).round().astype(int)
    return [captions[place] for place in places]


def read_captions(path: str | Path) -> list[str]:
    """Read the lines of a text file that are not empty. Raises CipherDMError if it cannot be read or has none."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CipherDMError(f"{path} cannot be read as a list of captions, one per line ({error}).") from error
    captions = [line for line in lines if line]
    if not captions:
        raise CipherDMError(f"{path} has no captions; write one per line.")
    return captions


def decode_latents(pipeline: ClientComponents, latents: np.ndarray) -> np.ndarray:
    """Decode latents [B, C, h, w] to images, float32 [B, 3, H, W], nominally in [-1, 1]."""
    scaled = torch.tensor(np.asarray(latents, np.float32)) / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        return pipeline.vae.decode(scaled).sample.numpy()


def encode_images(pipeline: Pipeline, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Encode images [B, 3, H, W] in [-1, 1] to latents [B, C, h, w], drawn from the VAE's posterior.

    Raises CipherDMError if the images have another size than those that the model draws, or values out of range.
    """
    images = np.asarray(images, np.float32)
    size = (pipeline.vae.config.in_channels, *pipeline.image_size)
    if images.ndim != 4 or images.shape[1:] != size:
        raise CipherDMError(f"the images have shape {images.shape}; this model takes [B, {', '.join(map(str, size))}].")
    if not np.abs(images).max() <= 1:  # refuses NaN too
        raise CipherDMError("the images have values outside of [-1, 1]; scale them to that range.")
    with torch.no_grad():
        posterior = pipeline.vae.encode(torch.tensor(images)).latent_dist
    noise = generator.standard_normal(tuple(posterior.mean.shape), dtype=np.float32)
    return (posterior.mean.numpy() + posterior.std.numpy() * noise) * np.float32(pipeline.vae.config.scaling_factor)
