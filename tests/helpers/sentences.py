"""Texts of made-up words, and a small BERT that classifies them."""

import json

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from cipherdm.sampling.texts import KNOWN

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{index}" for index in range(28)))


def texts(count, seed, most=9):
    """`count` texts of 1 to most - 1 words, w0 to w27."""
    generator = np.random.default_rng(seed)
    return [" ".join(f"w{n}" for n in generator.integers(0, 28, generator.integers(1, most))) for _ in range(count)]


def tokenizer():
    """Return a tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def make_bert(folder, act="gelu"):
    """Save a model with random weights, its tokenizer and known texts; return transformers' model."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, num_labels=3, **size)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(8 if "query" in name or "key" in name else 4).add_(0.1 * torch.randn_like(parameter))
            if "LayerNorm.weight" in name:
                parameter.div_(4)
    model.eval().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | {"hidden_act": act}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / KNOWN).write_text("\n".join(texts(60, seed=1)))
    return model
