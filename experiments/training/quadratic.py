"""Cheaper functions in diffusers' torch module: a quadratic for the activation, attention without softmax.

diffusers has neither, so a module is built with SiLU and then given ours. Their JAX forms are in `cipherdm.protocols`.
"""

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


class Quad(nn.Module):
    """x^2 / 4 + x / 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x + 2) / 4


class LinearAttention:
    """An attention processor of diffusers: `linear_attention` over the pixels of [B, C, H, W], with a residual."""

    def __call__(
        self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> torch.Tensor:
        """Compute attention, called as diffusers' `AttnProcessor` is. Masks and cross-attention are not supported."""
        tokens = hidden_states.flatten(2).mT  # [B, N, C]
        if attn.group_norm is not None:
            tokens = attn.group_norm(tokens.mT).mT
        layers = (attn.to_q, attn.to_k, attn.to_v)
        q, k, v = (layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
        mixed = v.mean(-2, keepdim=True) + attn.scale * q @ (k.mT @ v) / k.shape[-2]
        mixed = attn.to_out[0](mixed.transpose(1, 2).flatten(2)).mT.reshape(hidden_states.shape)
        return (mixed + hidden_states) / attn.rescale_output_factor


def use_cheap_functions(unet: UNet2DModel) -> UNet2DModel:
    """Give the module both functions, and a configuration that says so, which diffusers then refuses to load as its own."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.nonlinearity = Quad()
        elif isinstance(module, Attention):
            module.set_processor(LinearAttention())
    unet.conv_act = Quad()
    unet.register_to_config(act_fn="quad", attention_kernel="linear")
    return unet
