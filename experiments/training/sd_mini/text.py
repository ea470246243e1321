"""The text model of sd-mini, trained to tell at every token what the caption has said so far, and its tokenizer."""

import json
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cipherdm.files import replacing

from .captions import COLOURS, PLACES, SIZES, Caption, vocabulary
from .recipe import Objective, TextConfig

_COLOURS = tuple(COLOURS)
_ANSWERS = (SIZES, _COLOURS, tuple(range(10)), (None, *PLACES), _COLOURS)
ATTRIBUTES = dict(zip(("size", "colour", "digit", "place", "background"), _ANSWERS, strict=True))
"""What a caption says, and the answers to each."""

_END_OF_WORD = "</w>"


class CaptionModel(nn.Module):
    """transformers' CLIPTextModel and, for training alone, a linear layer that reads answers from each token."""

    def __init__(self, config: TextConfig, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                projection_dim=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.tokens,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        self.answers = nn.Linear(config.width, sum(map(len, ATTRIBUTES.values())))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [B, tokens, answers] for each of `ATTRIBUTES`, of ids [B, tokens]."""
        logits = self.answers(self.text(ids).last_hidden_state)
        return logits.split([len(choices) for choices in ATTRIBUTES.values()], dim=-1)


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Return token ids [B, tokens], padded and cut as StableDiffusionPipeline does."""
    settings = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(texts), return_tensors="pt", **settings).input_ids


def text_objective(config: TextConfig, tokenizer: CLIPTokenizer, captions: Sequence[Caption]) -> Objective:
    """Return the cross-entropy of the answers at every token that follows the words that say them.

    The model is causal: a token knows what came before it. Whichever token cross-attention looks at, it finds a digit's
    colour, and not only some colour.
    """
    ids = token_ids(tokenizer, [caption.text for caption in captions])
    answers, known = caption_answers(captions, ids.shape[1])

    def objective(model: CaptionModel, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(captions), size=config.optimisation.batch)
        logits = model(ids[rows])
        expected = answers[rows, None].expand(-1, ids.shape[1], -1)
        losses = []
        for index, told in enumerate(logits):
            chosen = known[rows, :, index]
            losses.append(functional.cross_entropy(told[chosen], expected[..., index][chosen]))
        return torch.stack(losses).mean()

    return objective


@torch.no_grad()
def understood(model: CaptionModel, tokenizer: CLIPTokenizer, captions: Sequence[Caption]) -> float:
    """Return the share of captions of which the end token tells all attributes right."""
    ids = token_ids(tokenizer, [caption.text for caption in captions])
    answers, _ = caption_answers(captions, ids.shape[1])
    told = torch.stack([logits[:, -1].argmax(-1) for logits in model(ids)], dim=-1)
    return float((told == answers).all(dim=1).float().mean())


def caption_answers(captions: Sequence[Caption], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the right answers [B, attributes], int64, and whether a token knows them, bool [B, tokens, attributes]."""
    answers, first = [], []
    for caption in captions:
        answers.append([choices.index(getattr(caption, name)) for name, choices in ATTRIBUTES.items()])
        # Token 0 is the beginning; "on" after the digit says that there is no place.
        place = len(caption.place.split()) if caption.place else 0
        first.append([2, 3, 4, 4 + max(1, place), 4 + place + 3])
    return torch.tensor(answers), torch.arange(tokens)[None, :, None] >= torch.tensor(first)[:, None, :]


def build_tokenizer(tokens: int) -> CLIPTokenizer:
    """Return a tokenizer for prompts of `tokens` tokens, beginning and end included.

    Byte pairs merge to the captions' words. Other words fall into pairs and letters, which are in the vocabulary too;
    other signs become the end token, which is also the padding, as in Stable Diffusion.
    """
    return CLIPTokenizer(*vocabulary_and_merges(), model_max_length=tokens)


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return token ids (letters, letters at a word's end, merged pairs, beginning and end) and the merges in their order."""
    merges = _merges()
    letters = [letter + end for end in ("", _END_OF_WORD) for letter in string.ascii_lowercase]
    names = dict.fromkeys([*letters, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"])
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
    """Merge the captions' words by byte pairs until each is whole; the same merges at every call.

    A word's last letter is a capital while pairs are counted. The trainer's own `end_of_word_suffix` numbers letters at a
    word's end in random order, and pairs that are as frequent as each other merge in the order of their letters' numbers.
    """
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([word[:-1] + word[-1].upper() for word in vocabulary()], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(token.lower() + _END_OF_WORD if token[-1].isupper() else token for token in pair) for pair in merges]
