"""Certificates: what is wrong with files is named, names count on both sides, and new files are taken without a restart."""

import datetime
import shutil
import socket
import time
from dataclasses import replace

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hosting import small_trial
from processes import free_port

from cipherdm import CipherDMError
from cipherdm.hosts import (
    PARTY_NAMES,
    RemoteCluster,
    Timeouts,
    free_ports,
    load_caller,
    load_host,
    make_certificates,
    process,
)
from cipherdm.hosts.certificates import Certificates, caller_of
from cipherdm.hosts.channels import connect
from cipherdm.hosts.config import CallerConfig, split_address
from cipherdm.hosts.host_pb2 import DescribeRequest, Description, HostStatus
from cipherdm.hosts.roles import Deadlines
from cipherdm.hosts.status import report

pytestmark = pytest.mark.attack


class Service:
    """A party that tells who it is and nothing else."""

    deadlines = Deadlines(lambda _: None)

    def denied(self, *_) -> None:
        pass

    def __getattr__(self, name):
        return None  # calls that nobody makes here

    def Describe(self, request, context):
        return Description(rank=1)


class Authority:
    """An authority that signs whatever it is asked to."""

    def __init__(self, folder):
        self.folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        folder.mkdir()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority {folder.name}")])
        self.file = folder / "authority.pem"
        now = datetime.datetime.now(datetime.UTC)
        self._write(self.file, self._builder(self._name, self._key, (now - datetime.timedelta(1), 400), ca=True))

    def sign(self, name: str, *, names=None, dns=None, begin: float = -1, days: float = 100) -> Certificates:
        """A certificate whose time begins so many days from now; by default with one name, in both places."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, each) for each in ([name] if names is None else names)]
        start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(begin)
        builder = self._builder(x509.Name(subject), key, (start, days), ca=False)
        alternative = [x509.DNSName(each) for each in ([name] if dns is None else dns)]
        if alternative:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        self._write(self.folder / f"{name}.pem", builder.add_extension(uses, critical=False))
        file = self.folder / f"{name}.key"
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        file.touch(mode=0o600)
        file.write_bytes(key.private_bytes(*kinds))
        return Certificates(self.folder / f"{name}.pem", file, self.file)

    def _builder(self, subject, key, time, *, ca: bool) -> x509.CertificateBuilder:
        start, days = time
        return (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    def _write(self, path, builder) -> None:
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "one")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"begin": -10, "days": 9}, r"party1.pem expired at 20..-..-.. ..:.. UTC; get a new one"),
        ({"begin": 1}, r"party1.pem is not valid before 20"),
        ({"dns": ["alice"]}, "must have party1 as its one common name and as a DNS name"),
        ({"dns": []}, "must have party1"),
        ({"names": ["alice"]}, "must have party1"),
        ({"names": ["party1", "alice"]}, "must have party1"),
    ],
)
def test_a_certificate_that_does_not_do_is_named(authority, settings, message):
    with pytest.raises(CipherDMError, match=message):
        authority.sign("party1", **settings).check("party1")


def test_files_that_do_not_fit_are_named(authority, tmp_path):
    good, other = authority.sign("party1"), Authority(tmp_path / "two")
    assert good.check("party1") == ""
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    garbage.chmod(0o600)
    for wrong, message in (
        (replace(good, private_key=authority.sign("party2").private_key), "party2.key is not the key of .*party1.pem"),
        (replace(good, authority=other.file), "party1.pem was not signed by the authority in .*two/authority.pem"),
        (replace(good, certificate=garbage), "garbage.pem cannot be read: it is no such PEM file"),
        (replace(good, private_key=garbage), "garbage.pem cannot be read"),
    ):
        with pytest.raises(CipherDMError, match=message):
            wrong.check("party1")
    good.private_key.chmod(0o644)
    with pytest.raises(CipherDMError, match=r"party1.key is open to others \(mode 644\); chmod it to 600"):
        good.check("party1")


def test_a_callers_certificate_that_has_ended_meanwhile_is_named(authority):
    identity = authority.sign("alice")
    caller = CallerConfig((f"127.0.0.1:{free_port()}",) * 3, Timeouts(connect=0.5), identity)
    with RemoteCluster(caller) as cluster:
        with pytest.raises(CipherDMError, match="does not accept our certificate.*Try again when it is back"):
            cluster.descriptions()
        authority.sign("alice", begin=-10, days=9)
        with pytest.raises(CipherDMError, match=r"Our certificate does not do: .*alice.pem expired at 20"):
            cluster.descriptions()


def test_configurations_are_not_loaded_with_such_files(tmp_path):
    """For callers and parties, and for the links' certificates."""
    files = small_trial(tmp_path / "trial")
    foreign = make_certificates(tmp_path / "foreign", (*PARTY_NAMES, "alice"))
    shutil.copy(foreign["alice"].certificate, tmp_path / "trial" / "alice.pem")
    with pytest.raises(CipherDMError, match=r"\[identity\]: certificate does not do: .*alice.key is not the key of"):
        load_caller(files["alice"])
    shutil.copy(foreign["party1"].authority, tmp_path / "trial" / "links" / "authority.pem")
    with pytest.raises(CipherDMError, match=r"\[party\]: link_certificate does not do: .*was not signed by"):
        load_host(files["party1"])
    text = files["party2"].read_text()
    files["party2"].write_text(
        text.replace('certificate = "party2.pem"', 'certificate = "party1.pem"').replace(
            'private_key = "party2.key"', 'private_key = "party1.key"'
        )
    )
    with pytest.raises(CipherDMError, match="must have party2 as its one common name"):
        load_host(files["party2"])


