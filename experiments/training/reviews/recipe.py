"""Recipes of reviews-tiny and of its student: one frozen configuration each."""

import math
from dataclasses import dataclass, replace

from transformers import BertConfig

LABELS = ("bad", "good")


@dataclass(frozen=True)
class ReviewsConfig:
    """A BERT, and its optimisation by AdamW with a learning rate that rises for `warmup` steps and falls by a cosine."""

    name: str
    layers: int = 2
    width: int = 128
    heads: int = 2
    tokens: int = 64  # the most of a text, with the two that mark its ends
    least_seen: int = 1  # word pieces that occur less often in the training texts are spelt by shorter ones
    act_fn: str = "gelu"  # "gelu_quad" is ours; see `cipherdm.approximations.gelu_quad`
    steps: int = 1500
    batch: int = 32
    learning_rate: float = 5e-4
    warmup: int = 100
    dropout: float = 0.3
    forgotten: float = 0.1  # share of word pieces that are hidden in training
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    clip_norm: float = 1.0
    seed: int = 0
    # Begins with all-MiniLM-L6-v2 as it is; for the model that the others learn from, which does not ship.
    pretrained: bool = False
    frozen: bool = False  # whether the embeddings of words stay as they are
    advisor: str | None = None  # recipe of the model whose logits are learnt beside the labels
    advice: float = 0.95  # its share of the loss
    # Of a student: its teacher in data/models, whose weights it begins with, and the steps that imitate its layers.
    teacher: str | None = None
    hidden_steps: int = 0
    hidden_rate: float = 1e-3
    fraction_bits: int | None = None  # of weights and values, which are rounded in the forward pass
    bound: float = 2.0  # of attention scores about their row's mean, which the loss draws below it
    bound_weight: float = 0.1
    peaks: bool = False  # whether the loss has the largest score of each text and head, and not the mean of all scores
    spread_weight: float = 0.0  # of how far apart tokens' variances are, in the loss; see `modules.SpreadRecorder`

    def rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        first, total, rate = 0, self.hidden_steps, self.hidden_rate
        if step >= self.hidden_steps:
            first, total, rate = self.hidden_steps, self.steps - self.hidden_steps, self.learning_rate
        step -= first
        return rate * min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / total))

    def bert(self, pieces: int) -> BertConfig:
        """Return the configuration as transformers has it, for a vocabulary of so many word pieces."""
        return BertConfig(
            vocab_size=pieces,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.tokens,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=0.1,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
            type_vocab_size=1,
        )


MINILM = ReviewsConfig(
    "reviews-minilm",
    layers=6,
    width=384,
    heads=12,
    pretrained=True,
    frozen=True,
    steps=250,
    learning_rate=8e-5,
    warmup=50,
    dropout=0.1,
    forgotten=0.0,
    weight_decay=0.01,
    ema_decay=0.99,
)
TINY = ReviewsConfig("reviews-tiny", advisor="reviews-minilm", steps=1000, learning_rate=1e-3, dropout=0.2)
QUAD = replace(
    TINY,
    name="reviews-tiny-quad",
    teacher="reviews-tiny",
    advisor=None,
    act_fn="gelu_quad",
    learning_rate=5e-4,
    hidden_steps=500,
    steps=1000,
    dropout=0.0,
    fraction_bits=8,
)
MINILM_QUAD = replace(
    MINILM,
    name="reviews-minilm-quad",
    teacher="reviews-minilm",
    act_fn="gelu_quad",
    pretrained=False,
    learning_rate=5e-5,
    hidden_rate=2e-4,
    hidden_steps=400,
    steps=600,
    dropout=0.0,
    fraction_bits=10,
    bound=4.0,
    bound_weight=1.0,
    peaks=True,  # the mean over all pairs hides single keys, which decide about a softmax without a maximum
    spread_weight=0.03,  # the teacher's first token has 300 times the variance of others
)
REVIEWS: dict[str, ReviewsConfig] = {config.name: config for config in (MINILM, TINY, QUAD, MINILM_QUAD)}
"""The recipes, by name."""
