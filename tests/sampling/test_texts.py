"""Classes of texts: three parties against plaintext, and plaintext against transformers."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentences import make_bert, texts, tokenizer

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.engine import Walking, compile_plan
from cipherdm.owner.observe import load_calibration, save_calibration
from cipherdm.sampling.texts import KNOWN, classification_task


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A calibrated folder, and transformers' model of the same weights."""
    folder = tmp_path_factory.mktemp("bert")
    theirs = make_bert(folder)
    ours = cdm.load_transformer(folder)
    cdm.calibrate(ours)
    return ours, theirs


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quad")
    make_bert(folder, "gelu_quad")
    model = cdm.load_transformer(folder)
    cdm.calibrate(model)
    return model


def test_plaintext_equals_transformers_whatever_the_padding(trained):
    ours, theirs = trained
    some = texts(7, seed=2)
    found = [cdm.classify(ours, None, some, tokens=tokens).logits for tokens in (None, 16, 24)]
    for logits in found:
        np.testing.assert_allclose(logits, found[0], atol=1e-5)
    for text, logits in zip(some, found[0], strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([tokenizer()(text)["input_ids"]])).logits[0]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    labels = cdm.classify(ours, None, some).labels
    assert labels == tuple(f"LABEL_{index}" for index in found[0].argmax(1))


def test_embeddings_of_the_client_give_the_same(trained):
    ours, _ = trained
    some = texts(3, seed=3)
    whole, embedded = (cdm.classify(ours, None, some, embedded=choice).logits for choice in (False, True))
    np.testing.assert_allclose(embedded, whole, atol=1e-5)


def test_embeddings_that_fill_up_are_those_of_the_text(trained):
    """With the places of the text, so that their attention scores are those of the text too."""
    ours, _ = trained
    task = classification_task(ours, ["good film", "bad"], tokens=12, embedded=True)
    for embeddings, mask in zip(task.client["embeddings"], task.client["mask"], strict=True):
        count = int((mask == mask[0]).sum())
        assert 0 < count < 12
        np.testing.assert_array_equal(embeddings, embeddings[:, np.arange(12) % count])


@pytest.mark.parametrize("protocols", ("fast", "puma"))
def test_emulations_are_near_the_exact_logits(trained, protocols):
    ours, _ = trained
    some = texts(40, seed=4)
    exact, found = (cdm.classify(ours, None, some, protocols=p).logits for p in ("direct", protocols))
    assert np.abs(found - exact).max() < 0.1 * exact.std()
    assert np.mean(found.argmax(1) == exact.argmax(1)) >= 0.95


@pytest.mark.parametrize("protocols", ("puma", "mpcformer", "ditto", "fast", "fast-64", "fast-rings"))
@pytest.mark.parametrize("embedded", (True, False))
def test_three_parties_compute_what_plaintext_does(trained, cluster, protocols, embedded):
    ours, _ = trained
    settings = {"tokens": 12, "embedded": embedded, "protocols": protocols}
    expected = cdm.classify(ours, None, texts(2, seed=5), **settings)
    found = cdm.classify(ours, cluster, texts(2, seed=5), granularity="step", **settings)
    # Ditto's numbers have 8 fraction bits.
    assert np.abs(found.logits - expected.logits).max() < (0.1 if protocols == "ditto" else 0.03)
    assert found.labels == expected.labels and found.cost.bytes > 0


def test_blocks_are_named_in_the_costs(trained, cluster):
    ours, _ = trained
    found = cdm.classify(ours, cluster, texts(1, seed=5), tokens=12, protocols="fast-64")
    names = set(found.cost.by_program().index)
    assert names == {"embeddings", "layers.0.attn1", "layers.0.ff", "layers.1.attn1", "layers.1.ff", "head"}


def test_a_quadratic_is_exact_in_all_sets(quadratic, cluster):
    some = texts(2, seed=6)
    exact = cdm.classify(quadratic, None, some).logits
    ours = cdm.classify(quadratic, cluster, some, protocols="fast-rings", granularity="step")
    assert np.abs(ours.logits - exact).max() < 0.05 * np.abs(exact).max() + 0.03


def test_ditto_computes_the_quadratic_model(quadratic, cluster):
    some = texts(6, seed=8)
    exact = cdm.classify(quadratic, None, some).logits
    ours = cdm.classify(quadratic, cluster, some, protocols="ditto").logits
    assert np.abs(ours - exact).max() < 0.15 * np.abs(exact).max()


@pytest.mark.parametrize("protocols", ("fast", "ditto", "puma", "mpcformer"))
def test_padding_changes_nothing_in_any_set(trained, protocols):
    ours, _ = trained
    some = texts(12, seed=9)
    short, long = (cdm.classify(ours, None, some, tokens=tokens, protocols=protocols).logits for tokens in (12, 24))
    assert np.abs(short - long).max() < (0.15 if protocols == "ditto" else 0.03) * max(1, np.abs(short).max())


def test_fraction_bits_are_those_of_the_set(trained):
    ours, _ = trained
    finer = replace(cdm.DITTO, name="finer", small_bits=11)
    some = texts(8, seed=4)
    exact = cdm.classify(ours, None, some, protocols=replace(cdm.DIRECT, name="quad", gelu=cdm.DIRECT.gelu_quad)).logits
    errors = [np.abs(cdm.classify(ours, None, some, protocols=p).logits - exact).max() for p in (cdm.DITTO, finer)]
    assert errors[1] < errors[0] / 3


