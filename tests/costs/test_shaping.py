"""Shaped links: every byte arrives, in order, late enough and no faster than asked; parties compute over them; nothing is left.

Times are only bounded from below, and from above so amply that a busy machine does not matter. How exact they are is in a
record, which `cipherdm bench network` writes.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cipherdm import CipherDMError, LocalCluster, Network
from cipherdm.costs import LinkShaper
from cipherdm.costs.forwarding import Wire
from cipherdm.costs.shaping import ping
from cipherdm_experiments import network as benchmark

NOBODY = (Path("/nowhere"),) * 3
AMPLE = 0.5  # seconds


def receive_all(end: socket.socket) -> bytes:
    """What arrives until the other side has ended its part."""
    pieces = []
    while piece := end.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_wire_is_a_card_and_a_distance():
    wire = Wire(bandwidth=8e6, delay=0.5)  # a byte leaves in a microsecond
    assert wire.arrival(10.0, 1_000_000) == pytest.approx(11.5)
    assert wire.arrival(10.2, 500_000) == pytest.approx(12.0)  # waits for those before
    assert wire.arrival(20.0, 0) == pytest.approx(20.5)  # nothing is saved up while the card has nothing to do


@pytest.mark.parametrize("seed", range(3))
def test_every_byte_arrives_in_order(seed):
    generator = np.random.default_rng(seed)
    there, back = (generator.bytes(int(generator.integers(1, 3_000_000))) for _ in range(2))
    received = {}

    def send(end: socket.socket, data: bytes) -> None:
        start = 0
        while start < len(data):
            size = int(generator.integers(1, 200_000))
            end.sendall(data[start : start + size])
            start += size
        end.shutdown(socket.SHUT_WR)

    with LinkShaper(Network("quick", 2e-3, 1e9), NOBODY) as shaper, shaper.probe() as (near, far):
        threads = [threading.Thread(target=send, args=job) for job in ((near, there), (far, back))]
        threads += [
            threading.Thread(target=lambda name, end: received.update({name: receive_all(end)}), args=job)
            for job in (("there", far), ("back", near))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert received == {"there": there, "back": back}


def test_what_was_sent_before_a_side_went_away_arrives():
    with LinkShaper(Network("slow", 200e-3, 1e9), NOBODY) as shaper, shaper.probe() as (near, far):
        near.sendall(b"unread")
        time.sleep(0.15)  # it is at the other end now
        far.sendall(b"last words")
        near.sendall(b"to nobody")
        far.close()
        assert receive_all(near) == b"last words"


def test_a_message_takes_as_long_as_asked():
    network = Network("slow", 60e-3, 1e9)
    with LinkShaper(network, NOBODY) as shaper, shaper.probe() as (near, far):
        times = [ping(near, far) for _ in range(5)]
    assert network.round_trip <= min(times) < network.round_trip + AMPLE


def test_a_transfer_is_no_faster_than_asked():
    network = Network("narrow", 1e-3, 40e6)
    with LinkShaper(network, NOBODY) as shaper:
        measured = benchmark.measure_throughput(shaper)
    assert 0.2 * network.bandwidth < measured < 1.03 * network.bandwidth


def test_a_partys_links_share_its_bandwidth_and_others_have_their_own(tmp_path):
    network, size = Network("narrow", 0, 40e6), 1_000_000  # 0.2 seconds
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        servers, addresses = {1: one, 2: two}, [tmp_path / f"{rank}.sock" for rank in range(3)]
        for rank, server in servers.items():
            server.bind(str(addresses[rank]))
            server.listen()

        def seconds(*pairs: tuple[int, int]) -> float:
            ends = []
            for sender, receiver in pairs:
                near = socket.socket(socket.AF_UNIX)
                near.connect(str(shaper.seen_by(sender)[receiver]))
                ends.append((near, servers[receiver].accept()[0]))
            start = time.perf_counter()
            threads = [threading.Thread(target=near.sendall, args=(bytes(size),)) for near, _ in ends]
            for thread in threads:
                thread.start()
            for _, far in ends:
                left = size
                while left:
                    left -= len(far.recv(left))
            taken = time.perf_counter() - start
            for end in (*threads, *ends):
                end.join() if isinstance(end, threading.Thread) else [side.close() for side in end]
            return taken

        with LinkShaper(network, addresses) as shaper:
            assert shaper.seen_by(1)[1] == addresses[1] and shaper.seen_by(1)[2] != addresses[2]
            assert 0.19 < min(seconds((0, 1), (2, 1)) for _ in range(3)) < 0.38 < seconds((0, 1), (0, 2)) < 0.4 + AMPLE


def test_a_party_that_does_not_listen_is_noticed():
    with LinkShaper(Network("quick", 1e-3, 1e9), NOBODY) as shaper:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(shaper.seen_by(0)[1]))
            assert end.recv(1) == b""
        with shaper.probe() as (near, far):  # others are still served
            assert ping(near, far) < AMPLE


@pytest.mark.slow
def test_parties_compute_over_a_network():
    """exp is 26 rounds long, and the time of two runs differs by as many delays as it has rounds."""
    x = np.linspace(-3, 0, 200, dtype=np.float32)
    seconds = {}
    for delay in (2e-3, 22e-3):
        with LocalCluster(network=Network("far", 2 * delay, 1e9)) as cluster:
            session, pids = cluster.session(), (*cluster.pids, cluster._shaper.pid)
            runs = [session.run_once(jax.numpy.exp, x) for _ in range(3)]
        assert not any(alive(pid) for pid in pids)
        for result, cost in runs:
            np.testing.assert_allclose(result, np.exp(x), atol=0.01)
            assert cost.rounds == 26
        seconds[delay] = min(float(cost.programs["seconds"].max()) for _, cost in runs)
    slow, quick = seconds[22e-3], seconds[2e-3]
    assert 22 < (slow - quick) / 20e-3 < 40


@pytest.mark.slow  # SPU tries again for some seconds
def test_a_cluster_whose_shaper_ends_says_so():
    x = np.ones(1000, np.float32)
    with LocalCluster(network=Network("quick", 1e-3, 1e9)) as cluster:
        session, pids = cluster.session(), cluster.pids
        session.run_once(jax.nn.silu, x)
        cluster._shaper._process.kill()
        cluster._shaper._process.wait()
        with pytest.raises(CipherDMError, match="shapes the links had ended"):
            session.run_once(jax.nn.silu, x)
    assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_process_does_not_outlive_its_client(ending):
    client = subprocess.Popen([sys.executable, "-c", _CLIENT], stdout=subprocess.PIPE, text=True)
    pid = int(client.stdout.readline())
    assert alive(pid)
    client.send_signal(ending)
    client.wait(timeout=10)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_process_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CipherDMError, match="shapes the parties' links did not start"):
        LinkShaper(Network("quick", 1e-3, 1e9), NOBODY).start()


_CLIENT = """
import signal, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from cipherdm.costs import LinkShaper, Network
with LinkShaper(Network("quick", 1e-3, 1e9), (Path("/nowhere"),) * 3) as shaper:
    print(shaper.pid, flush=True)
    time.sleep(60)
"""
