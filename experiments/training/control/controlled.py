"""A U-Net and its ControlNet as one network."""

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn


class Controlled(nn.Module):
    """Takes a sample, timesteps, prompts and hints; has the configuration of its U-Net, and returns what that returns."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet, self.config = unet, controlnet, unet.config

    def forward(self, sample: torch.Tensor, timesteps: torch.Tensor | int, prompts: torch.Tensor, hints: torch.Tensor):
        """Return the prediction for noisy latents [B, C, h, w], prompts [B, tokens, width] and hints [B, 3, H, W] in [0, 1]."""
        # Zeros, so that a ControlNet that reads no prompt does not learn to.
        none = torch.zeros_like(prompts[:, :1])
        down, middle = self.controlnet(sample, timesteps, none, hints.contiguous(), return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(sample, timesteps, prompts, **added)
