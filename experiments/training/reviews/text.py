"""The tokenizer of reviews-tiny: MiniLM's word pieces, as far as they occur in the training texts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import BertTokenizerFast

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_pieces(folder: Path, texts: Sequence[str], least_seen: int) -> list[str]:
    """Return the pieces that occur often enough in the texts, after those that mark something, and all single characters."""
    whole = BertTokenizerFast.from_pretrained(folder, local_files_only=True)
    found = Counter(piece for text in texts for piece in whole.tokenize(text))
    known = whole.get_vocab()
    letters = {letter for text in texts for letter in whole.backend_tokenizer.normalizer.normalize_str(text)}
    kept = {piece for piece, count in found.items() if count >= least_seen}
    kept |= {form for letter in letters for form in (letter, f"##{letter}") if form in known}
    return [*_SPECIAL, *sorted(kept - set(_SPECIAL), key=known.get)]


def make_tokenizer(pieces: Sequence[str], tokens: int) -> BertTokenizerFast:
    """Return transformers' tokenizer of these word pieces."""
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return BertTokenizerFast(vocab=vocabulary, model_max_length=tokens)


def principal_embeddings(folder: Path, pieces: Sequence[str], width: int) -> torch.Tensor:
    """Return MiniLM's embeddings of word pieces [V, width], in the `width` directions in which they differ most."""
    known = BertTokenizerFast.from_pretrained(folder, local_files_only=True).get_vocab()
    with safe_open(folder / "model.safetensors", framework="np") as file:
        table = file.get_tensor("embeddings.word_embeddings.weight")[[known[piece] for piece in pieces]]
    centred = table - table.mean(0)
    *_, directions = np.linalg.svd(centred, full_matrices=False)
    return torch.from_numpy(np.ascontiguousarray(centred @ directions[:width].T))


def batch_of(tokenizer: BertTokenizerFast, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return ids and mask [B, tokens] of texts, which are cut after the tokenizer's length."""
    found = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
    return dict(found)
