"""The small models of several tests. Change a field with `dataclasses.replace`."""

import numpy as np
import torch
from diffusers import UNet2DModel

from cipherdm.models import UNetConfig

# CipherDM's noise schedule, as diffusers writes it beside a model.
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
}

ONE_LEVEL = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    block_out_channels=(4,),
    layers_per_block=1,
    norm_num_groups=2,
    num_class_embeds=3,
    attention_head_dim=2,
)
TWO_LEVELS = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(4, 8),
    layers_per_block=1,
    norm_num_groups=2,
)


def products_of_diffusers(unet, sample, timestep, labels):
    """What diffusers' own convolutions and linear layers give for a sample [B, C, H, W], less their biases, by name.

    Those of the time embedding are left out.
    """
    model = UNet2DModel(**{name: value for name, value in unet.config.to_diffusers().items() if name[0] != "_"}).eval()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in unet.params.items()})
    found = {}

    def hook(name):
        def look(layer, inputs, output):
            shape = (1, -1, 1, 1) if output.ndim == 4 else (-1,)
            found[name] = (output - (0 if layer.bias is None else layer.bias.reshape(shape))).detach().numpy()

        return look

    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and "time_emb" not in name:
            layer.register_forward_hook(hook(name))
    with torch.no_grad():
        model(torch.from_numpy(sample), int(timestep), class_labels=torch.tensor(labels))
    return found
