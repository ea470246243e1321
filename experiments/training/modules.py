"""What recipes change in diffusers' torch modules: cheaper functions, the initial weights, and a watch on attention scores.

diffusers has no quadratic activation and no attention without softmax, so a module is built with SiLU and then given ours.
Their JAX forms are in `cipherdm.protocols`.
"""

from collections import OrderedDict
from functools import partial
from typing import TypeVar

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional

UNet = TypeVar("UNet", UNet2DModel, UNet2DConditionModel)


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


def use_quadratic_activation(unet: UNet) -> UNet:
    """Give the module the activation, and a configuration that says so, which diffusers then refuses to load as its own."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.nonlinearity = Quad()
    unet.conv_act = Quad()
    unet.register_to_config(act_fn="quad")
    return unet


def use_cheap_functions(unet: UNet2DModel) -> UNet2DModel:
    """Give the module both functions, as `use_quadratic_activation` does."""
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(LinearAttention())
    unet.register_to_config(attention_kernel="linear")
    return use_quadratic_activation(unet)


@torch.no_grad()
def start_at_identity(unet: UNet2DModel) -> None:
    """Change the outermost layers of a fresh `UNet2DModel` so that its output is close to its input.

    At high noise the input is nearly the noise to be predicted. A wrong mean there, hardly visible in the loss, makes
    whole images white or black. The last group normalisation is in the way: it divides by the scale of its input. Here
    its first group gets x, -x and a constant, which dominates the group's deviation, so scale and mean of x pass. Then
    silu(a x) - silu(-a x) = a x undoes the activation. The skip connection carries the three to the last residual block,
    whose branch starts at zero. All weights remain free to move.

    Does nothing if a group of that normalisation has fewer than three channels.
    """
    first, norm, last = unet.conv_in, unet.conv_norm_out, unet.conv_out
    block = unet.up_blocks[-1].resnets[-1]
    width = norm.num_channels // norm.num_groups
    if width < 3 or block.conv_shortcut is None:
        return
    first.weight[:3], first.bias[:3] = 0, 0
    # A larger constant passes the scale of x better and leaves less range to the rest.
    first.weight[0, :, 1, 1], first.weight[1, :, 1, 1], first.bias[2] = 1, -1, 3.0
    shortcut = block.conv_shortcut
    shortcut.weight.zero_()
    shortcut.bias.zero_()
    for channel in range(first.out_channels):
        shortcut.weight[channel, block.in_channels - first.out_channels + channel] = 1
    block.conv2.weight.zero_()
    block.conv2.bias.zero_()
    # Mean and deviation of the first group when x is noise, measured: its other channels are random filters of x.
    noise = torch.randn(16, first.in_channels, 28, 28, generator=torch.Generator().manual_seed(0))
    group = first(noise.to(first.weight.device))[:, :width]
    scale = group.var(dim=(1, 2, 3), correction=0).mean().sqrt()
    norm.bias[:2] = group.mean() / scale  # x and -x are centred again, which silu(a x) - silu(-a x) = a x asks for
    last.weight.zero_()
    last.bias.zero_()
    last.weight[:, 0, 1, 1], last.weight[:, 1, 1, 1] = scale, -scale


class QuadGelu(nn.Module):
    """x^2 / 8 + x / 4 + 1 / 2, MPCFormer's quadratic instead of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x + 2) / 8 + 0.5


def use_quadratic_gelu(dit: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Give the module the quadratic, and a configuration that says so, which diffusers then refuses to load as its own."""
    for block in dit.transformer_blocks:
        block.ff.net[0] = nn.Sequential(OrderedDict(proj=block.ff.net[0].proj, quad=QuadGelu()))
    dit.register_to_config(activation_fn="gelu_quad")
    return dit


@torch.no_grad()
def start_at_zero(dit: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Change a fresh module so that its layers add nothing and its output is zero, and no label is left out at random.

    DiT's authors begin so (adaLN-Zero, Peebles and Xie, arXiv 2212.09748), and diffusers, which takes their weights, does not.
    """
    zeroed = [dit.proj_out_1, dit.proj_out_2]
    for block in dit.transformer_blocks:
        zeroed.append(block.norm1.linear)
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # without guidance at sampling nobody asks for no label
    for linear in zeroed:
        linear.weight.zero_()
        linear.bias.zero_()
    return dit


class SpreadRecorder:
    """Recorder of how far apart the variances are that the LayerNorms of a model divided by in its last call.

    The nearer they are, the fewer steps of Newton's iteration make their inverse roots on shares.
    """

    def __init__(self, model: torch.nn.Module):
        self._logarithms: list[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(self._keep)

    def fourth_power(self) -> torch.Tensor:
        """Return the mean fourth power of the logarithms about their mean over an image's tokens, a scalar with gradient."""
        seen, self._logarithms = torch.stack(self._logarithms), []
        return (seen - seen.mean(-1, keepdim=True)).pow(4).mean()

    def _keep(self, module: nn.LayerNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        self._logarithms.append((inputs[0].var(-1, correction=0) + module.eps).log())


class InnerRecorder:
    """Recorder of what goes into the activations of a model's feed-forward networks in its last call.

    The narrower that is, the better is a polynomial that stands for the activation on shares.
    """

    def __init__(self, model: torch.nn.Module):
        self._seen: list[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.net[0].proj.register_forward_hook(lambda _, __, output: self._seen.append(output))

    def beyond(self, bound: float) -> torch.Tensor:
        """Return the mean square by which the numbers leave [-bound, bound], a scalar with gradient."""
        seen, self._seen = torch.stack(self._seen), []
        return functional.relu(seen.abs() - bound).square().mean()


class ScoreRecorder:
    """Recorder of the mean square of the attention scores in a model's last call.

    Scores are taken before softmax and about the mean of their row, which softmax does not see. The smaller they are,
    the shorter is the range on which an exponential on shares must be right, and the cheaper it is.
    """

    def __init__(self, model: torch.nn.Module):
        self._projected: dict[tuple[int, str], torch.Tensor] = {}
        self._blocks = [module for module in model.modules() if isinstance(module, Attention)]
        for index, block in enumerate(self._blocks):
            for leaf in ("to_q", "to_k"):
                getattr(block, leaf).register_forward_hook(partial(self._keep, (index, leaf)))

    def mean_square(self) -> torch.Tensor:
        """Return the sum over the blocks of the mean square of their scores, a scalar with gradient."""
        total = torch.zeros(())
        for index, block in enumerate(self._blocks):
            q, k = (
                self._projected.pop((index, leaf)).unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for leaf in ("to_q", "to_k")
            )  # [B, heads, N, d] each
            k = k - k.mean(-2, keepdim=True)
            # The sum of (q_i k_j)^2 over all i and j, as the inner product of two d x d matrices.
            squares = ((q.mT @ q) * (k.mT @ k)).sum((-2, -1))
            total = total + block.scale**2 * squares.mean() / (q.shape[-2] * k.shape[-2])
        return total

    def beyond(self, bound: float) -> torch.Tensor:
        """Return the sum over the blocks of the mean square by which scores leave [-bound, bound], a scalar with gradient."""
        total = torch.zeros(())
        for index, block in enumerate(self._blocks):
            q, k = (
                self._projected.pop((index, leaf)).unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for leaf in ("to_q", "to_k")
            )
            scores = block.scale * q @ (k - k.mean(-2, keepdim=True)).mT
            total = total + functional.relu(scores.abs() - bound).square().mean()
        return total

    def _keep(self, key: tuple[int, str], module, inputs, output: torch.Tensor) -> None:
        self._projected[key] = output
