"""What a caller takes from three parties that should say the same, and do not."""

import json
from unittest.mock import Mock

import pytest
from small import ONE_LEVEL, SCHEDULER

from cipherdm import CipherDMError
from cipherdm.engine import party_pb2 as engine_pb
from cipherdm.hosts import RemoteCluster, images_of
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.remote import _common, _shares_of

pytestmark = pytest.mark.attack


def party(*models: pb.Model) -> pb.Description:
    return pb.Description(models=models)


def model(digest: str, **about) -> pb.Model:
    return pb.Model(**({"name": "m", "digest": digest, "fraction_bits": 18, "about": "{}"} | about))


def test_the_newest_registration_that_all_have_is_taken():
    old, new = model("old"), model("new")
    for parties in ((party(new, old), party(new, old), party(old)), (party(old), party(new, old), party(old))):
        assert _common(parties) == ({"m": old}, {})
    assert _common([party(new, old)] * 3) == ({"m": new}, {})


@pytest.mark.parametrize(
    ("parties", "fault"),
    [
        ((party(model("a")), party(), party(model("a"))), "party 1 lacks it"),
        ((party(), party(model("a")), party(model("a"))), "party 0 lacks it"),
        ((party(model("a")), party(model("a")), party(model("b"))), "they have different registrations of it"),
    ],
)
def test_a_model_that_not_all_have_is_no_model(parties, fault):
    other = model("c", name="other")
    parties = [party(*one.models, other) for one in parties]
    assert _common(parties) == ({"other": other}, {"m": fault})


@pytest.mark.parametrize(
    "change",
    [
        {"about": '{"steps": 1}'},
        {"fraction_bits": 17},
        {"owner": "rival"},
        {"outputs": ["w"]},
        {"inputs": [pb.Variable(name="x", shape=[1])]},
    ],
)
@pytest.mark.parametrize("rank", range(3))
def test_parties_that_describe_a_model_differently_are_named(rank, change):
    """The digest is what a party says it is: all that the client relies on is compared."""
    parties = [party(model("a", **(change if rank == one else {}))) for one in range(3)]
    named = {0: "parties 0 and 1, and parties 0 and 2", 1: "parties 0 and 1, and parties 1 and 2"}
    expected = named.get(rank, "parties 0 and 2, and parties 1 and 2")
    assert _common(parties) == ({}, {"m": f"{expected} describe it differently"})


def test_an_output_that_does_not_come_is_an_error():
    piece = engine_pb.SharePiece(name="y", chunk_count=1)
    assert len(_shares_of("y", {"y": ([piece], [piece], [piece])})) == 3
    with pytest.raises(CipherDMError, match="party 1 has answered without 'y'"):
        _shares_of("y", {"y": ([piece], [], [piece])})
    with pytest.raises(CipherDMError, match="party 0 has answered without 'y'"):
        _shares_of("y", {})


GOOD = {
    "kind": "unet2d sampling, version 1",
    "config": ONE_LEVEL.to_diffusers(),
    "scheduler_config": SCHEDULER,
    "scheduler": "ddim",
    "steps": 5,
    "eta": 0.0,
    "protocols": "fast",
    "pictures": 1,
}


def described(about: str) -> Mock:
    """Three hosts that have one model."""
    sample = pb.Variable(name="sample", shape=[1, 1, 8, 8])
    stub = pb.Model(name="m", owner="rival", fraction_bits=18, exp="taylor", about=about, inputs=[sample])
    return Mock(model=lambda _: stub, request=Mock(side_effect=InterruptedError))


@pytest.mark.parametrize(
    "about",
    [
        "[" * 60_000,
        "[]",
        "nonsense",
        json.dumps({"kind": []}),
        json.dumps({"kind": GOOD["kind"]}),
        json.dumps(GOOD | {"pictures": 10**9}),
        json.dumps(GOOD | {"pictures": "many"}),
        json.dumps(GOOD | {"config": 5}),
    ],
)
def test_a_description_that_cannot_be_read_names_its_owner(about):
    with pytest.raises(InterruptedError):
        images_of(described(json.dumps(GOOD)), "m", labels=[1])
    with pytest.raises(CipherDMError, match="rival has registered m with a description that cannot be read"):
        images_of(described(about), "m", labels=[1])


def test_labels_of_an_owner_are_shown_with_escapes():
    event = pb.RequestEvent(progress=pb.Progress(done=engine_pb.CallDone(), label="\x1b[31mred", total=1))
    seen = []
    stream = type("Stream", (list,), {"cancel": lambda self: None})([event])
    cluster = RemoteCluster.__new__(RemoteCluster)
    cluster._stubs = (Mock(Request=lambda _: stream),) * 3
    cluster._agreed_model = lambda _: ("", pb.Model(name="m", fraction_bits=18, exp="taylor"))
    cluster.request("m", {}, lambda *step: seen.append(step))
    assert seen == [(1, 1, r"\x1b[31mred")]