def test_an_end_is_told_14_days_ahead(authority):
    assert authority.sign("party1", begin=-80).check() == ""
    warning = authority.sign("party1", begin=-87).check()
    assert warning.startswith("party1.pem expires at 20")
    text, well = report([(Description(rank=0), HostStatus(warnings=[warning + "\x1b[2J"]))])
    assert rf"Soon at party 0: {warning}\x1b[2J" in text and well


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "alice"),
        ({"dns": []}, "alice"),
        ({"names": ["alice", "bob"]}, ""),
        ({"names": []}, ""),
        ({"names": ["alice\0x"]}, ""),
        ({"dns": ["alice", "party1"]}, ""),  # callers would take it for party 1
        ({"dns": ["alice", "PARTY1"]}, ""),
        ({"names": ["party1"]}, ""),
        ({"names": ["party1"], "dns": ["party1", "party2"]}, ""),
        ({"names": ["party1"], "dns": ["localhost", "party1"]}, "party1"),
        ({"begin": -10, "days": 9}, ""),
    ],
)
def test_a_caller_has_one_name_and_no_partys_beside_it(authority, settings, expected):
    """Two names, none, one with NUL, a party's in one place only, and a time that is over on a connection that is open."""
    pem = authority.sign("alice", **settings).certificate.read_bytes()
    assert caller_of(pem, PARTY_NAMES) == expected
    assert caller_of(b"", PARTY_NAMES) == caller_of(b"nothing", PARTY_NAMES) == ""


@pytest.fixture
def party(tmp_path, monkeypatch):
    """Party 1 of a trial, in this process and without its work: its configuration and the TOML files."""
    monkeypatch.setattr(process, "_CONNECTION_AGE_MS", 1000)
    files = small_trial(tmp_path / "trial")
    host = load_host(files["party1"])
    host = replace(host, caller=replace(host.caller, timeouts=replace(host.caller.timeouts, connect=2.0)))
    server = process.listen(Service(), host, host.caller.parties[1])
    yield host, files
    server.stop(0)


def is_answered(stub) -> bool:
    try:
        return stub.Describe(DescribeRequest(), timeout=5).rank == 1
    except grpc.RpcError:
        return False


def replace_files(files, folder) -> None:
    """Put the certificates of another trial in the place of these."""
    small_trial(folder)
    for path in folder.glob("*.*"):
        if path.suffix in (".pem", ".key"):
            shutil.copy(path, files["party1"].parent / path.name)


def test_new_certificates_need_no_restart_and_old_connections_end(party, tmp_path):
    """All files change, as when the authority does: new callers are let in, and who is connected must show a new one."""
    _, files = party
    old_channel, old = connect(load_caller(files["alice"]), 1)
    assert is_answered(old)
    key = files["party1"].parent / "party1.key"
    good = key.read_bytes()
    key.write_bytes(b"half a file")
    channel, stub = connect(load_caller(files["alice"]), 1)
    assert is_answered(stub), "files that do not do were taken"
    channel.close()
    key.write_bytes(good)
    replace_files(files, tmp_path / "new")
    channel, stub = connect(load_caller(files["alice"]), 1)
    assert is_answered(stub)
    channel.close()
    deadline = time.monotonic() + 30
    while is_answered(old):
        assert time.monotonic() < deadline, "a connection lives for ever"
        time.sleep(0.2)
    old_channel.close()


def test_a_certificate_whose_time_is_over_is_not_taken_instead(party, authority):
    """gRPC alone would show it to callers, who would go."""
    host, _ = party
    address = f"127.0.0.1:{free_ports(1)}"
    identity, client = authority.sign("party1"), authority.sign("alice")
    server = process.listen(Service(), replace(host, caller=replace(host.caller, identity=identity)), address)
    parties = (host.caller.parties[0], address, host.caller.parties[2])
    try:
        for settings in ({}, {"begin": -10, "days": 9}):
            authority.sign("party1", **settings)  # into the same files
            channel, stub = connect(replace(host.caller, parties=parties, identity=client), 1)
            assert is_answered(stub)
            channel.close()
    finally:
        server.stop(0)


def test_a_caller_that_says_nothing_is_dropped(party):
    host, _ = party
    with socket.create_connection(split_address(host.caller.parties[1]), timeout=60) as silent:
        while silent.recv(1000):
            pass


@pytest.mark.parametrize("callers", [(), ("alice",)])
def test_with_a_callers_certificate_nobody_serves(party, tmp_path, callers):
    """Even if it has a party's DNS name, as when an authority signs a request as it came."""
    host, _ = party
    made = make_certificates(tmp_path / "made", ("alice", "bob"), ("party1",), callers=callers)
    address = f"127.0.0.1:{free_ports(1)}"
    server = process.listen(Service(), replace(host, caller=replace(host.caller, identity=made["alice"])), address)
    parties = (host.caller.parties[0], address, host.caller.parties[2])
    channel, stub = connect(replace(host.caller, parties=parties, identity=made["bob"]), 1)
    with pytest.raises(grpc.RpcError) as error:
        stub.Describe(DescribeRequest(), timeout=5)
    # Without the rule the connection is made, and the party there only does not know who calls.
    unknown = error.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert unknown == (not callers)
    channel.close()
    server.stop(0)
