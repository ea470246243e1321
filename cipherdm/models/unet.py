"""A U-Net with its weights, and how to compute it in plaintext."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..errors import CipherDMError
from ..protocols import DIRECT, Protocols
from .blocks import sinusoid
from .building import Block
from .config import Config, DiTConfig, UNetConditionConfig
from .control import check_hint, scaled_params
from .dit import POSITIONS, positions
from .layout import GUIDANCE, unet_blocks, unet_shapes

TIME_KINDS = ("time_embedding", "time_projection")  # kinds of block that depend on weights, step and class alone
# Kinds that depend on weights and on the prompt, or on the hint, alone: computed once, not at every step.
CONTEXT_KINDS = ("context", "hint")


@dataclass(frozen=True, eq=False)
class UNet:
    """A diffusers U-Net, alone or with a ControlNet, or DiT: its configuration, and its state dict as float32 NumPy arrays.

    Names are diffusers', and those of a ControlNet begin with "controlnet.".

    `scheduler_config` has the contents of `scheduler_config.json` beside it, and `folder` is where it was read from; both may
    be None. Two are compared by identity, since arrays have no single truth value.
    """

    config: Config
    params: Mapping[str, np.ndarray]
    scheduler_config: Mapping[str, Any] | None = None
    folder: Path | None = None


def at_guidance(unet: UNet, guidance_scale: float) -> UNet:
    """Return a U-Net that takes the guidance scale (`time_cond_proj_dim`) as one for this scale alone; others as they are.

    Latent consistency models (Luo et al., arXiv 2310.04378) add an embedding of the scale, projected, to that of the timestep
    before its first linear layer. What becomes of it there is a constant, which goes into that layer's bias.
    """
    size = getattr(unet.config, "time_cond_proj_dim", None)
    if size is None:
        return unet
    told = np.float32([1000 * (guidance_scale - 1)])
    wave = np.asarray(sinusoid(told, size, flip_sin_to_cos=False, freq_shift=1))[0]
    params = dict(unet.params)
    added = params["time_embedding.linear_1.weight"] @ (params.pop(GUIDANCE) @ wave)
    params["time_embedding.linear_1.bias"] = params["time_embedding.linear_1.bias"] + added
    return replace(unet, config=replace(unet.config, time_cond_proj_dim=None), params=params)


def at_conditioning_scale(unet: UNet, scale: float) -> UNet:
    """Return a U-Net with a ControlNet as one for this conditioning scale, from 0 on, alone. It goes into the weights."""
    return unet if scale == 1 else replace(unet, params=scaled_params(unet.params, scale))


def init_unet(config: Config, seed: int = 0) -> UNet:
    """Return a U-Net with random weights, distributed as PyTorch initialises the layers (not the same numbers).

    Weights and biases of convolutions and linear layers are uniform up to 1 / sqrt(inputs of one output), class
    embeddings are standard normal, normalisations are the identity.
    """
    generator = np.random.default_rng(seed)
    shapes = unet_shapes(config)
    params = {}
    for name, shape in shapes.items():
        weight = shapes[name.removesuffix("bias") + "weight"] if name.endswith("bias") else shape
        if name == POSITIONS:
            values = positions(shape[2], round(shape[1] ** 0.5))
        elif name.endswith(("class_embedding.weight", "embedding_table.weight")):
            values = generator.standard_normal(shape)
        elif len(weight) == 1:
            values = np.zeros(shape) if name.endswith("bias") else np.ones(shape)
        else:
            bound = 1 / math.sqrt(math.prod(weight[1:]))
            values = generator.uniform(-bound, bound, shape)
        params[name] = values.astype(np.float32)
    return UNet(config, params)


def apply_unet(
    config: Config,
    params,
    sample,
    timestep,
    class_onehot=None,
    encoder_hidden_states=None,
    hint=None,
    *,
    protocols: Protocols = DIRECT,
):
    """Return the predicted noise [B, out_channels, H, W] for float32 sample [B, in_channels, H, W].

    With DIRECT this is the plaintext reference, with another protocol set the emulation of a secure run. In an emulation the
    time blocks are exact if the owner computes them (`protocols.time_embedding`).

    Args:
        config: configuration of the model.
        params: the whole state dict.
        sample: noisy images or latents.
        timestep: a number or an array of shape [1], one for the whole batch.
        class_onehot: [B, classes], for models with classes.
        encoder_hidden_states: the prompts' embedding [B, tokens, cross_attention_dim], for a UNet2DConditionModel.
        hint: images [B, C, H, W] in [0, 1], for a ControlNet.
        protocols: the protocol set.

    Raises:
        CipherDMError: shapes do not fit the configuration.
    """
    sample = jnp.asarray(sample, jnp.float32)
    _check_inputs(config, sample, class_onehot, encoder_hidden_states)
    check_hint(config, hint, sample.shape[0], sample.shape[2:])
    values = {"sample": sample, "timestep": jnp.asarray(timestep, jnp.float32).reshape(1)}
    given = {"class_onehot": class_onehot, "encoder_hidden_states": encoder_hidden_states, "hint": hint}
    values |= {name: jnp.asarray(array, jnp.float32) for name, array in given.items() if array is not None}
    time = [block for block in unet_blocks(config) if block.kind in TIME_KINDS]
    rest = [block for block in unet_blocks(config) if block.kind not in TIME_KINDS]
    outside = protocols.time_embedding == "precomputed"
    values = run_blocks(time, params, values, protocols=DIRECT if outside else protocols)
    return run_blocks(rest, params, values, protocols=protocols)["eps"]


def run_blocks(blocks: Iterable[Block], params, values: Mapping, *, protocols: Protocols) -> dict:
    """Run `blocks` and return `values` with their outputs added. `params` is the whole state dict."""
    values = dict(values)
    for block in blocks:
        local = {name: params[full] for name, full in block.params}
        outputs = block(local, *(values[name] for name in block.inputs), protocols=protocols)
        values.update(zip(block.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
    return values


def check_draws_without_prompt(unet: UNet) -> None:
    """Raise CipherDMError if `unet` takes prompts, has no sample_size, or returns other channels than it takes."""
    if isinstance(unet.config, UNetConditionConfig):
        raise CipherDMError(
            "The model is a UNet2DConditionModel, which draws what a prompt says, and there is no prompt here. Draw with "
            "cipherdm.text_to_image or `cipherdm sample --prompt`, or give a folder of a UNet2DModel."
        )
    if unet.config.sample_size is None:
        raise CipherDMError(
            "The U-Net's sample_size is missing: write the images' height in pixels into its config.json."
        )
    if unet.config.in_channels != unet.config.out_channels:
        raise CipherDMError(
            f"The U-Net returns {unet.config.out_channels} channels for {unet.config.in_channels}: models that learn a "
            "variance, or that take an image beside the noise, are not supported."
        )


def _check_inputs(config: Config, sample, class_onehot, encoder_hidden_states) -> None:
    """Raise CipherDMError unless the arrays have the shapes that the configuration asks for."""
    arrays = (sample, class_onehot, encoder_hidden_states)
    shape, labels, prompt = (None if array is None else jnp.shape(array) for array in arrays)
    factor, classes = config.multiple, config.num_class_embeds
    fits = len(shape) == 4 and shape[1] == config.in_channels and not (shape[2] % factor or shape[3] % factor)
    if not fits or (isinstance(config, DiTConfig) and shape[2:] != (factor, factor)):
        raise CipherDMError(
            f"The sample has shape {shape}. It must be [batch, {config.in_channels}, height, width], with height and "
            f"width multiples of {factor}."
        )
    if labels != (wanted := None if classes is None else (shape[0], classes)):
        remedy = "there is no class embedding, so leave it out" if classes is None else f"it must have shape {wanted}"
        raise CipherDMError(f"The U-Net's class_onehot {_told(labels)}: {remedy}.")
    if not isinstance(config, UNetConditionConfig):
        if prompt is not None:
            raise CipherDMError("This model attends to no prompt; leave encoder_hidden_states out.")
    elif prompt is None or len(prompt) != 3 or not prompt[1] or prompt[::2] != (shape[0], config.cross_attention_dim):
        raise CipherDMError(
            f"The U-Net attends to a prompt: encoder_hidden_states must be [{shape[0]}, tokens, {config.cross_attention_dim}], "
            f"one row of tokens a sample, as wide as cross_attention_dim, and {_told(prompt)}."
        )


def _told(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"has shape {shape}"
