"""Trying calls as somebody: what comes of each is what the role is for, and the parties go on as before."""

import uuid
from dataclasses import replace

import pytest
from hosting import check_product, product_model

from cipherdm.engine.certificates import make_certificates
from cipherdm.hosts import RemoteCluster, load_caller, load_host
from cipherdm.hosts.attempts import DENIED, METHODS, NOT_REACHED, attempts, register_unchecked, table_of_roles

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
