"""Transformers on three hosts: an owner registers one, and clients have texts classified."""

import json
from dataclasses import asdict
from unittest.mock import Mock

import numpy as np
import pytest
from sentences import make_bert, texts

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.hosts import RemoteCluster, classes_of, classifying_model
from cipherdm.hosts import host_pb2 as pb
from cipherdm.models.transformer import TransformerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    make_bert(path)
    cdm.calibrate(cdm.load_transformer(path))
    return path


@pytest.mark.parametrize("protocols, walked", [("direct", False), ("fast-rings", True)])
def test_classes_by_three_hosts_are_those_of_plaintext(hosts, folder, protocols, walked):
    model, some = cdm.load_transformer(folder), texts(4, seed=3)
    made = classifying_model("sentences", model, batch=2, tokens=12, protocols=protocols)
    assert all(code.walk == walked for code in made.manifest("0" * 32).programs)
    with RemoteCluster(hosts["owner"]) as owner, RemoteCluster(hosts["alice"]) as alice:
        owner.register(made)
        found = classes_of(alice, "sentences", some, folder)
        expected = cdm.classify(model, None, some, protocols=protocols)
        assert found.labels == expected.labels
        np.testing.assert_allclose(found.logits, expected.logits, atol=0.05)
        with pytest.raises(CipherDMError, match="classifies 2 texts per run"):
            classes_of(alice, "sentences", some[:1], folder)
        with pytest.raises(CipherDMError, match="there are places for 12"):
            classes_of(alice, "sentences", [" ".join(["w1"] * 11)] * 2, folder)
        with pytest.raises(CipherDMError, match="product classifies no texts: it takes"):
            classes_of(alice, "product", some, folder)
        owner.remove("sentences")


def test_texts_are_classified_by_command(hosts, folder, run, capsys, tmp_path):
    assert run("register", folder, "--name", "texts", "--protocols", "fast-64", "--config", hosts["owner"]) == 0
    asked = ("request", "texts", "--text", "w1 w2 w3", "--config", hosts["bob"])
    assert run(*asked, "--components", folder) == 0
    (label,) = cdm.classify(cdm.load_transformer(folder), None, "w1 w2 w3").labels
    assert f"{label}: w1 w2 w3" in capsys.readouterr().out
    assert run(*asked) == 1
    assert "a text needs --components" in capsys.readouterr().err
    assert run(*asked, "--components", tmp_path) == 1
    assert "has no tokenizer" in capsys.readouterr().err
    assert run("unregister", "texts", "--config", hosts["owner"]) == 0
    assert run("inspect", folder) == 0
    assert "texts of at most 24 tokens" in capsys.readouterr().out
    assert run("plan", folder, "--protocols", "fast-64") == 0
    assert "transformer" in capsys.readouterr().out


def test_two_rings_are_refused_before_anything_is_shared(folder):
    with pytest.raises(CipherDMError, match="ditto needs two rings of SPU"):
        classifying_model("m", cdm.load_transformer(folder), protocols="ditto")


GOOD = {
    "kind": "text classification, version 1",
    "config": asdict(TransformerConfig("bert", 32, 16, 2, 2, 32, 24, "gelu", 1e-12, ("bad", "good"))),
    "protocols": "fast",
    "texts": 1,
    "tokens": 8,
}


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"kind": GOOD["kind"]},
        GOOD | {"tokens": 10**9},
        GOOD | {"texts": "many"},
        GOOD | {"config": GOOD["config"] | {"labels": 3}},
        GOOD | {"config": GOOD["config"] | {"vocab_size": 10**12}},
    ],
)
def test_a_description_that_cannot_be_read_names_its_owner(folder, about):
    def described(about):
        onehot = pb.Variable(name="onehot", shape=[1, 32, 8])
        stub = pb.Model(name="m", owner="rival", about=json.dumps(about), inputs=[onehot])
        return Mock(model=lambda _: stub, request=Mock(side_effect=InterruptedError))

    with pytest.raises(InterruptedError):
        classes_of(described(GOOD), "m", "w1", folder)
    with pytest.raises(CipherDMError, match="rival has registered m with a description that cannot be read"):
        classes_of(described(about), "m", "w1", folder)
