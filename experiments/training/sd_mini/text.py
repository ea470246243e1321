"""The text model of sd-mini: trained to tell, at every token, what the caption has said so far."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import COLOURS, PLACES, SIZES, Caption
from .recipe import Objective, TextConfig

# What a caption says, and the number of answers to each.
ATTRIBUTES = {
    "size": len(SIZES),
    "colour": len(COLOURS),
    "digit": 10,
    "place": len(PLACES) + 1,
    "background": len(COLOURS),
}


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
        self.answers = nn.Linear(config.width, sum(ATTRIBUTES.values()))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits [B, tokens, answers] for each of `ATTRIBUTES`, of ids [B, tokens]."""
        logits = self.answers(self.text(ids).last_hidden_state)
        return logits.split(list(ATTRIBUTES.values()), dim=-1)


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids [B, tokens], padded and cut as StableDiffusionPipeline does."""
    settings = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return tokenizer(list(texts), return_tensors="pt", **settings).input_ids


def text_objective(config: TextConfig, tokenizer: CLIPTokenizer, captions: Sequence[Caption]) -> Objective:
    """Cross-entropy of the answers at every token that follows the words that say them.

    The model is causal: the last tokens know all, and a word's own token what came before it. So that cross-attention finds
    a digit's colour, and not only some colour, whichever token it looks at.
    """
    ids = token_ids(tokenizer, [caption.text for caption in captions])
    answers, known = caption_answers(captions, ids.shape[1])

    def objective(model: CaptionModel, generator: np.random.Generator) -> torch.Tensor:
        rows = generator.integers(len(captions), size=config.optimisation.batch)
        logits = model(ids[rows])
        losses = [
            functional.cross_entropy(told[known[rows, :, index]], expected[known[rows, :, index]])
            for index, (told, expected) in enumerate(
                zip(logits, answers[rows, None].expand(-1, ids.shape[1], -1).unbind(-1), strict=True)
            )
        ]
        return torch.stack(losses).mean()

    return objective


@torch.no_grad()
def understood(model: CaptionModel, tokenizer: CLIPTokenizer, captions: Sequence[Caption]) -> float:
    """The share of captions of which the end token tells all attributes right."""
    ids = token_ids(tokenizer, [caption.text for caption in captions])
    answers, _ = caption_answers(captions, ids.shape[1])
    told = torch.stack([logits[:, -1].argmax(-1) for logits in model(ids)], dim=-1)
    return float((told == answers).all(dim=1).float().mean())


@torch.no_grad()
def embeddings(text: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Embeddings [B, tokens, width] that the U-Net attends to, as StableDiffusionPipeline computes them."""
    return text(token_ids(tokenizer, texts)).last_hidden_state


def caption_answers(captions: Sequence[Caption], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The right answers [B, attributes], int64, and from which tokens on they are known, bool [B, tokens, attributes]."""
    rows = [(_answers(caption), _positions(caption)) for caption in captions]
    answers, first = (torch.tensor(column) for column in zip(*rows, strict=True))
    return answers, torch.arange(tokens)[None, :, None] >= first[:, None, :]


def _answers(caption: Caption) -> list[int]:
    colours, places = list(COLOURS), [None, *PLACES]
    return [
        SIZES.index(caption.size),
        colours.index(caption.colour),
        caption.digit,
        places.index(caption.place),
        colours.index(caption.background),
    ]


def _positions(caption: Caption) -> list[int]:
    """The token that says each attribute. Token 0 is the beginning; "on" after the digit says that there is no place."""
    place = len(caption.place.split()) if caption.place else 0
    return [2, 3, 4, 4 + max(1, place), 4 + place + 3]
