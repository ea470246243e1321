"""A host's TOML file: what a trial writes is read back, and whatever is wrong in it is named."""

import re
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cipherdm import CipherDMError
from cipherdm.hosts import PARTY_NAMES, Limits, Timeouts, load_caller, load_host, make_trial
from cipherdm.hosts.process import check_port, command


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    limits, timeouts = Limits(runs=3, queue=5), Timeouts(connect=4.5)
    folder = tmp_path_factory.mktemp("trial") / "new"
    return make_trial(folder, port=9300, clients=("alice", "bob"), limits=limits, timeouts=timeouts)


@pytest.fixture
def edited(files, tmp_path):
    """edited(pattern, replacement): party 1's file with a line changed, beside the certificates."""

    def edit(pattern: str, text: str):
        original = files["party1"]
        changed, count = re.subn(pattern, text, original.read_text(), flags=re.MULTILINE)
        assert count == 1
        path = original.parent / "edited.toml"
        path.write_text(changed)
        return path

    return edit


def test_a_trials_files_are_read_back(files):
    assert set(files) == {*PARTY_NAMES, "owner", "alice", "bob", "operator"}
    hosts = [load_host(files[name]) for name in PARTY_NAMES]
    for rank, host in enumerate(hosts):
        assert host.rank == rank and host.limits == Limits(runs=3, queue=5) and host.caller.timeouts.connect == 4.5
        assert host.roles.owners == ("owner",) and host.roles.clients == ("alice", "bob")
        assert host.caller.parties == ("127.0.0.1:9300", "127.0.0.1:9301", "127.0.0.1:9302")
        # Three runs at a time: each party's link has three ports.
        assert host.links == ("127.0.0.1:9303", "127.0.0.1:9306", "127.0.0.1:9309")
        assert host.gate(2, Path()).addresses == tuple(("127.0.0.1", port) for port in (9305, 9308, 9311))
    assert len({host.agreement for host in hosts}) == 1
    assert load_caller(files["alice"]).parties == hosts[0].caller.parties
    assert load_caller(files["party0"]) == hosts[0].caller


def test_what_parties_must_have_alike_is_in_their_agreement(files):
    host = load_host(files["party0"])
    for other in (
        replace(host, limits=Limits(runs=3, queue=6)),
        replace(host, limits=Limits(runs=3, queue=5, batch_wait=1)),
        replace(host, links=("127.0.0.1:9303", "127.0.0.1:9306", "127.0.0.1:9310")),
        replace(host, roles=replace(host.roles, owners=("other",))),
        replace(host, caller=replace(host.caller, timeouts=Timeouts(connect=4.0))),
    ):
        assert other.agreement != host.agreement
    assert replace(host, rank=1, state=host.state / "x", threads=2).agreement == host.agreement


@pytest.mark.parametrize(
    ("pattern", "text", "message"),
    [
        (r"^rank = 1", "rank = 3", r"\[party\]: rank is 3"),
        (r"^rank = 1", "rank = true", r"\[party\]: rank is True, and must be a whole number"),
        (r"^rank = 1\n", "", r"\[party\]: rank is missing"),
        (r"^rank = 1", "rank = 1\nspeed = 9", r"\[party\]: speed is unknown"),
        (r"^state = .*", 'state = ""', r"\[party\]: state is empty"),
        (r"^parties = .*", 'parties = ["a:1", "b:2"]', r"\[cluster\]: parties has 2 entries instead of 3"),
        (r"^parties = .*", 'parties = ["a:1", "b:2", "c"]', r"\[cluster\]: parties has 'c', which is not host:port"),
        (r"^parties = .*", 'parties = ["a:1", "b:2", "b:2"]', r"\[cluster\]: parties names something twice"),
        (r"^parties = .*", "parties = [1, 2, 3]", r"\[cluster\]: parties must be a list of texts"),
        (r"^links = .*\n", "", r"\[cluster\]: links is missing"),
        (r"^links = .*", 'links = ["a:1", "b:70000", "c:1"]', "b:70000"),
        (
            r"^links = .*",
            'links = ["127.0.0.1:9299", "b:1", "c:1"]',
            r"links\[0\] and parties\[0\] both use port 9300 on 127.0.0.1",
        ),
        (r"^protocol = .*", 'protocol = "SEMI2K"', r"\[cluster\]: protocol is SEMI2K; only ABY3"),
        (r"^ring_bits = .*", "ring_bits = 32", r"\[cluster\]: ring_bits is 32; only 64"),
        (r"^receive = .*", "receive = -1.0", r"\[timeouts\]: receive is -1"),
        (r"^receive = .*", 'receive = "long"', r"\[timeouts\]: receive is 'long', and must be a number"),
        (r"^runs = .*", "runs = 0", r"\[limits\]: runs is 0, and must be at least 1"),
        (r"^batch_wait = .*", "batch_wait = -1", r"\[limits\]: batch_wait is -1, and must be at least 0"),
        (
            r"^runs_per_client = .*",
            "runs_per_client = 8",
            "is 8, and must be at most 7: one client could take all places",
        ),
        (r"^owners = .*", 'owners = ["party2"]', r"\[roles\]: owners has party2"),
        (r"^clients = .*\n", "", r"\[roles\]: clients is missing"),
        (r"^private_key = .*", 'private_key = "none.key"', r"\[identity\]: private_key is .*none.key, and there is no"),
        (r"^link_authority = .*\n", "", r"\[party\]: link_authority is missing"),
        (r"^\[roles\]$", "[rules]", r"the section \[rules\] is unknown"),
        (r"^\[party\]$", "[party", "is not TOML"),
    ],
)
def test_a_wrong_field_is_named(edited, pattern, text, message):
    with pytest.raises(CipherDMError, match=message):
        load_host(edited(pattern, text))


