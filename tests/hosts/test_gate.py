"""The links between hosts: nobody but a party gets an answer, whatever they speak and whatever they show."""

import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from unittest.mock import Mock

import numpy as np
import pytest
from hosting import check_product

from cipherdm.hosts import RemoteCluster, free_ports, load_caller, load_host, make_certificates
from cipherdm.hosts.gate import KINDS, MOST_SETUPS_FROM, SETUP_SECONDS, Gate, named

pytestmark = pytest.mark.attack

PUSH = b"POST /org.interconnection.link.ReceiverService/Push HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
BAIDU = b"PRPC\x00\x00\x00\x24\x00\x00\x00\x24\n\x22\n\x1borg.interconnection.link.ReceiverService\x12\x04Push"


@pytest.fixture(scope="module")
def link(hosts):
    """The address of party 0's gate, with the processes of a slot there."""
    with RemoteCluster(hosts["alice"]) as alice, RemoteCluster(hosts["operator"]) as operator:
        check_product(alice, 12)
        _, status = operator.states()[0]
    return load_host(hosts["party2"]).gate(status.processes[0].slot, "").addresses[0]


def answer(
    address, data, identity=None, *, version=ssl.TLSVersion.TLSv1_3, plain=False, recorded=None, kind="sock"
) -> bytes:
    """What comes back for some bytes: nothing, if the connection is refused or closed. A timeout is an error here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols([kind])
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.private_key)
    with socket.create_connection(address, timeout=3 * SETUP_SECONDS) as wire:
        try:
            if plain:
                wire.sendall(data)
                return wire.recv(100)
            received, sealed = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(received, sealed)
            for step in (tls.do_handshake, lambda: tls.write(data), lambda: tls.read(100)):
                while True:
                    try:
                        result = step()
                        break
                    except ssl.SSLWantReadError:
                        wire.sendall(_noted(sealed.read(), recorded))
                        if not (more := wire.recv(1 << 16)):
                            return b""
                        received.write(more)
                wire.sendall(_noted(sealed.read(), recorded))
            return result
        except (ssl.SSLError, ConnectionError):
            return b""


def _noted(data: bytes, recorded: list | None) -> bytes:
    if recorded is not None:
        recorded.append(data)
    return data


def test_parties_are_heard_and_nobody_else_is(hosts, link, tmp_path):
    """The first line proves that the questions are ones that SPU's server answers."""
    peer, own = (load_host(hosts[f"party{rank}"]).link_identity for rank in (2, 0))
    recorded = []
    assert answer(link, HEALTH, peer, recorded=recorded).startswith(b"HTTP/1.1 ")
    for question in (PUSH, HEALTH, BAIDU):
        assert answer(link, question, plain=True) == b"", "somebody who speaks plainly is answered"
        assert answer(link, question) == b"", "somebody without a certificate is answered"
        assert answer(link, question, load_caller(hosts["alice"]).identity) == b"", "a client is answered"
        assert answer(link, question, load_host(hosts["party1"]).caller.identity) == b"", "another authority counts"
        assert answer(link, question, own) == b"", "somebody with the party's own name is answered"
    assert answer(link, HEALTH, make_certificates(tmp_path, ("party1",))["party1"]) == b"", "a foreign authority counts"
    assert answer(link, HEALTH, peer, version=ssl.TLSVersion.TLSv1_2) == b"", "TLS 1.2 is spoken"
    assert answer(link, HEALTH, peer, kind="http/1.1") == b"", "a link of no kind is answered"
    assert answer(link, HEALTH, peer, kind="walk") == b"", "SPU is reached by another kind of link"
    replayed = answer(link, b"".join(recorded), plain=True)
    assert b"HTTP" not in replayed, "a recorded connection is answered again"
    with RemoteCluster(hosts["bob"]) as bob:
        check_product(bob, 13)


def test_silent_callers_are_put_out_and_do_not_keep_others_out(hosts, link):
    """As many as one address may have at a time get some seconds, also the one that sends a byte at times; more do not."""
    start, ends = time.monotonic(), []
    silent = [socket.create_connection(link, timeout=2 * SETUP_SECONDS) for _ in range(2 * MOST_SETUPS_FROM)]

    def drip() -> None:
        with suppress(OSError):
            for byte in b"\x16\x03\x01\x02\x00" + bytes(40):
                silent[0].sendall(bytes([byte]))
                time.sleep(0.5)

    def listen(connection: socket.socket) -> None:
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
        ends.append(time.monotonic() - start)

    with ThreadPoolExecutor(2 * MOST_SETUPS_FROM + 1) as threads:
        dripping = threads.submit(drip)
        for heard in [threads.submit(listen, connection) for connection in silent]:
            heard.result()
        assert sum(end < 0.6 * SETUP_SECONDS for end in ends) == MOST_SETUPS_FROM
        assert max(ends) < 1.6 * SETUP_SECONDS
        for connection in silent:
            connection.close()
        dripping.result()
    with RemoteCluster(hosts["alice"]) as alice:
        check_product(alice, 14)


