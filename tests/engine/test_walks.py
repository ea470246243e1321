"""Walks on three real parties: a model's steps, beside SPU in one plan, and parties that do not run the same program."""

import hashlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from spu import libspu
from words import product

import cipherdm as cdm
from cipherdm import CipherDMError, EngineConfig
from cipherdm.engine import Node, Spec, Walking, compile_plan, party_pb2, programs, walks
from cipherdm.engine.config import PARTIES
from cipherdm.engine.programs import compile_walk
from cipherdm.engine.walk_links import WalkLinks
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.kernels.rings import costs
from cipherdm.kernels.rounds import Round
from cipherdm.protocols.fixed import ENGINE_FRACTION_BITS, Fixed, decode, encode
from cipherdm.sampling import make_task, sampling_nodes
from cipherdm.sampling.rings import walking_of
from cipherdm.sampling.steps import pick_class_words

BITS = 10
WALKING = Walking(ENGINE_FRACTION_BITS)
ENGINE = EngineConfig(fraction_bits=ENGINE_FRACTION_BITS)
X = np.linspace(-3, 3, 50, dtype=np.float32)
RANDOM = np.random.default_rng(0)


def square(x, bits=BITS):
    """x^2 of words, at so many bits."""
    number = Fixed.load(x, BITS, ring=True)
    return (number * number).truncated(bits).store()


def at_least_one(x):
    """A comparison, which a walk does not do."""
    number = Fixed.load(x, BITS, ring=True)
    return number.with_array(jnp.maximum(number.array, np.int32(1 << BITS))).store()


@pytest.mark.parametrize("protocols", [cdm.FAST_64, cdm.FAST_RINGS], ids=lambda protocols: protocols.name)
def test_a_model_is_sampled_with_the_results_of_fast(cluster, protocols):
    unet, settings = cdm.load_unet("data/models/mnist01-tiny"), {"steps": 4, "labels": [1]}
    expected = cdm.sample(unet, None, protocols=cdm.FAST, **settings)
    task = make_task(unet, protocols=protocols, **settings)
    nodes = sampling_nodes(task.shape, "step")
    plan = compile_plan(nodes, task.specs, keep=["sample"], walking=walking_of(task, nodes))
    session = cluster.session(ENGINE)
    task.share(session)
    cost = session.run(plan)
    drawn = task.decoded(session.reveal("sample"))
    assert np.sqrt(np.mean((drawn - expected.images) ** 2)) < 0.02
    assert set(cost.by_operator().index) == {"walk"}
    assert cost.rounds < cost.sends
    # Bytes are those of the plan, but for the keys that are agreed on first.
    plans = [WalkPlan.from_json(call.program.code.decode()) for call in plan.calls]
    assert cost.bytes == pytest.approx(sum(costs(walk)[0] for walk in plans), abs=4096)


def test_spu_takes_over_within_a_plan(cluster):
    session = cluster.session(ENGINE)
    nodes = [
        Node("square", square, ("x",), ("y",)),
        Node("compare", at_least_one, ("y",), ("z",)),
        Node("square again", square, ("z",), ("w",)),
    ]
    encoded = encode(X, BITS, ring=True)
    plan = compile_plan(nodes, {"x": Spec.of(encoded)}, keep=["w"], walking=WALKING)
    assert [call.program.walk for call in plan.calls] == [True, False, True]
    session.share({"x": encoded})
    cost = session.run(plan)
    result = session.reveal("w") * 2.0 ** (ENGINE_FRACTION_BITS - BITS)
    np.testing.assert_allclose(result, np.maximum(np.round(X, 3) ** 2, 1) ** 2, atol=0.1)
    assert cost.by_operator().loc["walk", "calls"] == 2


def reached(path):
    """A connection to a socket, as soon as somebody listens there."""
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.01)


