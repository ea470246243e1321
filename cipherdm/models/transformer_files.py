"""Folders of transformers that transformers saved: their weights under our names, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import CipherDMError
from .checkpoint import CONFIG, check_shapes, find_model, read_json, weights_in
from .transformer import Transformer, TransformerConfig, transformer_shapes


def load_transformer(folder: str | Path) -> Transformer:
    """Read a BertForSequenceClassification or a GPT2LMHeadModel that transformers saved, with safetensors.

    Args:
        folder: path of the model's folder, or a name in data/models.

    Raises:
        CipherDMError: something is missing, unreadable, of another architecture, not finite, or too large for fixed point.
    """
    folder = find_model(folder)
    try:
        config = TransformerConfig.from_transformers(read_json(folder / CONFIG))
    except CipherDMError as error:
        raise CipherDMError(f"{folder / CONFIG}: {error}") from error
    stored = weights_in(folder, "model.safetensors")
    params = _renamed(config, stored, folder)
    check_shapes(transformer_shapes(config), params, str(folder / "model.safetensors"))
    return Transformer(config, params, folder)


def is_transformer(folder: Path) -> bool:
    """Return whether a folder is that of a model that transformers saved, and not of one of diffusers."""
    path = folder / CONFIG
    return path.is_file() and "_class_name" not in (values := read_json(path)) and "architectures" in values


_BERT_LAYER = {
    "attention.self.query": "attn1.to_q",
    "attention.self.key": "attn1.to_k",
    "attention.self.value": "attn1.to_v",
    "attention.output.dense": "attn1.to_out.0",
    "attention.output.LayerNorm": "norm3",
    "intermediate.dense": "ff.net.0.proj",
    "output.dense": "ff.net.2",
}


def _renamed(config: TransformerConfig, stored: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Return transformers' state dict under our names. BERT's normalisations after a layer are those before the next one."""

    def tensor(name: str) -> np.ndarray:
        if name not in stored:  # GPT-2 as OpenAI published it is the inner model alone
            name = name.removeprefix("transformer.")
        if name not in stored:
            raise CipherDMError(f"{folder}: a checkpoint of another architecture than its {CONFIG} says: no {name}.")
        return np.asarray(stored[name], np.float32)

    def pair(ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {f"{ours}.{leaf}": tensor(f"{theirs}.{leaf}") for leaf in ("weight", "bias")}

    if config.kind == "gpt2":
        return _renamed_gpt2(config, tensor, pair, stored.__contains__)
    words = tensor("bert.embeddings.word_embeddings.weight")
    # All tokens of a text are of the first type.
    first_type = tensor("bert.embeddings.token_type_embeddings.weight")[0]
    positions = tensor("bert.embeddings.position_embeddings.weight") + first_type
    params = {"embeddings.words": words, "embeddings.positions": positions}
    before = "bert.embeddings.LayerNorm"
    for index in range(config.layers):
        path = f"bert.encoder.layer.{index}"
        params |= pair(f"layers.{index}.norm1", before)
        for theirs, ours in _BERT_LAYER.items():
            params |= pair(f"layers.{index}.{ours}", f"{path}.{theirs}")
        before = f"{path}.output.LayerNorm"
    params |= pair("head.norm", before) | pair("head.pooler", "bert.pooler.dense")
    return params | pair("head.classifier", "classifier")


def _renamed_gpt2(config: TransformerConfig, tensor, pair, has) -> dict[str, np.ndarray]:
    """Return GPT-2's state dict under our names. Linear layers are stored [inputs, outputs], q, k and v as one."""
    params = {
        "embeddings.words": tensor("transformer.wte.weight"),
        "embeddings.positions": tensor("transformer.wpe.weight"),
    }
    for index in range(config.layers):
        ours, theirs = f"layers.{index}", f"transformer.h.{index}"
        params |= pair(f"{ours}.norm1", f"{theirs}.ln_1") | pair(f"{ours}.norm3", f"{theirs}.ln_2")
        for leaf in ("weight", "bias"):
            parts = np.split(tensor(f"{theirs}.attn.c_attn.{leaf}").T, 3)
            params |= {
                f"{ours}.attn1.{name}.{leaf}": part for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True)
            }
            for name, layer_name in (
                ("attn1.to_out.0", "attn.c_proj"),
                ("ff.net.0.proj", "mlp.c_fc"),
                ("ff.net.2", "mlp.c_proj"),
            ):
                params[f"{ours}.{name}.{leaf}"] = tensor(f"{theirs}.{layer_name}.{leaf}").T
    # A model that does not say otherwise reads the next word by the table of the words.
    params["head.lm_head.weight"] = tensor("lm_head.weight") if has("lm_head.weight") else params["embeddings.words"]
    params |= pair("head.norm", "transformer.ln_f")
    return {name: np.ascontiguousarray(array) for name, array in params.items()}
