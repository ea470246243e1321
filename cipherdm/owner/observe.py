"""Values that a model's layers carry, observed by its owner in plaintext on public noise; and the stored fits."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..errors import CipherDMError, refuse
from ..files import replacing
from ..models.blocks import LAYER_NORM_EPS
from ..models.building import Block
from ..models.config import UNetConditionConfig
from ..models.layout import last_resnet, unet_blocks
from ..models.unet import UNet, check_draws_without_prompt, run_blocks
from ..protocols import DIRECT, Protocols, direct
from ..schedules import Schedule, whole_steps

FILE = "calibration.safetensors"

# By kind of block: its GroupNorms, its LayerNorm, and the module in it that attends ("" for the block itself).
_GROUP_NORMS = {
    "resnet": ("norm1", "norm2"),
    "conv_out": ("conv_norm_out",),
    "attention": ("group_norm",),
    "transformer_in": ("norm",),
}
_TOKEN_NORMS = {"self_attention": "norm1", "cross_attention": "norm2", "feed_forward": "norm3"}
_TOKEN_NORMS |= {"head": "norm", "norm": "norm", "patches_out": "norm_out"}
_ATTENTIONS = {"attention": "", "self_attention": "attn1.", "cross_attention": "attn2."}
# Linear layers before an activation, or a gate.
_INNER = {"feed_forward": "ff.net.0.proj", "head": "pooler", "hint": ""}


@dataclass(frozen=True)
class Layers:
    """The layers that an observation looks at, by diffusers' names, each in the order of execution."""

    group_norms: Mapping[str, int]  # with the numbers of their groups
    activations: Mapping[str, str]  # functions applied after a GroupNorm; GroupNorms before attention have none
    token_norms: Mapping[str, float]  # LayerNorms, with their eps
    attentions: Mapping[str, int]  # attention modules with softmax, with the numbers of their heads
    linear_attentions: Mapping[str, int]  # those without softmax, with the numbers of their heads
    gates: tuple[str, ...]  # linear layers before gated GELUs
    inner: Mapping[str, str]  # linear layers before activations without a gate, with these functions

    @classmethod
    def of(cls, unet: UNet, names: Collection[str] | None = None) -> "Layers":
        """Return the layers of a U-Net, or of its blocks of these names."""
        return cls.of_blocks(block for block in unet_blocks(unet.config) if names is None or block.name in names)

    @classmethod
    def of_blocks(cls, blocks: Iterable[Block]) -> "Layers":
        """Return the layers of some blocks."""
        groups, activations, token_norms, gates, inner = {}, {}, {}, [], {}
        attentions: dict[str, dict[str, int]] = {"softmax": {}, "linear": {}}
        for block in blocks:
            static = dict(block.static)
            full = block.layers
            for local in _GROUP_NORMS.get(block.kind, ()):
                if local in full:  # attention has a normalisation or none
                    groups[full[local]] = static["groups"]
                    if "act_fn" in static:
                        activations[full[local]] = static["act_fn"]
            if block.kind in _TOKEN_NORMS:
                token_norms[full[_TOKEN_NORMS[block.kind]]] = static.get("eps", LAYER_NORM_EPS)
            if block.kind in _ATTENTIONS:
                module = full[f"{_ATTENTIONS[block.kind]}to_q"].removesuffix(".to_q")
                attentions[static.get("kernel", "softmax")][module] = static["heads"]
            if (name := full.get(_INNER.get(block.kind))) is not None:
                if block.kind == "feed_forward" and "act_fn" not in static:
                    gates.append(name)
                elif (act_fn := static.get("act_fn", "tanh")) is not None:
                    inner[name] = act_fn
        softmax, linear = attentions.values()
        return cls(groups, activations, token_norms, softmax, linear, tuple(gates), inner)