@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7), (4, 2, 2)])
def test_shares_come_and_go_in_pieces(monkeypatch, shape):
    """As SPU stores them: words of both components in turns, in order, with each piece's place in the whole."""
    monkeypatch.setattr(walks, "CHUNK_NUMBERS", 8)
    pair = RANDOM.integers(0, 2**64 - 1, (2, *shape), np.uint64, endpoint=True)
    share = walks.spu_share(pair)
    count, pieces = int(np.prod(shape)), []
    for chunk in share.share_chunks:
        piece = libspu.ValueChunk()
        piece.ParseFromString(chunk)
        assert (piece.total_bytes, piece.chunk_offset) == (16 * count, sum(map(len, pieces)))
        pieces.append(piece.content)
    assert len(pieces) == max(1, -(-count // 8))
    assert np.frombuffer(b"".join(pieces), "<u8").tolist() == pair.reshape(2, -1).T.ravel().tolist()
    again = walks.pair_of({"x": share}.get, "x")
    assert again.dtype == np.uint64 and np.array_equal(again, pair)


@pytest.mark.parametrize("pieces", [[0], [0, 1, 1]])
def test_a_share_of_another_length_is_refused(monkeypatch, pieces):
    monkeypatch.setattr(walks, "CHUNK_NUMBERS", 8)
    share = walks.spu_share(RANDOM.integers(0, 2**63, (2, 16), np.uint64))
    chunks = share.share_chunks
    share.share_chunks = [chunks[index] for index in pieces]
    with pytest.raises(CipherDMError, match=f"share of x has {8 * len(pieces)} numbers"):
        walks.pair_of({"x": share}.get, "x")


def test_parties_put_large_results_together(cluster):
    """A result of more than one piece, which is then the operand of another walk."""
    shapes = {"first": (1100, 4), "second": (4, 1000), "third": (2, 1100)}
    values = {name: RANDOM.integers(-9, 10, shape).astype(np.float32) for name, shape in shapes.items()}
    first, second, third = values.values()
    assert first.shape[0] * second.shape[1] > walks.CHUNK_NUMBERS
    encoded = {name: encode(value, 0, ring=True) for name, value in values.items()}
    nodes = [
        Node("product", product, ("first", "second"), ("large",)),
        Node("product", product, ("third", "large"), ("result",)),
    ]
    specs = {name: Spec.of(array) for name, array in encoded.items()}
    session = cluster.session(ENGINE)
    session.share(encoded)
    cost = session.run(compile_plan(nodes, specs, keep=["result"], walking=WALKING))
    assert np.array_equal(decode(session.reveal("result"), 0, ring=True), third @ first @ second)
    assert cost.bytes == 24 * (1100 + 2) * 1000


def test_links_of_walks_take_the_parties_of_their_generation_and_nobody_else(tmp_path):
    """A stranger and a party of an earlier generation are put out, and the three find each other all the same."""
    sockets = [tmp_path / f"party{rank}.sock" for rank in range(PARTIES)]

    def linked(rank, link_id):
        return WalkLinks(rank, sockets, link_id, connect_timeout=20, receive_timeout=5)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(linked, 0, "now")
        path = sockets[0].with_suffix(".walk")
        for said in (b"", b"\x01", hashlib.sha256(b"before 1").digest(), hashlib.sha256(b"now 0").digest()):
            with reached(path) as stranger:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        others = [pool.submit(linked, rank, "now") for rank in (1, 2)]
        links = [made.result() for made in (first, *others)]
        sent = {rank: np.arange(rank + 1, dtype=np.uint8) for rank in range(PARTIES)}
        rounds = [
            Round({other: sent[rank] for other in sent if other != rank}, {o: o + 1 for o in sent if o != rank})
            for rank in sent
        ]
        came = list(pool.map(lambda link, messages: link.exchange(messages, (0, 0, b"the plan")), links, rounds))
    for rank, found in enumerate(came):
        assert {other: list(part) for other, part in found.items()} == {
            other: list(sent[other]) for other in sent if other != rank
        }


def test_a_party_with_another_program_ends_the_run():
    """Party 1 has a program of the same name that cuts one bit less, with messages of the same lengths.

    Before that, all are right over a network.
    """
    encoded = encode(X, BITS, ring=True)
    with cdm.LocalCluster(network=cdm.LAN) as cluster:
        session = cluster.session(ENGINE)
        plan = compile_plan([Node("square", square, ("x",), ("y",))], {"x": Spec.of(encoded)}, ["y"], walking=WALKING)
        session.share({"x": encoded})
        session.run(plan)
        result = session.reveal("y") * 2.0 ** (ENGINE_FRACTION_BITS - BITS)
        np.testing.assert_allclose(result, np.round(X * 2**BITS) ** 2 / 4**BITS, atol=2.0**-BITS)
        other = compile_walk(lambda x: square(x, BITS + 1), (Spec.of(encoded),), WALKING)
        message = party_pb2.Program(session=session.name, id=plan.calls[0].program.id, walk=other.code)
        session._stubs[1].AddProgram(message)
        with pytest.raises(CipherDMError, match="party . runs another program"):
            session.run(plan)


def moved(x):
    return x.T


def test_what_reading_gives_is_kept_for_functions_of_the_package_alone(monkeypatch, tmp_path):
    """Another function may change without the cache noticing, so it is read anew in each process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    traced, specs = [], (Spec((2, 3)), Spec((3, 4, 5)))

    def trace(function, *rest):
        traced.append(function.__name__)
        return real(function, *rest)

    real = programs.trace
    monkeypatch.setattr(programs, "trace", trace)
    found = []
    for _ in range(2):  # as in two processes
        programs.read_walk.cache_clear()
        found.append(programs.read_walk(pick_class_words, specs, ENGINE_FRACTION_BITS, by_value=False))
        programs.read_walk(moved, (Spec((2, 3)),), ENGINE_FRACTION_BITS, by_value=False)
    programs.read_walk.cache_clear()
    assert traced == ["pick_class_words", "moved", "moved"]
    assert found[0].digest == found[1].digest == real(pick_class_words, specs, ENGINE_FRACTION_BITS).digest
