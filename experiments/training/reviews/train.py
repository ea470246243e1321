"""Training reviews-tiny, and distilling its student in two stages, as Ditto does (arXiv 2405.05525)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import AttentionInterface, AttentionMaskInterface, BertForSequenceClassification, BertTokenizerFast
from transformers.masking_utils import eager_mask
from transformers.models.bert.modeling_bert import eager_attention_forward

from cipherdm.datasets import Reviews, load_reviews
from cipherdm.files import checkout, replacing
from cipherdm.records import write_record
from cipherdm.sampling.texts import KNOWN

from ..export import replacing_files, trained
from ..modules import QuadGelu, SpreadRecorder
from ..run import Objective, OnStep, Run, go_on, loss_summary, one_thread, stop_requested
from .minilm import minilm
from .recipe import LABELS, REVIEWS, ReviewsConfig
from .text import batch_of, make_tokenizer, principal_embeddings, word_pieces

KNOWN_EVERY = 20  # of the training reviews, one of so many is known for calibration
_WATCHED = "cipherdm_watched"  # name of our attention among transformers'


class Rounded(nn.Module):
    """Numbers rounded to so many fraction bits, with the gradient of numbers that are not (straight-through)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.unit = 2.0**-bits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (torch.round(x / self.unit) * self.unit - x).detach()


def watched_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **settings: Any,
):
    """Attention of transformers, which leaves scores of unmasked keys, less their row's mean, in `module.scores`."""
    scores = query @ key.mT * settings["scaling"]
    kept = torch.ones_like(scores) if mask is None else (mask == 0).expand(scores.shape)  # None where nothing is masked
    mean = (scores * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True)
    module.scores = (scores - mean) * kept
    return eager_attention_forward(module, query, key, value, mask, **settings)


