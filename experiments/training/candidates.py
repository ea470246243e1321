"""The measurement behind the architecture of mnist10: `python -m cipherdm_experiments.training.candidates [OUT.json]`."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from cipherdm.datasets import load_mnist
from cipherdm.records import MEASUREMENTS, write_record

from .digits import noise_objective, start
from .recipes import RECIPES, UNetTraining
from .run import one_thread

# Sizes for ten digits: channels of the three levels, whether 7x7 attends (in all its blocks, in the middle, nowhere).
_SIZES = (
    ((8, 32, 64), "all"),
    ((8, 32, 64), "middle"),
    ((16, 32, 32), "middle"),
    ((8, 16, 64), "middle"),
    ((8, 16, 64), "nowhere"),
    ((8, 16, 32), "middle"),
)


def candidates() -> tuple[UNetTraining, ...]:
    """Return configurations for mnist10 that differ in channels and attention."""
    return tuple(
        dataclasses.replace(
            RECIPES["mnist10"],
            name=f"{'-'.join(map(str, channels))}, attention {attention}",
            block_out_channels=channels,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D" if attention == "all" else "DownBlock2D"),
            up_block_types=("AttnUpBlock2D" if attention == "all" else "UpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=channels[-1],
            add_attention=attention != "nowhere",
        )
        for channels, attention in _SIZES
    )


def costs(config: UNetTraining) -> dict[str, int]:
    """Count what the cost of a secure call on one image depends on, by running the model once.

    Time embeddings count here, though the owner computes them in the clear.
    """
    unet = config.network().eval()
    names = ("multiply_adds", "activation_elements", "softmax_elements", "resnets", "attentions")
    count = {"parameters": unet.num_parameters(), **dict.fromkeys(names, 0)}

    def visit(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            count["multiply_adds"] += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.SiLU | nn.Mish):
            count["activation_elements"] += output.numel()
        elif isinstance(module, ResnetBlock2D):
            count["resnets"] += 1
        elif isinstance(module, Attention):
            tokens = output.shape[2] * output.shape[3]
            count["attentions"] += 1
            count["softmax_elements"] += module.heads * tokens**2
            count["multiply_adds"] += 2 * tokens**2 * output.shape[1]

    for module in unet.modules():
        module.register_forward_hook(visit)
    with torch.no_grad():
        unet(torch.zeros(1, 1, 28, 28), torch.tensor([0]), class_labels=torch.tensor([0]))
    return count


def compare_candidates(out: str | Path = MEASUREMENTS / "mnist10_candidates.json") -> None:
    """Train every candidate for 800 steps on the same batches, without guidance, and record losses beside costs."""
    steps, digits, rows = 800, load_mnist("train"), []
    what = f"mean loss of the last fifth of {steps} steps on the same batches; costs are of one call on one image"
    with one_thread():
        for config in candidates():
            config = dataclasses.replace(config, steps=steps, guidance=0.0)
            run = start(config)
            objective = noise_objective(run.model, config, digits)
            begin = time.process_time()
            while not run.finished:
                run.take_step(objective)
            seconds = (time.process_time() - begin) / steps
            last = float(np.mean(run.losses[-steps // 5 :]))
            rows.append({"name": config.name, **costs(config), "loss": last, "cpu_seconds_per_step": seconds})
            print(rows[-1])
            write_record(out, {"what": what, "rows": rows})


if __name__ == "__main__":
    compare_candidates(*sys.argv[1:])