class Observation(NamedTuple):
    """Values seen in one call of the U-Net, by layer (diffusers' names)."""

    means: Mapping[str, np.ndarray]  # [B, groups] of each GroupNorm's input
    # Without eps, [B, groups] of each GroupNorm's input and [B, tokens] of each LayerNorm's.
    variances: Mapping[str, np.ndarray]
    normalised: Mapping[str, np.ndarray]  # [B, C, ...], each GroupNorm's output
    scores: Mapping[str, np.ndarray]  # [B, heads, N, M] of each attention with softmax, before it
    keys: Mapping[str, np.ndarray]  # [B, heads, d, M] of each attention with softmax
    gates: Mapping[str, np.ndarray]  # [B, C, ...], the input of each gated GELU, and of each activation without a gate


def observe(
    unet: UNet,
    schedule: Schedule,
    conditions: np.ndarray,
    *,
    guided: bool = False,
    hints: np.ndarray | None = None,
    seed: int,
    visit: Callable[[int, Any], None],
    call: Callable | None = None,
    reuse: int = 1,
) -> None:
    """Sample in plaintext with the exact model, and call `visit(step, observation)` at each step.

    Args:
        unet: the model.
        schedule: a schedule without fresh noise; guided, its coefficients are those of `guided_coefficients`.
        conditions: one row for each image: labels as `one_hot_labels` makes them, or embeddings [B, tokens, width]. Guided,
            embeddings [2 B, tokens, width], those without the prompts first.
        guided: True if there are two branches.
        hints: [B, C, H, W] in [0, 1], one for each image, for a model with a ControlNet.
        seed: seed of the initial noise, which is public.
        visit: called at each step, with an `Observation` or with the records of `call`.
        call: function of (params, sample, timestep [1], conditions, hints) to the predicted noise and arrays to be recorded
            instead.
        reuse: as in `cipherdm.sample`; not with `call`.
    """
    noisy = schedule.coefficients[:, -1]
    refuse({f"{schedule.name} adds fresh noise, and layers are observed without: take one step": noisy.any()})
    call = jax.jit(call or _recorded_call(unet))
    whole, weights = whole_steps(schedule.steps, reuse)
    kept: list[np.ndarray] = []  # deep features of the last two whole steps
    branches = 2 if guided else 1
    hints = None if hints is None else np.concatenate([hints] * branches)
    shape = (len(conditions) // branches, *unet.config.sample_shape)
    sample = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(schedule.deviation)
    for step, timestep in enumerate(schedule.timesteps):
        deep = (
            () if whole[step] else (sum(f * each for f, each in zip(weights[step], [kept[0], kept[-1]], strict=True)),)
        )
        given = (unet.params, np.concatenate([sample] * branches), np.float32([timestep]), conditions, hints)
        eps, records, *computed = call(*given, *deep)
        if whole[step] and reuse > 1:
            kept = [np.asarray(computed[0]), *kept][:2]
        visit(step, jax.tree_util.tree_map(np.asarray, records))
        terms = [sample, *np.split(np.asarray(eps), branches)]
        factors = schedule.coefficients[step, : len(terms)]  # the last one is that of fresh noise
        sample = sum(np.float32(factor) * term for factor, term in zip(factors, terms, strict=True))


def one_hot_labels(unet: UNet, per_class: int) -> np.ndarray:
    """Return labels 0, 1, ..., 0, 1, ... for `per_class` images of each class, as float32 rows [B, classes].

    A model without classes has one. Raises CipherDMError if the model takes prompts.
    """
    check_draws_without_prompt(unet)
    return np.tile(np.eye(unet.config.num_class_embeds or 1, dtype=np.float32), (per_class, 1))


def save_calibration(arrays: Mapping[str, np.ndarray], unet: UNet) -> Path:
    """Write fits and a digest of the weights to `calibration.safetensors` in the model's folder, and return the path."""
    path = unet.folder / FILE
    with replacing(path) as temporary:
        stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(stored, temporary, metadata={"weights": weights_digest(unet)})
    return path


def load_calibration(unet: UNet) -> dict[str, np.ndarray]:
    """Read the fits that `save_calibration` wrote. Raises CipherDMError if there are none, or if they fit other weights."""
    remedy = f"run `cipherdm calibrate {unet.folder or 'MODEL'}` first."
    if unet.folder is None or not (unet.folder / FILE).is_file():
        where = unet.folder or "a model that was not read from a folder"
        raise CipherDMError(f"{where} has no {FILE}, which these protocols need: {remedy}")
    with safe_open(unet.folder / FILE, framework="np") as file:
        if (file.metadata() or {}).get("weights") != weights_digest(unet):
            raise CipherDMError(
                f"{unet.folder / FILE} belongs to other weights, or another conditioning scale: {remedy}"
            )
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)


