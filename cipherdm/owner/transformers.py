"""The owner's work for transformers, in the clear: observe their layers on texts of its own, fit them for FAST, and fold."""

from collections.abc import Iterator, Mapping
from functools import partial

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from ..approximations import exact
from ..errors import CipherDMError, refuse
from ..models.building import Block
from ..models.transformer import Transformer, TransformerConfig, one_hot_tokens, padding_of, transformer_blocks
from ..models.unet import run_blocks
from ..progress import Progress
from ..protocols import Protocols
from ..protocols.fast import VALUE_BITS, WEIGHT_BITS
from ..protocols.fast_attention import COUNT_BITS, TOKEN_BITS
from .calibrate import SAMPLES, SPREAD, fit_attention, newton_steps, with_extremes
from .fits import fit_even, fit_with_cubic, widened_ends
from .fold import fold_exponential, fold_inner, prepare_small
from .fold_norms import Fits, fold_token_norm, typical_variances
from .observe import Layers, Observation, load_calibration, recording_protocols
from .prepared import PreparedWeights

_BATCH = 32  # texts at a time
ROWS = 4000  # rows of scores that an exponential is fitted to
INPUT_BITS = {"mask": TOKEN_BITS, "share": COUNT_BITS, "onehot": 0, "unit": 0, "place": 0, "slot": 0, "kept": 0}
"""Fraction bits of what a client brings, by name, for sets on `Fixed` numbers."""

_FITS = {
    "gelu": ("even", partial(fit_even, function=exact.gelu)),
    "gelu_new": ("even", partial(fit_even, function=exact.gelu)),  # its tanh form differs by less than a fit
    "tanh": ("cubic", partial(fit_with_cubic, np.tanh)),
}
"""How activations are fitted; "gelu_quad" is exact."""