def test_ditto_is_in_both_rings(quadratic):
    task = classification_task(quadratic, "w1 w2", protocols=cdm.DITTO, tokens=4)
    nodes = task.shape.nodes("block")
    plan = compile_plan(nodes, task.specs, keep=["logits"], walking=Walking(18))
    names = {call.program.name: (call.small, call.program.walk) for call in plan.calls}
    assert names["below_maximum"] == (True, False)
    assert names["softmax"] == names["layer_norm"] == names["tanh"] == (False, False)
    assert all(
        names[walked] == (False, True) for walked in ("scores", "mixed", "feed_forward", "up", "down", "classifier")
    )
    rings = {name: spec.ring for name, spec in plan.outputs.items()}
    assert {rings[f"layers.0.attn1.{name}"] for name in ("scores", "values", "below")} == {32} and rings["logits"] == 64


def test_messages_do_not_depend_on_the_text(trained, cluster):
    ours, _ = trained
    found = [
        cdm.classify(ours, cluster, text, tokens=16, protocols="fast-64", granularity="step").cost
        for text in ("w1", "w1 w2 w3 w4 w5 w6 w7 w8")
    ]
    assert found[0].bytes == found[1].bytes and found[0].sends == found[1].sends


def test_only_the_client_learns_the_text_and_its_length(trained):
    ours, _ = trained
    task = classification_task(ours, texts(1, seed=7), tokens=16)
    assert set(task.client) == {"onehot", "mask"} and not task.public
    assert not any(spec.public for spec in task.specs.values())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"texts": "w1 " * 30}, "32 tokens, and there are places for 24: shorten it"),
        ({"texts": "w1 " * 15, "tokens": 8}, "ask for more, up to 24"),
        ({"texts": []}, "at least one text"),
        ({"texts": ["w1", " "]}, "no empty ones"),
        ({"texts": "w1", "tokens": 25}, "positions for 24 tokens"),
        ({"texts": "w1", "granularity": "loop"}, "unknown granularity 'loop'"),
    ],
)
def test_arguments_out_of_range_are_refused(trained, arguments, message):
    with pytest.raises(CipherDMError, match=message):
        cdm.classify(trained[0], None, **arguments)


def test_a_folder_without_what_is_needed_is_refused(tmp_path):
    make_bert(tmp_path)
    ours = cdm.load_transformer(tmp_path)
    with pytest.raises(CipherDMError, match="calibrate"):
        cdm.classify(ours, None, "w1", protocols="fast")
    (tmp_path / KNOWN).unlink()
    with pytest.raises(CipherDMError, match=KNOWN):
        cdm.calibrate(ours)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(CipherDMError, match="no tokenizer"):
        cdm.classify(ours, None, "w1")


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    make_bert(tmp_path)
    ours = cdm.load_transformer(tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    made["model"]["vocab"]["w0"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(CipherDMError, match="knows token 99"):
        cdm.classify(ours, None, "w0")


def test_layers_of_texts_like_those_of_calibration_stay_in_their_ranges(trained):
    ours, _ = trained
    others = texts(30, seed=9)
    found = cdm.check_ranges(ours, cdm.FAST_RINGS, others)
    assert {"inverse root", "inverse sum", "cut"} == {entry.function for entry in found}
    assert max(entry.outside for entry in found) == 0 and all(entry.step is None for entry in found)
    assert len([entry for entry in found if entry.function == "inverse root"]) == 5
    clipped = cdm.check_ranges(ours, cdm.NIMBUS, others)
    assert {entry.function for entry in clipped} == {"exp_nimbus"}
    assert all(entry.highest <= 1e-6 and entry.outside == 0 for entry in clipped)
    assert cdm.check_ranges(ours, cdm.DIRECT, others) == []


def test_a_layer_that_leaves_its_range_is_named(trained, tmp_path):
    ours, _ = trained
    fits = load_calibration(ours)
    fits["layers.1.norm3.spread"] = fits["layers.1.norm3.spread"] * np.float32([1, 0.3])
    shutil.copytree(ours.folder, tmp_path, dirs_exist_ok=True)
    narrowed = cdm.load_transformer(tmp_path)
    save_calibration(fits, narrowed)
    first = cdm.check_ranges(narrowed, cdm.FAST)[0]
    assert (first.layer, first.function) == ("layers.1.norm3", "inverse root") and first.outside > 0 < first.excess


def test_sums_that_are_too_far_apart_for_an_inverse_are_refused(trained, tmp_path):
    ours, _ = trained
    fits = load_calibration(ours)
    fits["layers.0.attn1.counts"] = np.int32([5, 15])  # as MiniLM's were
    shutil.copytree(ours.folder, tmp_path, dirs_exist_ok=True)
    wide = cdm.load_transformer(tmp_path)
    save_calibration(fits, wide)
    with pytest.raises(CipherDMError, match="sums that layers.0.attn1 divides by .* takes 15 Newton steps"):
        cdm.classify(wide, None, texts(1, seed=1)[0], protocols=cdm.FAST)
