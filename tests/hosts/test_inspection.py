"""Inspection of a party: calls tried as somebody, and its disk, show what roles and shares promise."""

import uuid
from dataclasses import replace

import numpy as np
import pytest
from hosting import WEIGHTS, check_product, product_model

from cipherdm import CipherDMError
from cipherdm.hosts import RemoteCluster, load_caller, load_host
from cipherdm.hosts.certificates import make_certificates
from cipherdm.hosts.inspection import (
    DENIED,
    METHODS,
    NOT_REACHED,
    attempts,
    register_unchecked,
    table_of_roles,
    words_on_disk,
)

# What each is there for, written out once more.
MAY = {
    "party0": {"Describe", "Status", "Slot", "Start"},
    "party2": {"Describe", "Status"},
    "owner": {"Describe", "Register", "Publish", "Remove"},
    "alice": {"Describe", "Request"},
    "operator": {"Describe", "Status"},
    "stranger": set(),
}


@pytest.mark.parametrize("rank", [0, 1])
def test_calls_that_are_let_through_are_those_of_the_role(hosts, rank):
    tried = attempts({name: load_caller(hosts[name]) for name in MAY}, rank)
    assert {name: set(tried.columns[tried.loc[name] != DENIED]) for name in MAY} == MAY
    assert not tried.isin(NOT_REACHED).any(axis=None)
    assert tried.loc["operator", "Status"] == "OK" and tried.loc["owner", "Remove"] == "INVALID_ARGUMENT"
    with RemoteCluster(hosts["alice"]) as alice:
        check_product(alice, 80)


def test_the_table_of_roles_says_the_same(hosts):
    table = table_of_roles(MAY, load_host(hosts["party1"]).roles)
    assert {name: {method for method in METHODS if table.loc[name, method]} for name in MAY} == MAY


def test_a_certificate_of_another_authority_reaches_nobody(hosts, tmp_path):
    caller = load_caller(hosts["alice"])
    foreign = replace(caller, identity=make_certificates(tmp_path, roles=("alice",))["alice"])
    assert attempts({"foreign": foreign}).isin(NOT_REACHED).all(axis=None)


def test_a_manifest_reaches_the_party_unchecked(hosts):
    manifest = product_model("spoilt").manifest(uuid.uuid4().hex)
    manifest.programs[0].text = manifest.programs[0].text.replace(b"pphlo.dot", b"pphlo.reveal")
    assert "INVALID_ARGUMENT" in register_unchecked(load_caller(hosts["owner"]), manifest)
    assert DENIED in register_unchecked(load_caller(hosts["alice"]), manifest)


def test_two_disks_have_the_weights_and_one_has_not(hosts):
    disks = [words_on_disk(load_host(hosts[f"party{rank}"]), "product", "w") for rank in range(3)]
    for rank, words in enumerate(disks):
        np.testing.assert_array_equal(words[:, 1], disks[(rank + 1) % 3][:, 0])
        assert np.abs(words.view(np.int64) / 2.0**18).max() > 1e9  # a number of the ring, anywhere in it
    together = (disks[1][:, 0] + disks[1][:, 1] + disks[2][:, 1]).view(np.int64) / 2.0**18
    np.testing.assert_allclose(together.reshape(WEIGHTS.shape), WEIGHTS, atol=2.0**-17)
    for model, value in (("product", "v"), ("none", "w")):
        with pytest.raises(CipherDMError, match="no secret value 'v'|none.json names cannot be read"):
            words_on_disk(load_host(hosts["party1"]), model, value)
