"""U-Nets with cross-attention for tests: configurations, and diffusers' own model with its inputs and output."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch_models import with_random_vectors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cipherdm.models import UNetConditionConfig

# What the published folders of Stable Diffusion 1.5 and 2.1 hold in unet/config.json, in their words.
SD_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD_2 = SD_1 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SMALLER = {
    "block_out_channels": [8, 16, 16, 16],
    "cross_attention_dim": 12,
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "sample_size": 16,
}
SD_1_SMALL = UNetConditionConfig.from_diffusers(SD_1 | SMALLER)
SD_2_SMALL = UNetConditionConfig.from_diffusers(SD_2 | SMALLER | {"attention_head_dim": [1, 2, 4, 4]})
TINY = replace(
    SD_1_SMALL,
    block_out_channels=(4, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    sample_size=8,
)
CONFIGS = {
    "Stable Diffusion 1": SD_1_SMALL,
    "Stable Diffusion 2": SD_2_SMALL,
    "mish": replace(TINY, act_fn="mish"),
    "swish, scale and shift": replace(TINY, act_fn="swish", resnet_time_scale_shift="scale_shift"),
    "two transformer blocks, linear": replace(TINY, transformer_layers_per_block=2, use_linear_projection=True),
    "heads that do not fill the channels": replace(TINY, attention_head_dim=(3, 5)),
    "classes": replace(TINY, num_class_embeds=3, mid_block_scale_factor=2),
    "no middle, padding on one side": replace(TINY, mid_block_type=None, downsample_padding=0),
    "cross-attention at the bottom": replace(
        TINY,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=5,  # more than the channels of the level that does not attend
        sample_size=(4, 6),
    ),
}


def torch_model(config: UNetConditionConfig) -> UNet2DConditionModel:
    """diffusers' model with random weights, normalisations and biases included, so that no term can go missing."""
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(config.to_diffusers()).eval()
    return with_random_vectors(model)


def inputs(config: UNetConditionConfig, batch: int = 2, tokens: int = 7) -> dict[str, np.ndarray]:
    """Latents and prompts, different ones for each sample of the batch, and labels if there are classes."""
    height, width = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
    generator = np.random.default_rng(1)
    values = {
        "sample": generator.standard_normal((batch, config.in_channels, height, width), np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, tokens, config.cross_attention_dim), np.float32),
    }
    if config.num_class_embeds is not None:
        values["class_onehot"] = np.eye(config.num_class_embeds, dtype=np.float32)[np.arange(batch)[::-1]]
    return values


def torch_eps(model: UNet2DConditionModel, timestep: float, values: dict) -> np.ndarray:
    labels = values.get("class_onehot")
    labels = None if labels is None else torch.tensor(labels.argmax(1))
    sample, prompt = torch.tensor(values["sample"]), torch.tensor(values["encoder_hidden_states"])
    with torch.no_grad():
        return model(sample, torch.tensor(timestep), prompt, class_labels=labels).sample.numpy()


ONE_LEVEL = replace(
    TINY, block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",)
)
# One transformer each on the way down and up; 16 channels, since variances of fewer differ too much from token to token.
SMALL = replace(ONE_LEVEL, block_out_channels=(16,), mid_block_type=None, sample_size=4)
# The noise levels of Stable Diffusion. Predicting v keeps samples of an untrained network bounded.
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
}
TOKENS = 10
WORDS = ("a", "red", "blue", "seven", "two", "small")


def tokenizer() -> CLIPTokenizer:
    """CLIP's kind, with letters and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = [
        (word[:end] if end > 1 else word[0], word[end] + "</w>" * (end == len(word) - 1))
        for word in WORDS
        for end in range(1, len(word))
    ]
    merges = list(dict.fromkeys(merges))
    entries = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    entries += [first + second for first, second in merges]
    vocab = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def save_pipeline(folder: Path, config: UNetConditionConfig = ONE_LEVEL) -> None:
    """diffusers' pipeline with random weights, each picture 16 x 16 for latents of 8 x 8, saved to a folder."""
    words = tokenizer()
    torch.manual_seed(1)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=config.cross_attention_dim,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=config.in_channels,
        norm_num_groups=2,
        layers_per_block=1,
        scaling_factor=0.7,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=words,
        unet=torch_model(config),
        scheduler=DDIMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def control_of(unet: UNet2DConditionModel, hint_channels: tuple[int, ...], spread: float = 0.1, **options):
    """diffusers' ControlNet of a U-Net, whose zero convolutions and last layer of the hint's encoder are random."""
    torch.manual_seed(2)
    model = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=hint_channels, **options).eval()
    for name, parameter in model.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
            torch.nn.init.normal_(parameter, std=spread)
        elif name.startswith("controlnet_cond_embedding.conv_out"):
            torch.nn.init.normal_(parameter)  # so that the hint has a say
    return model


def add_control(folder: Path, *, hint_channels: tuple[int, ...] = (4, 6), hide_prompt: bool = False, **options) -> None:
    """Make the pipeline in a folder one with a ControlNet."""
    parts = StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False).components
    parts.pop("image_encoder")
    control = control_of(parts["unet"], hint_channels, **options)
    StableDiffusionControlNetPipeline(**parts, controlnet=control, requires_safety_checker=False).save_pretrained(
        folder
    )
    if hide_prompt:
        edit(folder / "controlnet" / "config.json", hide_prompt=True)


def edit(path, **changes):
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
