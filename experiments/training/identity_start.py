"""Initial weights with which a small U-Net predicts its input as the noise, scale and mean included."""

import torch
from diffusers import UNet2DModel

_REFERENCE = 3.0  # the constant's size: a larger one passes the scale of x better and leaves less range to the rest


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
    first.weight[0, :, 1, 1], first.weight[1, :, 1, 1], first.bias[2] = 1, -1, _REFERENCE
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