def fit_transformer(
    model: Transformer, ids: np.ndarray, mask: np.ndarray, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Run the exact model on texts, fit every layer, and return the arrays that `save_calibration` stores.

    Names and shapes are those of `calibrate`'s models with prompts, with one step. A row's exponentials have their mean
    inverted, and not their sum, because texts have different lengths. Activations without a gate have "LAYER.even" or
    "LAYER.cubic" [1, C, 5 or 7].

    Args:
        model: the model.
        ids, mask: whole numbers [K, N] of each text, as `apply_transformer` takes them.
        seed: seed of the choice of samples.
        progress: called as progress(done, K, "calibrate").
    """
    layers, generator = layers_of(model), np.random.default_rng(seed)
    fitted_gates = [name for name, act_fn in layers.inner.items() if act_fn in _FITS]
    arrays: dict[str, np.ndarray] = {"timesteps": np.zeros(1, np.float32)}

    def some_rows(rows: np.ndarray) -> np.ndarray:
        chosen = generator.choice(len(rows), min(ROWS, len(rows)), replace=False)
        return rows[with_extremes(rows, chosen)]

    def sampled(batch: Observation) -> Observation:
        # All scores of MiniLM on 256 texts would take 19 GB.
        rows = {name: scores.reshape(-1, scores.shape[3]) for name, scores in batch.scores.items()}
        scores = {name: some_rows(each - np.nanmean(each, 1, keepdims=True)) for name, each in rows.items()}
        gates = {name: batch.gates[name] for name in fitted_gates}
        return Observation({}, batch.variances, {}, scores, {}, gates)

    seen = [sampled(batch) for batch in observed(model, ids, mask, progress, "calibrate")]

    def of(field: str, name: str) -> np.ndarray:
        return np.concatenate([getattr(batch, field)[name] for batch in seen])

    with threadpool_limits(1):
        for name in layers.token_norms:
            values = of("variances", name) + model.config.eps
            spread = np.float32([[[values.min() / SPREAD, values.max() * SPREAD]]])
            arrays |= {f"{name}.spread": spread, f"{name}.count": np.int32([model.config.width])}
            arrays[f"{name}.newton"] = np.int32([newton_steps(spread)])
        for name in layers.attentions:
            fitted = fit_attention([some_rows(of("scores", name)).astype(np.float64)], np.nanmean)
            arrays |= {f"{name}.{leaf}": np.asarray(found, np.float32) for leaf, found in fitted.items()}
        for name in fitted_gates:
            values = np.moveaxis(of("gates", name), 1, 0)  # [C, K, N], or [C, K, 1] of the token that is read
            channels = values.reshape(len(values), -1)
            leaf, fit = _FITS[layers.inner[name]]
            some = channels[:, generator.choice(channels.shape[1], min(SAMPLES, channels.shape[1]), replace=False)]
            arrays[f"{name}.{leaf}"] = fit(some, ends=widened_ends(channels))[None].astype(np.float32)
    return arrays


def layers_of(model: Transformer) -> Layers:
    """Return the layers that are observed."""
    return Layers.of_blocks(_observed(model))


def observed(
    model: Transformer, ids: np.ndarray, mask: np.ndarray, progress: Progress | None = None, label: str = "observe"
) -> Iterator[Observation]:
    """Run the exact model on texts and yield what layers carry, for some texts at a time. What is no score is NaN.

    Padding asks too, since parties compute what nobody reads, and must not overflow. Arguments are those of `fit_transformer`.
    """
    call = jax.jit(_recorded_call(model))
    for first in range(0, len(ids), _BATCH):
        part = slice(first, first + _BATCH)
        arrays = call(model.params, one_hot_tokens(ids[part], model.config.vocab_size), mask[part].astype(np.float32))
        seen = jax.tree_util.tree_map(np.asarray, arrays)
        there = mask[part].astype(bool)[:, None, None, :]
        if model.config.kind == "gpt2":
            there = there & np.tri(mask.shape[1], dtype=bool)
        yield seen._replace(scores={name: np.where(there, scores, np.nan) for name, scores in seen.scores.items()})
        if progress is not None:
            progress(min(first + _BATCH, len(ids)), len(ids), label)


def _observed(model: Transformer) -> tuple[Block, ...]:
    """The blocks that are observed. GPT-2 computes any token as the last one, so all of them are."""
    return transformer_blocks(model.config, every_token=model.config.kind == "gpt2")


def _recorded_call(model: Transformer):
    """A function of (params, onehot, mask) to an `Observation`."""
    blocks = _observed(model)

    def call(params, onehot, mask):
        seen = Observation({}, {}, {}, {}, {}, {})
        recording = recording_protocols(Layers.of_blocks(blocks), seen)
        run_blocks(blocks, params, {"onehot": onehot, "mask": padding_of(mask)}, protocols=recording)
        return seen

    return call


def prepare_transformer(
    model: Transformer, protocols: Protocols, calibration: Mapping[str, np.ndarray] | None = None
) -> PreparedWeights:
    """Return what the owner of a transformer shares: all weights, for FAST with the fits folded into them.

    Args:
        model: the model.
        protocols: the protocol set.
        calibration: the fits; read from the model's folder by default.

    Raises:
        CipherDMError: the set needs a calibration that the folder lacks, or does not compute the model's layers.
    """
    refuse({"fast-guarded does not compute transformers; choose fast": protocols.prepare == "fast-guarded"})
    weights = PreparedWeights(dict(model.params), {}, {})
    if protocols.small_bits is not None:
        prepare_small(weights, Layers.of_blocks(transformer_blocks(model.config)), protocols.small_bits)
    if protocols.prepare is None:
        return weights
    fits = Fits.at(load_calibration(model) if calibration is None else calibration, np.zeros(1))
    layers, config = Layers.of_blocks(transformer_blocks(model.config)), model.config
    for name, act_fn in layers.inner.items():
        fold_inner(weights, fits.stored, name, act_fn)
    unit = _take_unit(weights, fits, config)
    for name in layers.token_norms:
        settings = {"kept": config.kind == "bert" and not name.startswith("head"), "eps": config.eps}
        if config.kind == "gpt2" or name == "layers.0.norm1":
            settings["unit"] = unit
        fold_token_norm(weights, fits, name, **settings)
    for name, heads in layers.attentions.items():
        fold_exponential(weights, fits, name, config.width // heads)
        if config.kind == "gpt2" and f"{name}.floor" in fits.stored:
            raise CipherDMError(f"The scores of {name} are too far apart for FAST; choose another protocol set.")
        weights.static[f"{name}.to_q.centred"] = int(f"{name}.floor" not in fits.stored)
    # There is one step, so what is by step is constant.
    weights.constant.update({name: array[0] for name, array in weights.by_step.items()})
    weights.by_step.clear()
    for name in weights.constant:
        if name.endswith(".bias"):  # the bits of the product that it is added to
            weights.bits.setdefault(name, VALUE_BITS + WEIGHT_BITS)
    weights.bits.update(INPUT_BITS)
    return weights


def _take_unit(weights: PreparedWeights, fits: Fits, config: TransformerConfig) -> float:
    """Divide what normalisations alone read by its typical deviation, where it is made, and return that; exact.

    This is BERT's embeddings, and the whole stream between GPT-2's layers.
    """
    unit = float(np.sqrt(typical_variances(fits, "layers.0.norm1")[0]))
    written = ["embeddings.words", "embeddings.positions"]
    if config.kind == "gpt2":
        outputs = (
            f"layers.{index}.{name}" for index in range(config.layers) for name in ("attn1.to_out.0", "ff.net.2")
        )
        written += [f"{name}.{leaf}" for name in outputs for leaf in ("weight", "bias")]
    weights.constant.update({name: weights.constant[name] / unit for name in written})
    return unit
