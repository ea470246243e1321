"""Transformers as JAX functions against transformers' own, in plaintext."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.models import run_blocks
from cipherdm.models.transformer import (
    TransformerConfig,
    apply_transformer,
    one_hot_tokens,
    place_of,
    token_blocks,
    transformer_blocks,
)

SMALL = {"vocab_size": 50}


def bert(**changes):
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(**SMALL, **settings, max_position_embeddings=12, **changes))


def gpt2(**changes):
    return GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=16, n_layer=2, n_head=2, n_positions=12, **changes))


@pytest.fixture
def saved(tmp_path):
    """Function that saves a transformers model, with weights that matter, and returns its folder."""

    def save(model):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():  # biases and normalisations are 0 and 1 at first
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.ndim == 1))
        model.eval().save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.mark.parametrize("labels", (2, 5))
@pytest.mark.parametrize("act", ("gelu", "gelu_new"))
def test_bert_equals_that_of_transformers_with_a_mask(saved, labels, act):
    theirs = bert(num_labels=labels, hidden_act=act)
    ours = cdm.load_transformer(saved(theirs))
    assert len(ours.config.labels) == labels
    ids = np.random.default_rng(1).integers(0, 50, (3, 9))
    mask = (np.arange(9) < np.array([[9], [4], [1]])).astype(np.int64)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask))
        hidden = theirs.bert(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    np.testing.assert_allclose(apply_transformer(ours.config, ours.params, ids, mask), expected.logits, atol=1e-4)
    every = np.asarray(apply_transformer(ours.config, ours.params, ids, mask, every_token=True))
    np.testing.assert_allclose(np.swapaxes(every, 1, 2)[mask == 1], hidden.numpy()[mask == 1], atol=1e-4)


def test_gpt2_is_read_without_the_head_that_it_was_published_without(saved):
    theirs = gpt2()
    folder = saved(theirs)
    whole = cdm.load_transformer(folder)
    inner = {
        name.removeprefix("transformer."): value for name, value in theirs.state_dict().items() if "lm_head" not in name
    }
    save_file({name: value.contiguous() for name, value in inner.items()}, folder / "model.safetensors")
    again = cdm.load_transformer(folder)
    for name, array in whole.params.items():
        np.testing.assert_array_equal(array, again.params[name])


@pytest.mark.parametrize("tied", (True, False))
def test_gpt2_equals_that_of_transformers(saved, tied):
    theirs = gpt2(tie_word_embeddings=tied)
    ours = cdm.load_transformer(saved(theirs))
    ids = np.random.default_rng(1).integers(0, 50, (2, 7))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits[:, -1]
        hidden = theirs.transformer(torch.tensor(ids)).last_hidden_state
    np.testing.assert_allclose(apply_transformer(ours.config, ours.params, ids), expected, atol=1e-4)
    every = np.asarray(apply_transformer(ours.config, ours.params, ids, every_token=True))
    np.testing.assert_allclose(np.swapaxes(every, 1, 2), hidden, atol=1e-4)


def test_a_token_at_a_time_gives_what_all_at_once_do(saved):
    ours = cdm.load_transformer(saved(gpt2()))
    ids, places = np.random.default_rng(1).integers(0, 50, (2, 9)), 10
    columns = one_hot_tokens(ids, 50)
    values = run_blocks(
        transformer_blocks(ours.config, places=places), ours.params, {"onehot": columns[:, :, :5]}, protocols=cdm.DIRECT
    )
    for token in range(5, 9):
        values["onehot"] = columns[:, :, token : token + 1]
        values |= {name: np.float32(array) for name, array in place_of(token, places, ours.config.tokens).items()}
        values = run_blocks(token_blocks(ours.config), ours.params, values, protocols=cdm.DIRECT)
        expected = apply_transformer(ours.config, ours.params, ids[:, : token + 1])
        np.testing.assert_allclose(values["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["RobertaModel"]}, "RobertaModel"),
        ({"hidden_act": "relu"}, "activation is 'relu'"),
        ({"is_decoder": True}, "decoder"),
        ({"id2label": {"0": "a"}}, "one label"),
        ({"problem_type": "multi_label_classification"}, "several of its labels"),
        ({"add_cross_attention": True}, "another sequence"),
        ({"vocab_size": None}, "vocab_size"),
        ({"intermediate_size": 25}, "ff.net.0.proj.weight has shape"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "head.classifier.weight has shape"),
    ],
)
def test_folders_that_cannot_be_computed_are_refused(saved, changes, message):
    folder = saved(bert())
    path = folder / "config.json"
    values = {k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not None}
    path.write_text(json.dumps(values))
    with pytest.raises(CipherDMError, match=message):
        cdm.load_transformer(folder)


def test_a_missing_tensor_or_file_is_named(saved):
    folder = saved(bert())
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CipherDMError, match="layer.1.output.dense.bias"):
        cdm.load_transformer(folder)
    path.unlink()
    with pytest.raises(CipherDMError, match="no model.safetensors"):
        cdm.load_transformer(folder)


def test_a_transformer_is_not_taken_for_a_unet(saved):
    with pytest.raises(CipherDMError, match="load_transformer"):
        cdm.load_unet(saved(bert()))


def test_configurations_have_the_defaults_of_transformers():
    values = {"architectures": ["GPT2LMHeadModel"], **{name: value for name, value in GPT2Config().to_dict().items()}}
    config = TransformerConfig.from_transformers(values | {"architectures": ["GPT2LMHeadModel"]})
    assert (config.inner, config.eps, config.act_fn) == (3072, 1e-5, "gelu_new")