def test_one_client_cannot_take_all_places_by_default(tmp_path):
    assert Limits().runs_per_client < Limits().runs + Limits().queue
    make_trial(tmp_path / "one", limits=Limits(runs=1, queue=0, runs_per_client=1))
    assert load_host(tmp_path / "one" / "party0.toml").limits.runs_per_client == 1


def test_a_missing_section_or_file_is_named(files, tmp_path):
    with pytest.raises(CipherDMError, match=r"the section \[party\] is missing"):
        load_host(files["owner"])
    with pytest.raises(CipherDMError, match=r"none.toml: No such file"):
        load_caller(tmp_path / "none.toml")


def test_a_trial_does_not_replace_another(files):
    before = files["owner"].read_text()
    with pytest.raises(CipherDMError, match="has such files already"):
        make_trial(files["owner"].parent)
    assert files["owner"].read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hosts": ("a", "b")}, "three parties, and 2 addresses"),
        ({"clients": ("owner",)}, "same name"),
        ({"clients": ("alice", 'of "B"')}, """'of "B"' cannot be the name of a client"""),
        ({"clients": ("../alice",)}, "cannot be the name of a client"),
        ({"port": 65530}, "65535"),
    ],
)
def test_a_trial_that_cannot_be_is_refused(tmp_path, arguments, message):
    with pytest.raises(CipherDMError, match=message):
        make_trial(tmp_path / "trial", **arguments)
    assert not (tmp_path / "trial").exists()


def test_certificates_have_names_and_the_links_their_own_authority(files):
    """A client's certificate is worth nothing where the parties reach each other."""
    party, client = load_host(files["party2"]), load_caller(files["alice"])
    for identity, authority, name in (
        (party.caller.identity, party.caller.identity.authority, "party2"),
        (party.link_identity, party.link_identity.authority, "party2"),
        (client.identity, party.caller.identity.authority, "alice"),
    ):
        assert _common_name(identity) == name
        assert _is_signed_by(identity, authority)
    assert not _is_signed_by(client.identity, party.link_identity.authority)
    for path in files["owner"].parent.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0


def test_the_commands_make_a_trial_and_name_what_is_wrong_with_a_file(run, tmp_path, capsys):
    folder = tmp_path / "trial"
    assert run("certificates", folder, "--hosts", "a.example, b.example,c.example", "--clients", "x,y") == 0
    host = load_host(folder / "party2.toml")
    assert host.caller.parties == ("a.example:9300", "b.example:9301", "c.example:9302")
    assert host.listen == "c.example" and host.roles.clients == ("x", "y")
    assert run("certificates", folder) == 1
    assert run("certificates", tmp_path / "other", "--clients", "x,,y") == 1
    assert run("party", "--config", folder / "x.toml") == 1
    printed = capsys.readouterr()
    assert "In production every organisation makes its own" in printed.out
    for words in ("has such files already", "cannot read the names 'x,,y'", "the section [party] is missing"):
        assert words in printed.err


def _certificate(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _common_name(identity) -> str:
    (attribute,) = _certificate(identity.certificate).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return attribute.value


def _is_signed_by(identity, authority) -> bool:
    try:
        _certificate(identity.certificate).verify_directly_issued_by(_certificate(authority))
    except (ValueError, InvalidSignature):
        return False
    return True


def test_a_port_that_cannot_be_used_is_named_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(CipherDMError, match=f"party 1 cannot use port {port}.*Another process has it"):
            check_port(f"127.0.0.1:{port}", 1)
    with pytest.raises(CipherDMError, match="does not have that address: set .party. listen"):
        check_port("192.0.2.1:9300", 0)


def test_the_working_directory_shadows_no_module_of_a_party(tmp_path):
    (tmp_path / "spu.py").write_text("raise ImportError('not this one')")
    found = subprocess.run(command(tmp_path / "none.toml"), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "cannot read" in found.stderr and "none.toml" in found.stderr