@pytest.fixture
def gates(tmp_path):
    """gates(names): gates of parties 0 and 1 with certificates of these names; what party 1 hears; a way out from party 0.

    A second argument is the kind of link.
    """
    running = []

    def start(names, kind="sock"):
        first = free_ports(3)
        made = make_certificates(tmp_path / "made", (*{*names},))
        for rank, name in enumerate(names):
            folder = tmp_path / str(rank)
            folder.mkdir()
            files = {field: str(path) for field, path in vars(made[name]).items()}
            addresses = tuple(("127.0.0.1", first + other) for other in range(3))
            running.append(Gate(rank, str(folder), addresses, **files).start(folder / "err"))
            assert running[-1].stdout.readline() == b"ready\n"
        spu = socket.socket(socket.AF_UNIX)
        spu.bind(str(tmp_path / "1" / f"party1.{kind}"))
        spu.listen()
        out = socket.socket(socket.AF_UNIX)
        out.connect(str(tmp_path / "0" / f"to1.{kind}"))
        for end in (spu, out):
            end.settimeout(2 * SETUP_SECONDS)
        return spu, out

    yield start
    for process in running:
        process.stdin.close()
        process.stdout.close()
        process.wait(5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_arrives_in_order_also_those_sent_just_before_the_end(gates, kind):
    spu, out = gates(("party0", "party1"), kind)
    generator = np.random.default_rng(0)
    there, back = generator.bytes(5_000_000), generator.bytes(3_000_000)
    heard = spu.accept()[0]
    heard.settimeout(20)
    sender = threading.Thread(target=out.sendall, args=(there,))
    sender.start()
    heard.sendall(back[:10])
    received = bytearray()
    while len(received) < len(there):
        received += heard.recv(1 << 16)
    sender.join()
    heard.sendall(back[10:])
    heard.close()
    answered = bytearray()
    while piece := out.recv(1 << 16):
        answered += piece
    assert received == there and answered == back


def test_not_a_byte_leaves_for_a_peer_of_another_name(gates, tmp_path):
    spu, out = gates(("party0", "party2"))
    try:
        out.sendall(b"secret")
        assert out.recv(1) == b""
    except ConnectionError:
        pass
    assert spu.accept()[0].recv(1) == b""  # the false peer has shaken hands, and gets nothing more
    assert "is not one of ['party1']" in (tmp_path / "0" / "err").read_text()


def shaken_hands(gate: Gate, asks: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """The gate's side and the caller's, once both have said all that they have to."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = gate.context(ssl.PROTOCOL_TLS_SERVER).wrap_bio(to_server, to_client, server_side=True)
    client = asks.wrap_bio(to_client, to_server)
    for step in (client.do_handshake, server.do_handshake) * 4 + (lambda: client.read(1),):
        with suppress(ssl.SSLWantReadError):
            step()
    return server, client


def gate_of(certificates) -> Gate:
    return Gate(0, "", (("", 1), ("", 2), ("", 3)), **{name: str(path) for name, path in vars(certificates).items()})


def test_a_name_must_stand_in_both_places(tmp_path):
    """A certificate of somebody else which has a party's name among its DNS names is not the party's, nor is the reverse."""
    made = make_certificates(tmp_path, ("alice", "party0"), hosts=("localhost", "127.0.0.1", "party1"))
    server, client = shaken_hands(gate_of(made["party0"]), gate_of(made["alice"]).context(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(ConnectionError, match="alice"):
        named(server, {"party1"})
    with pytest.raises(ConnectionError, match="party0"):
        named(Mock(getpeercert=lambda: client.getpeercert() | {"subjectAltName": ()}), {"party0"})
    assert named(client, {"party0", "party1"}) == "party0"
    assert not client.session.has_ticket, "a session could be resumed past the check of names"


def test_who_shows_no_certificate_does_not_get_through_the_handshake(tmp_path):
    party = gate_of(make_certificates(tmp_path, ("party0",))["party0"])
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError, match="did not return a certificate"):
        shaken_hands(party, nobody)


def test_private_keys_are_for_the_user_only(tmp_path):
    for certificates in make_certificates(tmp_path, ("party0", "owner")).values():
        assert certificates.private_key.stat().st_mode & 0o077 == 0
