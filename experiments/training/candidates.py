"""Measurements behind two choices: the architecture of mnist10, and PyTorch rather than JAX for training."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cipherdm.datasets import load_mnist
from cipherdm.records import write_record

from .checkpoint import Run
from .loop import noise_levels, train_step
from .recipes import RECIPES, TrainingConfig

_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

# Sizes for ten digits: channels of the three levels, whether 7x7 attends (in all its blocks, in the middle, nowhere).
_SIZES = (
    ((8, 32, 64), "all"),
    ((8, 32, 64), "middle"),
    ((16, 32, 32), "middle"),
    ((8, 16, 64), "middle"),
    ((8, 16, 64), "nowhere"),
    ((8, 16, 32), "middle"),
)


def candidates() -> tuple[TrainingConfig, ...]:
    """Configurations for mnist10 that differ in channels and attention."""
    base = RECIPES["mnist10"]
    found = []
    for channels, attention in _SIZES:
        down, up = ["DownBlock2D"] * 3, ["UpBlock2D"] * 3
        if attention == "all":
            down[2], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
        found.append(
            dataclasses.replace(
                base,
                name=f"{'-'.join(map(str, channels))}, attention {attention}",
                block_out_channels=channels,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                attention_head_dim=channels[-1],
                add_attention=attention != "nowhere",
            )
        )
    return tuple(found)


def costs(config: TrainingConfig) -> dict[str, int]:
    """What a secure call on one image depends on, counted by running the model once.

    Keys: `parameters`; `multiply_adds` of convolutions, linear layers and attention; `activation_elements` through SiLU
    or Mish; `softmax_elements`; `resnets` and `attentions`, the layers that determine the rounds. Time embeddings count
    as elements and multiply-adds here, though the owner computes them in the clear.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    unet = config.unet().eval()
    names = ("multiply_adds", "activation_elements", "softmax_elements", "resnets", "attentions")
    count = {"parameters": sum(parameter.numel() for parameter in unet.parameters()), **dict.fromkeys(names, 0)}

    def visit(module: nn.Module, _: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            count["multiply_adds"] += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            count["multiply_adds"] += output.numel() * module.in_features
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


def compare_candidates(out: str | Path, *, steps: int = 800, say: Callable[[str], None] = print) -> None:
    """Train every candidate for `steps` steps on the same batches, and record losses beside costs in `out`.

    The recipe's loss without its guidance, which would add a classifier's noise to the comparison, and with the learning
    rate's cosine as long as the trial.
    """
    torch.set_num_threads(1)
    images = torch.from_numpy(load_mnist("train").images)
    class_ids = load_mnist("train").labels
    levels = noise_levels()
    rows = []
    for config in candidates():
        run = Run.start(dataclasses.replace(config, steps=steps, guidance=0.0), "cpu")
        seconds = time.process_time()
        while run.step < steps:
            train_step(run, images, class_ids, levels)
        seconds = (time.process_time() - seconds) / steps
        last = float(np.mean(run.losses[-steps // 5 :]))
        rows.append({"name": config.name, **costs(config), "loss": last, "cpu_seconds_per_step": seconds})
        say(str(rows[-1]))
        _write_candidates(out, rows, steps)


def _write_candidates(out: str | Path, rows: Sequence[dict[str, object]], steps: int) -> None:
    what = f"mean loss of the last fifth of {steps} steps on the same batches; costs are of one call on one image"
    write_record(out, {"what": what, "rows": list(rows)})


def compare_frameworks(
    out: str | Path, *, names: Sequence[str] = tuple(RECIPES), repeats: int = 5, say: Callable[[str], None] = print
) -> None:
    """Time one training step in PyTorch (diffusers' module) and in JAX with optax (ours), and record both in `out`.

    One thread each, the same batch, forward, backward and Adam; the fastest of `repeats` steps in processor time, since
    the machine may be busy. JAX's compile time is recorded apart. Run it in a fresh process: XLA reads its flags once.
    """
    os.environ.setdefault("XLA_FLAGS", _XLA_FLAGS)
    torch.set_num_threads(1)
    rows = []
    for name in names:
        config = RECIPES[name]
        row = {"name": name, "batch": config.batch, "torch_seconds": _torch_step(config, repeats)}
        row["jax_seconds"], row["jax_compile_seconds"] = _jax_step(config, repeats)
        rows.append(row)
        say(str(row))
    what = f"processor seconds of one training step, the fastest of {repeats}, one thread"
    write_record(out, {"what": what, "xla_flags": os.environ["XLA_FLAGS"], "rows": rows})


def _torch_step(config: TrainingConfig, repeats: int) -> float:
    run = Run.start(config, "cpu")
    images, class_ids = torch.zeros(config.batch, 1, 28, 28), np.zeros(config.batch, np.int64)
    levels = noise_levels()
    return _fastest(lambda: train_step(run, images, class_ids, levels), repeats)


def _jax_step(config: TrainingConfig, repeats: int) -> tuple[float, float]:
    import jax
    import optax

    from cipherdm.models import UNetConfig, init_unet, run_blocks, unet_blocks
    from cipherdm.protocols import DIRECT

    model = UNetConfig.from_diffusers(dict(config.unet().config))
    blocks, optimizer = unet_blocks(model), optax.adam(config.learning_rate)
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((config.batch, 1, 28, 28), dtype=np.float32)
    timesteps = generator.integers(0, 1000, config.batch).astype(np.float32)
    onehot = np.eye(len(config.digits), dtype=np.float32)[generator.integers(0, len(config.digits), config.batch)]

    def loss(params: dict) -> jax.Array:
        inputs = {"sample": noise, "timestep": timesteps, "class_onehot": onehot}
        return ((run_blocks(blocks, params, inputs, protocols=DIRECT)["eps"] - noise) ** 2).mean()

    @jax.jit
    def step(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params = dict(init_unet(model).params)
    state = optimizer.init(params)
    begin = time.process_time()
    compiled = step.lower(params, state).compile()
    seconds = time.process_time() - begin
    return _fastest(lambda: jax.block_until_ready(compiled(params, state)), repeats), seconds


def _fastest(step: Callable[[], object], repeats: int) -> float:
    step()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        step()
        seconds.append(time.process_time() - begin)
    return min(seconds)
