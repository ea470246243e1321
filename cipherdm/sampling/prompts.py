"""What the client does with its prompt and its pictures by itself, in the clear: tokenise, embed, encode, decode."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from ..errors import CipherDMError
from .pipeline import ClientComponents, Pipeline


def embed_prompts(
    pipeline: ClientComponents,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None = None,
    *,
    guided: bool = True,
) -> np.ndarray:
    """The embeddings that the U-Net attends to: float32 [B, tokens, width], or [2 B, tokens, width] if guided.

    Guided, those of the negative prompts come first, which are empty by default. Prompts are padded to the tokenizer's
    length, and longer ones cut, as diffusers does, with a warning that says what was cut.

    Raises:
        CipherDMError: there is no prompt, or not one negative prompt for each.
    """
    if not prompts:
        raise CipherDMError("there must be at least one prompt.")
    if not guided:
        return _embedded(pipeline, prompts)
    negative = [""] * len(prompts) if negative_prompts is None else list(negative_prompts)
    if len(negative) != len(prompts):
        raise CipherDMError(f"{len(negative)} negative prompts for {len(prompts)} prompts: give one for each, or none.")
    return _embedded(pipeline, [*negative, *prompts])


def decode_latents(pipeline: ClientComponents, latents: np.ndarray) -> np.ndarray:
    """Latents [B, C, h, w] to pictures, float32 [B, 3, H, W], nominally in [-1, 1], by the VAE."""
    scaled = torch.tensor(np.asarray(latents, np.float32)) / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        return pipeline.vae.decode(scaled).sample.numpy()


def encode_images(pipeline: Pipeline, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Pictures [B, 3, H, W] in [-1, 1] to latents [B, C, h, w], drawn from the VAE's posterior with the generator's noise.

    Raises:
        CipherDMError: the pictures have another size than those that the model draws, or values out of range.
    """
    images = np.asarray(images, np.float32)
    size = (pipeline.vae.config.in_channels, *pipeline.image_size)
    if images.ndim != 4 or images.shape[1:] != size:
        raise CipherDMError(
            f"the pictures have shape {images.shape}; this model takes [B, {', '.join(map(str, size))}]."
        )
    if not np.abs(images).max() <= 1:  # also for what is not a number
        raise CipherDMError("the pictures have values outside of [-1, 1]; scale them to that range.")
    with torch.no_grad():
        posterior = pipeline.vae.encode(torch.tensor(images)).latent_dist
    noise = generator.standard_normal(tuple(posterior.mean.shape), dtype=np.float32)
    return (posterior.mean.numpy() + posterior.std.numpy() * noise) * np.float32(pipeline.vae.config.scaling_factor)


def _embedded(pipeline: ClientComponents, texts: Sequence[str]) -> np.ndarray:
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    longest = tokenizer.model_max_length
    tokens = tokenizer(list(texts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    for text in texts:
        whole = tokenizer(text).input_ids
        if len(whole) > longest:
            cut = tokenizer.decode(whole[longest - 1 : -1])
            warnings.warn(
                f"a prompt has more than {longest} tokens, and what is beyond was cut: {cut!r}",
                UserWarning,
                stacklevel=4,
            )
    # As diffusers has it: most text encoders attend to the padding too.
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    with torch.no_grad():
        return encoder(tokens.input_ids, attention_mask=mask).last_hidden_state.numpy().astype(np.float32)
