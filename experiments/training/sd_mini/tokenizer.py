"""A CLIP tokenizer in which each word of the captions is one token."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTokenizer

from cipherdm.files import replacing

from .captions import vocabulary

END_OF_WORD = "</w>"

BEGIN, END = "<|startoftext|>", "<|endoftext|>"

_LETTERS = tuple(map(chr, range(ord("a"), ord("z") + 1)))


def build_tokenizer(tokens: int) -> CLIPTokenizer:
    """A tokenizer for prompts of `tokens` tokens, beginning and end included: byte pairs that merge to the captions' words.

    Other words fall into pairs and letters, which are in the vocabulary too; other signs become the end token, which is
    also the padding, as in Stable Diffusion.
    """
    vocabulary, merges = vocabulary_and_merges()
    return CLIPTokenizer(vocabulary, merges, model_max_length=tokens)


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids: letters, letters at a word's end, merged pairs in their order, then beginning and end; and the merges."""
    merges = _merges()
    letters = [letter + end for end in ("", END_OF_WORD) for letter in _LETTERS]
    names = dict.fromkeys([*letters, *(first + second for first, second in merges), BEGIN, END])
    return {name: index for index, name in enumerate(names)}, merges


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write what transformers reads, now (tokenizer.json) and in versions before 5 (vocab.json and merges.txt)."""
    tokenizer.save_pretrained(folder)
    vocabulary, merges = vocabulary_and_merges()
    with replacing(folder / "vocab.json") as temporary:
        temporary.write_text(json.dumps(vocabulary, indent=0) + "\n")
    with replacing(folder / "merges.txt") as temporary:
        temporary.write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")


def _merges() -> list[tuple[str, str]]:
    """Byte-pair encoding of the captions' words, until each is whole; the same merges at every call.

    A word's last letter is a capital while pairs are counted. The trainer's own `end_of_word_suffix` numbers letters at a
    word's end in random order, and pairs that are as frequent as each other merge in the order of their letters' numbers.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([word[:-1] + word[-1].upper() for word in vocabulary()], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(_with_end(first), _with_end(second)) for first, second in merges]


def _with_end(token: str) -> str:
    return token.lower() + END_OF_WORD if token[-1].isupper() else token
