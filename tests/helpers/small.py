"""The small models of several tests. Change a field with `dataclasses.replace`."""

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
