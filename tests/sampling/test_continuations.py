"""Continuing texts: three parties against plaintext, and plaintext against transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sentences import texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.sampling.texts import KNOWN

WORDS = ("[UNK]", *(f"w{index}" for index in range(28)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A calibrated folder, and transformers' model of the same weights."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=40, bos_token_id=0, eos_token_id=0
        )
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.mul_(4).add_(0.1 * torch.randn_like(parameter))
            if "ln_" in name and "weight" in name:
                parameter.div_(4)
    theirs.eval().save_pretrained(folder)
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
    (folder / KNOWN).write_text("\n".join(texts(40, seed=1, most=12)))
    ours = cdm.load_transformer(folder)
    cdm.calibrate(ours)
    return ours, theirs


PROMPT = "w7 w14 w21 w27"


def test_plaintext_equals_transformers_greedy_choice(trained):
    ours, theirs = trained
    found = cdm.generate(ours, None, PROMPT, tokens=6)
    ids = [WORDS.index(word) for word in PROMPT.split()]
    for chosen, logits in zip(found.ids, found.logits, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0, -1]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        assert chosen == int(expected.argmax())
        ids.append(chosen)
    assert found.text.split() == [WORDS[number] for number in found.ids] and found.costs == ()


@pytest.mark.parametrize("protocols", ("puma", "ditto", "fast", "fast-64", "fast-rings"))
@pytest.mark.parametrize("embedded", (True, False))
def test_three_parties_continue_as_plaintext_does(trained, cluster, protocols, embedded):
    ours, _ = trained
    settings = {"tokens": 3, "embedded": embedded, "protocols": protocols}
    emulated = cdm.generate(ours, None, PROMPT, **settings)
    # Ditto has a quadratic in the place of GELU, and this model has not been taught it.
    exact = emulated if protocols == "ditto" else cdm.generate(ours, None, PROMPT, tokens=3)
    found = cdm.generate(ours, cluster, PROMPT, **settings)
    assert found.ids == emulated.ids == exact.ids
    assert np.abs(found.logits - emulated.logits).max() < 0.06
    assert np.abs(found.logits - exact.logits).max() < 0.1 * np.abs(exact.logits).max()
    assert len(found.costs) == 3 and found.costs[1].bytes == found.costs[2].bytes < found.costs[0].bytes
    walked = {operator for cost in found.costs for operator in cost.by_operator().index} == {"walk"}
    assert walked == (protocols in ("fast-64", "fast-rings"))


@pytest.mark.parametrize("protocols", ("fast-64", "fast-rings"))
def test_a_long_text_is_continued_too(trained, cluster, protocols):
    """The first token's weight is 1, and the last one's a thirtieth."""
    ours, _ = trained
    prompt = next(text for text in texts(200, seed=7, most=31) if len(text.split()) == 30)
    exact = cdm.generate(ours, None, prompt, tokens=2)
    emulated, found = (
        cdm.generate(ours, parties, prompt, tokens=2, protocols=protocols) for parties in (None, cluster)
    )
    assert found.ids == emulated.ids == exact.ids
    for logits in (found.logits, emulated.logits):
        assert np.abs(logits - exact.logits).max() < 0.1 * np.abs(exact.logits).max()


def test_one_token_after_one_is_a_single_run(trained, cluster):
    ours, _ = trained
    exact = cdm.generate(ours, None, "w3", tokens=1)
    found = cdm.generate(ours, cluster, "w3", tokens=1, protocols="fast-rings")
    assert found.ids == exact.ids and len(found.costs) == 1


def test_nothing_is_left_with_the_parties(trained, cluster):
    ours, _ = trained
    cdm.generate(ours, cluster, PROMPT, tokens=2, protocols="puma")
    session = cluster.session()
    with pytest.raises(CipherDMError, match=r"layers\.0\.k"):
        session.share_of("layers.0.k", 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tokens": 38}, "4 tokens, and 38 more do not fit 40 places"),
        ({"tokens": 0}, "tokens"),
        ({"prompt": ""}, "no empty ones"),
        ({"prompt": "w1 " * 41}, "41 tokens"),
    ],
)
def test_arguments_out_of_range_are_refused(trained, arguments, message):
    with pytest.raises(CipherDMError, match=message):
        cdm.generate(trained[0], None, **{"prompt": PROMPT} | arguments)


def test_a_classifier_continues_nothing_and_a_decoder_classifies_nothing(trained):
    with pytest.raises(CipherDMError, match="generate"):
        cdm.classify(trained[0], None, "w1")


def test_layers_are_checked_at_all_places(trained):
    found = cdm.check_ranges(trained[0], cdm.FAST)
    assert {"inverse root", "inverse sum"} == {entry.function for entry in found}
    assert max(entry.outside for entry in found) < 0.01


def test_dittos_cuts_are_checked(trained):
    found = {entry.layer: entry for entry in cdm.check_ranges(trained[0], cdm.DITTO, [PROMPT])}
    quadratic = replace(cdm.DIRECT, name="quadratic", gelu_new=cdm.DIRECT.gelu_quad)
    # The text is filled up with itself to all 40 places, and its last token's logits are converted with 8 fraction bits.
    logits = cdm.generate(trained[0], None, " ".join([PROMPT] * 10), tokens=1, protocols=quadratic).logits
    assert found["logits"].highest == pytest.approx(np.abs(logits).max() * 2.0 ** (8 - 30), rel=0.02)
    assert {"layers.0.attn1.scores", "layers.1.ff"} <= found.keys() and not any(e.outside for e in found.values())
