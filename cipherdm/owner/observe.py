"""What a model's layers carry: measured by its owner, in plaintext, on public noise, and stored beside the checkpoint."""

# FROM cipherdm.models.condition_observation:
# What the layers of a U-Net with cross-attention carry: observed by its owner, in plaintext, on prompts of its own.

import hashlib
from collections.abc import Callable, Collection, Mapping
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
from ..models.layout import Block, unet_blocks
from ..models.unet import TIME_KINDS, UNet, check_takes_no_prompt
from ..protocols import DIRECT, direct

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


_TRANSFORMER_NORMS = {"self_attention": "norm1", "cross_attention": "norm2", "feed_forward": "norm3"}

_ATTENTIONS = {"self_attention": "attn1", "cross_attention": "attn2"}

_GATE = "ff.net.0.proj"

_RESNET_NORMS = {"resnet": ("norm1", "norm2"), "conv_out": ("conv_norm_out",), "transformer_in": ("norm",)}


@dataclass(frozen=True)
class Layers:
    """The layers that a calibration looks at, by diffusers' names, each in the order of execution.

    Attributes:
        group_norms: with the numbers of their groups.
        token_norms: LayerNorms.
        attentions: of both kinds, with the numbers of their heads.
        gates: the linear layers before gated GELUs.
    """

    group_norms: Mapping[str, int]
    token_norms: tuple[str, ...]
    attentions: Mapping[str, int]
    gates: tuple[str, ...]

    @classmethod
    def of(cls, unet: UNet, names: Collection[str] | None = None) -> "Layers":
        """Those of a UNet2DConditionModel, or of its blocks of these names."""
        blocks = [block for block in unet_blocks(unet.config) if names is None or block.name in names]
        group_norms = {
            _full_name(block, local): dict(block.static)["groups"]
            for block in blocks
            for local in _RESNET_NORMS.get(block.kind, ())
        }

        attentions = {
            _full_name(block, _ATTENTIONS[block.kind]): dict(block.static)["heads"]
            for block in blocks
            if block.kind in _ATTENTIONS
        }
        token_norms = [
            _full_name(block, _TRANSFORMER_NORMS[block.kind]) for block in blocks if block.kind in _TRANSFORMER_NORMS
        ]
        gates = [_full_name(block, _GATE) for block in blocks if block.kind == "feed_forward"]
        return cls(group_norms, tuple(token_norms), attentions, tuple(gates))


def _full_name(block: Block, local: str) -> str:
    """diffusers' name of a layer or a module that is called `local` within the block."""
    found = next(pair for pair in block.params if pair[0].startswith(f"{local}."))
    return found[1].removesuffix(found[0]) + local


@dataclass(frozen=True, eq=False)
class PromptedObservation:
    """What one call of the U-Net showed, by layer.

    Attributes:
        variances: [B, groups] of each GroupNorm's input, and [B, tokens] of each LayerNorm's, without eps.
        normalised: [B, C, H, W], each GroupNorm's output.
        scores: [B, heads, N, M] of each attention, before the softmax.
        gates: [B, C, N], what each GELU is applied to.
    """

    variances: Mapping[str, np.ndarray]
    normalised: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    gates: Mapping[str, np.ndarray]


def observe_prompted(
    unet: UNet,
    embeddings: np.ndarray,
    timesteps: np.ndarray,
    coefficients: np.ndarray,
    *,
    guided: bool,
    seed: int,
    visit: Callable[[int, PromptedObservation], None],
) -> None:
    """Sample in plaintext with the exact model, one picture for each prompt, and call `visit(step, observation)`.

    Args:
        embeddings: [B, tokens, width], or guided [2 B, tokens, width], those without the prompts first.
        timesteps: [steps], as `Schedule.timesteps`.
        coefficients: [steps, 3], as `Schedule.coefficients`, or guided [steps, 4], as `guided_coefficients` makes them; of a
            schedule without fresh noise.
        guided: whether there are two branches.
        seed: of the initial noise, which needs no secrecy.
    """
    branches = 2 if guided else 1
    size = unet.config.sample_size
    shape = (len(embeddings) // branches, unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
    sample = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    call = jax.jit(_recorded_prompted_call(unet))
    for step, timestep in enumerate(timesteps):
        eps, records = call(
            unet.params, np.concatenate([sample] * branches), np.float32([timestep]), np.float32(embeddings)
        )
        visit(step, PromptedObservation(*(jax.tree_util.tree_map(np.asarray, record) for record in records)))
        outputs = [sample, *np.split(np.asarray(eps), branches)]
        sample = sum(np.float32(factor) * output for factor, output in zip(coefficients[step], outputs, strict=False))


def _recorded_prompted_call(unet: UNet):
    """A function of (params, sample, timestep, embeddings) to eps and the four records of an observation."""
    layers, blocks = Layers.of(unet), unet_blocks(unet.config)

    def call(params, sample, timestep, embeddings):
        variances, normalised, scores, gates = {}, {}, {}, {}
        # Layers are met in the order of execution, so each call takes the next name.
        group_names, token_names = iter(layers.group_norms), iter(layers.token_norms)
        attention_names, gate_names = iter(layers.attentions), iter(layers.gates)

        def group_norm(local, x, *, groups, eps):
            name = next(group_names)
            variances[name] = jnp.var(x.reshape(x.shape[0], groups, -1), axis=-1)
            normalised[name] = direct.group_norm(local, x, groups=groups, eps=eps)
            return normalised[name]

        def layer_norm(local, x, *, eps):
            variances[next(token_names)] = jnp.var(x, axis=1)
            return direct.layer_norm(local, x, eps=eps)

        def attention(local, q, k, v, *, scale, softmax):
            scores[next(attention_names)] = jnp.einsum("bhdn,bhdm->bhnm", q * jnp.float32(scale), k)
            return direct.attention(local, q, k, v, scale=scale, softmax=softmax)

        def geglu(local, x, *, protocols):
            gates[next(gate_names)] = x[:, x.shape[1] // 2 :]
            return direct.geglu(local, x, protocols=protocols)

        recording = replace(DIRECT, group_norm=group_norm, layer_norm=layer_norm, attention=attention, geglu=geglu)
        values = {"sample": sample, "timestep": timestep, "encoder_hidden_states": embeddings}
        for block in blocks:
            local = {name: params[full] for name, full in block.params}
            protocols = DIRECT if block.kind in TIME_KINDS else recording
            result = block(local, *(values[name] for name in block.inputs), protocols=protocols)
            values.update(zip(block.outputs, result if isinstance(result, tuple) else (result,), strict=True))
        return values["eps"], (variances, normalised, scores, gates)

    return call