def train_reviews(
    name_or_config: str | ReviewsConfig,
    out: str | Path | None = None,
    *,
    steps: int | None = None,
    resume: bool = True,
    runs: str | Path = "runs",
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Path:
    """Train reviews-tiny or its student, and return its folder. Arguments and errors are those of `digits.train`."""
    config = REVIEWS[name_or_config] if isinstance(name_or_config, str) else name_or_config
    name = config.name
    if steps is not None:
        share = steps / config.steps
        config = replace(config, steps=steps, hidden_steps=round(config.hidden_steps * share), warmup=1)
    out = checkout() / "data" / "models" / name if out is None else Path(out)
    folder = Path(runs) / name
    texts = {split: load_reviews(split) for split in ("train", "development", "test")}
    with one_thread(), stop_requested() as stopped, _own_attention():
        torch.manual_seed(config.seed)
        model, tokenizer, teacher = _start(config, texts["train"], runs)
        advice = None if config.advisor is None else _advice(config, texts["train"], runs)
        about = asdict(config)
        optimizer = partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        run = Run(name, about, model, optimizer, config)
        if resume:
            run.restore(folder)

        def visit(run: Run) -> None:
            scores = {
                split: accuracy(run.averaged.module, tokenizer, texts[split]) for split in ("development", "test")
            }
            run.scores.append({"step": run.step} | scores)
            _export(run, config, tokenizer, out)

        spreads = SpreadRecorder(model) if config.spread_weight else None
        objective = reviews_objective(config, tokenizer, texts["train"], teacher, advice, spreads)
        go_on(run, objective, folder, stopped, progress=progress, every=250, visit=visit, on_step=on_step)
    return out


@contextmanager
def _own_attention() -> Iterator[None]:
    AttentionInterface.register(_WATCHED, watched_attention)
    AttentionMaskInterface.register(_WATCHED, eager_mask)  # without which transformers leaves padding unmasked
    yield


def _start(config: ReviewsConfig, reviews: Reviews, runs: str | Path):
    """Return the model at step 0, its tokenizer, and its teacher if it has one."""
    if config.teacher is not None:
        home = trained(config.teacher, runs)
        tokenizer = BertTokenizerFast.from_pretrained(home, local_files_only=True)
        teacher = _loaded(home).eval().requires_grad_(False)
        model = quantised(quadratic(_loaded(home, dropout=config.dropout)), config)
        return model, tokenizer, teacher
    source = minilm(runs)
    if config.pretrained:
        tokenizer = BertTokenizerFast.from_pretrained(source, local_files_only=True, model_max_length=config.tokens)
        model = _loaded(source, config.dropout)
        model.bert.embeddings.word_embeddings.requires_grad_(not config.frozen)
        return model, tokenizer, None
    pieces = word_pieces(source, reviews.texts, config.least_seen)
    tokenizer = make_tokenizer(pieces, config.tokens)
    model = BertForSequenceClassification(config.bert(len(pieces)))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(principal_embeddings(source, pieces, config.width))
    model.bert.embeddings.word_embeddings.requires_grad_(not config.frozen)
    return model, tokenizer, None


@torch.no_grad()
def _advice(config: ReviewsConfig, reviews: Reviews, runs: str | Path) -> torch.Tensor:
    """Return the log-probabilities [N, 2] that the advisor gives the training reviews."""
    home = trained(config.advisor, runs)
    advisor, tokenizer = _loaded(home).eval(), BertTokenizerFast.from_pretrained(home, local_files_only=True)
    parts = (reviews.texts[first : first + 100] for first in range(0, len(reviews), 100))
    return torch.cat([advisor(**batch_of(tokenizer, part)).logits.log_softmax(-1) for part in parts])


def _loaded(folder: Path, dropout: float = 0.0) -> BertForSequenceClassification:
    settings = {"attn_implementation": _WATCHED, "local_files_only": True, "dtype": torch.float32}
    settings |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification.from_pretrained(folder, **settings, **dropouts)


def quadratic(model: BertForSequenceClassification) -> BertForSequenceClassification:
    """Give a model the quadratic, and a configuration that says so, which transformers then refuses to load as its own."""
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = QuadGelu()
    model.config.hidden_act = "gelu_quad"
    return model


def quantised(model: BertForSequenceClassification, config: ReviewsConfig) -> BertForSequenceClassification:
    """Round the encoder's weights, and what its linear layers return, to the recipe's fraction bits."""
    rounded = Rounded(config.fraction_bits)
    for module in model.bert.encoder.modules():
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", rounded)
            module.register_forward_hook(lambda _, __, result: rounded(result))
    return model


def reviews_objective(
    config: ReviewsConfig,
    tokenizer: BertTokenizerFast,
    reviews: Reviews,
    teacher: nn.Module | None,
    advice: torch.Tensor | None,
    spreads: SpreadRecorder | None = None,
) -> Objective:
    """Return the loss: cross-entropy with an advisor's part, or what the student's stage imitates, with the bounds."""
    labels = torch.from_numpy(reviews.labels)

    def objective(model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, place = divmod(step, len(labels) // config.batch)
        order = np.random.default_rng((config.seed, 1, epoch)).permutation(len(labels))
        chosen = order[place * config.batch : (place + 1) * config.batch]
        given = batch_of(tokenizer, [reviews.texts[number] for number in chosen])
        target = labels[torch.from_numpy(chosen)]
        torch.manual_seed(hash((config.seed, step)) & 0x7FFFFFFF)  # of dropout, so that a run resumes exactly
        if teacher is None:
            hidden = torch.rand(given["input_ids"].shape) < config.forgotten
            hidden &= (given["input_ids"] != tokenizer.cls_token_id) & (given["attention_mask"] == 1)
            given["input_ids"] = given["input_ids"].masked_fill(hidden, tokenizer.mask_token_id)
            logits = model(**given).logits
            loss = functional.cross_entropy(logits, target, label_smoothing=0.05)
            if advice is not None:
                soft = functional.kl_div(
                    logits.log_softmax(-1), advice[torch.from_numpy(chosen)], log_target=True, reduction="batchmean"
                )
                loss = (1 - config.advice) * loss + config.advice * soft
            return loss, loss
        with torch.no_grad():
            wanted = teacher(**given, output_hidden_states=True)
        found = model(**given, output_hidden_states=True)
        if step < config.hidden_steps:
            kept = given["attention_mask"][:, :, None]
            pairs = zip(found.hidden_states, wanted.hidden_states, strict=True)
            loss = sum((((ours - theirs) * kept) ** 2).sum() for ours, theirs in pairs) / kept.sum() / config.width
        else:
            soft = functional.kl_div(
                found.logits.log_softmax(-1), wanted.logits.log_softmax(-1), log_target=True, reduction="batchmean"
            )
            loss = soft + 0.3 * functional.cross_entropy(found.logits, target)
        minimised = loss + config.bound_weight * _beyond(model, config)
        if spreads is not None:
            minimised = minimised + config.spread_weight * spreads.fourth_power()
        return minimised, loss

    return objective


def _beyond(model: nn.Module, config: ReviewsConfig) -> torch.Tensor:
    """Mean squares by which attention scores leave [-bound, bound]; with `peaks`, of the largest of each text and head."""
    scores = [layer.attention.self.scores.abs() for layer in model.bert.encoder.layer]
    if config.peaks:
        scores = [values.amax((2, 3)) for values in scores]
    return sum(functional.relu(values - config.bound).square().mean() for values in scores)


@torch.no_grad()
def accuracy(model: nn.Module, tokenizer: BertTokenizerFast, reviews: Reviews) -> float:
    """Return the share of reviews whose class a model finds."""
    model.eval()
    right = 0
    for first in range(0, len(reviews), 100):
        part = slice(first, first + 100)
        found = model(**batch_of(tokenizer, reviews.texts[part])).logits.argmax(-1).numpy()
        right += int((found == reviews.labels[part]).sum())
    return right / len(reviews)


def _export(run: Run, config: ReviewsConfig, tokenizer: BertTokenizerFast, out: Path) -> None:
    """Write the averaged weights in half precision as a transformers folder, with a card and the training record."""
    model, known = run.averaged.module, copy.deepcopy(run.averaged.module.config)
    known.hidden_act = "gelu"  # for the constructor, which does not know ours
    known.max_position_embeddings = config.tokens  # a pretrained model has more, which no review has taught
    plain = BertForSequenceClassification(known)
    plain.config.hidden_act = model.config.hidden_act
    names = plain.state_dict().keys()
    stored = {}
    for name, value in model.state_dict().items():
        name = name.replace("parametrizations.", "").replace(".weight.original", ".weight")
        if name in names:
            stored[name] = value[: config.tokens] if "position_embeddings" in name else value
    plain.load_state_dict(stored)
    with replacing_files(out) as temporary:
        plain.half().save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        with replacing(temporary / KNOWN) as file:
            file.write_text("\n".join(load_reviews("train").texts[::KNOWN_EVERY]) + "\n")
        with replacing(temporary / "README.md") as file:
            file.write_text(_card(run, config, len(tokenizer)))
        write_record(
            temporary / "training.json", {"config": asdict(config), **loss_summary(run, 100), "scores": run.scores}
        )


def _card(run: Run, config: ReviewsConfig, pieces: int) -> str:
    taken = f"{run.step} of {config.steps} steps"
    if config.teacher is None:
        how = f"""- **Training**: `cipherdm train {config.name}`, {taken}, each of {config.batch} training reviews.
  Word pieces and the beginning of their embeddings are those of all-MiniLM-L6-v2 (Apache-2.0), in {config.width} principal
  directions.
- **Use**: `transformers.BertForSequenceClassification.from_pretrained`, or `cdm.load_transformer`."""
    else:
        how = f"""- **Training**: `cipherdm train {config.name}`, {taken}; a student of `{config.teacher}`
  with a quadratic for GELU. First its layers imitate its teacher's, then its logits; weights and values are rounded to
  {config.fraction_bits} fraction bits, and scores beyond {config.bound:g} cost (Ditto, arXiv 2405.05525).
- **Use**: `cdm.load_transformer`. transformers does not know the quadratic, and refuses this folder."""
    size = f"{config.layers} layers, width {config.width}, {config.heads} heads"
    return f"""# {config.name}

Tells whether a sentence of a movie review is good (class 1) or bad (class 0). A BERT of {size},
{pieces:,} word pieces, at most {config.tokens} tokens.

{how}
- **Data**: [reviews](../../reviews). `training.json` has losses, accuracies, the machine and the versions.
"""
