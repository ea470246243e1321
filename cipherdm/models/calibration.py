"""What a model's layers carry: measured by its owner, in plaintext, on public noise, and stored beside the checkpoint."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import CipherDMError
from ..files import replacing
from ..protocols import DIRECT, direct
from .layout import unet_blocks
from .unet import UNet, check_takes_no_prompt

FILE = "calibration.safetensors"
_NORMS = ("norm1", "norm2", "group_norm", "conv_norm_out")


@dataclass(frozen=True, eq=False)
class Observation:
    """What one call of the U-Net showed, by layer (diffusers' names).

    Attributes:
        timestep: of the call.
        means: [B, groups] of each normalisation's input.
        variances: [B, groups] of the same, without eps.
        normalised: [B, C, ...], each normalisation's output.
        scores: [B, heads, N, N] of each attention block with softmax, before it.
        keys: [B, heads, d, N] of the same.
    """

    timestep: int
    means: Mapping[str, np.ndarray]
    variances: Mapping[str, np.ndarray]
    normalised: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    keys: Mapping[str, np.ndarray]


def observe(
    unet: UNet,
    timesteps: np.ndarray,
    coefficients: np.ndarray,
    *,
    images_per_class: int,
    seed: int,
    visit: Callable[[int, Observation], None],
) -> np.ndarray:
    """Sample in plaintext with the exact model, and call `visit(step, observation)` at each step.

    Args:
        timesteps: [steps], as `Schedule.timesteps`.
        coefficients: [steps, 3], as `Schedule.coefficients`; of a schedule without fresh noise.
        images_per_class: how many images of each class are drawn together.
        seed: of the initial noise, which needs no secrecy.

    Returns:
        The labels of the images, int64 [B].
    """
    check_takes_no_prompt(unet)
    call = jax.jit(_recorded_call(unet))

    def look(step: int, records) -> None:
        visit(step, Observation(int(timesteps[step]), *(jax.tree_util.tree_map(np.asarray, part) for part in records)))

    return walk(unet, call, timesteps, coefficients, images_per_class=images_per_class, seed=seed, visit=look)


def walk(
    unet: UNet,
    call: Callable,
    timesteps: np.ndarray,
    coefficients: np.ndarray,
    *,
    images_per_class: int,
    seed: int,
    visit: Callable[[int, Any], None],
) -> np.ndarray:
    """Sample in plaintext, and hand on what a call of the U-Net recorded at each step.

    Args:
        call: (params, sample, timestep [1], onehot [B, classes]) to the predicted noise and the records.
        timesteps, coefficients, images_per_class, seed: as `observe` has them.
        visit: called as visit(step, records).

    Returns:
        The labels of the images, int64 [B].
    """
    check_takes_no_prompt(unet)
    classes = unet.config.num_class_embeds or 1
    labels = np.arange(classes * images_per_class) % classes
    size = unet.config.sample_size
    shape = (len(labels), unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    sample = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    for step, timestep in enumerate(timesteps):
        eps, records = call(unet.params, sample, np.float32([timestep]), np.eye(classes, dtype=np.float32)[labels])
        visit(step, records)
        sample = np.asarray(coefficients[step, 0] * sample + coefficients[step, 1] * np.asarray(eps))
    return labels


def norm_layers(unet: UNet) -> dict[str, int]:
    """The names of all normalisations with their numbers of groups, in the order of execution."""
    layers = {}
    for block in unet_blocks(unet.config):
        for local, full in block.params:
            if local.rpartition(".")[0] in _NORMS and local.endswith(".weight"):
                layers[full.removesuffix(".weight")] = dict(block.static)["groups"]
    return layers


def softmax_blocks(unet: UNet) -> tuple[str, ...]:
    """The names of all attention blocks with softmax, in the order of execution."""
    if unet.config.attention_kernel != "softmax":
        return ()
    return tuple(block.name for block in unet_blocks(unet.config) if block.kind == "attention")


def save_calibration(arrays: Mapping[str, np.ndarray], unet: UNet) -> Path:
    """Write fitted arrays and a digest of the weights to `calibration.safetensors` in the model's folder; returns the path."""
    path = unet.folder / FILE
    with replacing(path) as temporary:
        stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(stored, temporary, metadata={"weights": weights_digest(unet)})
    return path


def load_calibration(unet: UNet) -> dict[str, np.ndarray]:
    """Read what `save_calibration` wrote. Raises CipherDMError if there is none, or if it is of other weights."""
    remedy = f"run `cipherdm calibrate {unet.folder or 'MODEL'}` first."
    if unet.folder is None or not (unet.folder / FILE).is_file():
        where = unet.folder or "a model that was not read from a folder"
        raise CipherDMError(f"{where} has no {FILE}, which these protocols need: {remedy}")
    with safe_open(unet.folder / FILE, framework="np") as file:
        if (file.metadata() or {}).get("weights") != weights_digest(unet):
            raise CipherDMError(f"{unet.folder / FILE} belongs to other weights than those beside it: {remedy}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def weights_digest(unet: UNet) -> str:
    """SHA-256 of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(unet.params):
        digest.update(name.encode() + np.ascontiguousarray(unet.params[name]).tobytes())
    return digest.hexdigest()


def _recorded_call(unet: UNet):
    """A function of (params, sample, timestep, onehot) to eps and the five records of an `Observation`."""
    norms, attentions = list(norm_layers(unet)), list(softmax_blocks(unet))

    def call(params, sample, timestep, onehot):
        means, variances, normalised, scores, keys = {}, {}, {}, {}, {}
        # Layers are met in the order of execution, so each call takes the next name.
        norm_names, attention_names = iter(norms), iter(attentions)

        def group_norm(local, x, *, groups, eps):
            name = next(norm_names)
            rows = x.reshape(x.shape[0], groups, -1)
            means[name], variances[name] = jnp.mean(rows, axis=-1), jnp.var(rows, axis=-1)
            normalised[name] = direct.group_norm(local, x, groups=groups, eps=eps)
            return normalised[name]

        def attention(local, q, k, v, *, scale, softmax):
            name = next(attention_names)
            scores[name] = jnp.einsum("bhdn,bhdm->bhnm", q * jnp.float32(scale), k)
            keys[name] = k
            return direct.attention(local, q, k, v, scale=scale, softmax=softmax)

        recording = replace(DIRECT, group_norm=group_norm, attention=attention)
        values = {"sample": sample, "timestep": timestep, "class_onehot": onehot}
        for block in unet_blocks(unet.config):
            local = {name: params[full] for name, full in block.params}
            result = block(local, *(values[name] for name in block.inputs), protocols=recording)
            values[block.outputs[0]] = result
        return values["eps"], (means, variances, normalised, scores, keys)

    return call