def weights_digest(unet: UNet) -> str:
    """Return the SHA-256 of the weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(unet.params):
        digest.update(name.encode() + np.ascontiguousarray(unet.params[name]).tobytes())
    return digest.hexdigest()


def _recorded_call(unet: UNet):
    """A function of (params, sample, timestep, conditions, hints[, deep]) to eps, an `Observation`, and the deep features.

    These are what the last residual block takes from those below; if some are given it takes them in their place.
    """
    layers, blocks = Layers.of(unet), unet_blocks(unet.config)
    last = last_resnet(blocks)
    condition = "encoder_hidden_states" if isinstance(unet.config, UNetConditionConfig) else "class_onehot"

    def call(params, sample, timestep, conditions, hints, *deep):
        seen = Observation({}, {}, {}, {}, {}, {})
        recording = recording_protocols(layers, seen)
        values = {"sample": sample, "timestep": timestep, condition: conditions, "hint": hints}
        values = run_blocks(blocks[:last], params, values, protocols=recording)
        name = blocks[last].inputs[0]
        values |= dict(zip([name], deep, strict=False))
        return run_blocks(blocks[last:], params, values, protocols=recording)["eps"], seen, values[name]

    return call


def recording_protocols(layers: Layers, seen: Observation) -> Protocols:
    """Return the exact functions, which also note in `seen` what layers carry; for one run of all of the layers' blocks."""
    # Layers are met in the order of execution, so each call takes the next name.
    group_names, token_names = iter(layers.group_norms), iter(layers.token_norms)
    attention_names, gate_names, inner_names = iter(layers.attentions), iter(layers.gates), iter(layers.inner)

    def group_norm(local, x, *, groups, eps):
        name = next(group_names)
        rows = x.reshape(x.shape[0], groups, -1)
        seen.means[name], seen.variances[name] = jnp.mean(rows, axis=-1), jnp.var(rows, axis=-1)
        seen.normalised[name] = direct.group_norm(local, x, groups=groups, eps=eps)
        return seen.normalised[name]

    def layer_norm(local, x, *, eps):
        seen.variances[next(token_names)] = jnp.var(x, axis=1)
        return direct.layer_norm(local, x, eps=eps)

    def attention(local, q, k, v, *, scale, softmax, **masked):
        name = next(attention_names)
        seen.scores[name] = jnp.einsum("bhdn,bhdm->bhnm", q * jnp.float32(scale), k)
        seen.keys[name] = k
        return direct.attention(local, q, k, v, scale=scale, softmax=softmax, **masked)

    def geglu(local, x, *, protocols):
        seen.gates[next(gate_names)] = x[:, x.shape[1] // 2 :]
        return direct.geglu(local, x, protocols=protocols)

    def activation(local, x, *, act_fn, protocols):
        seen.gates[next(inner_names)] = x
        return direct.activation(local, x, act_fn=act_fn, protocols=protocols)

    of_tokens = {"layer_norm": layer_norm, "attention": attention, "geglu": geglu, "activation": activation}
    return replace(DIRECT, group_norm=group_norm, **of_tokens)
