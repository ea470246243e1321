"""What the layers of a U-Net with cross-attention carry: observed by its owner, in plaintext, on prompts of its own."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ..protocols import DIRECT, direct
from .builder import Block
from .layout import unet_blocks
from .unet import TIME_KINDS, UNet

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
    call = jax.jit(_recorded_call(unet))
    for step, timestep in enumerate(timesteps):
        eps, records = call(
            unet.params, np.concatenate([sample] * branches), np.float32([timestep]), np.float32(embeddings)
        )
        visit(step, PromptedObservation(*(jax.tree_util.tree_map(np.asarray, record) for record in records)))
        outputs = [sample, *np.split(np.asarray(eps), branches)]
        sample = sum(np.float32(factor) * output for factor, output in zip(coefficients[step], outputs, strict=False))


def _recorded_call(unet: UNet):
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
