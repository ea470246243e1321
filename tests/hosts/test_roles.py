"""Every call by every role, allowed or not; and what a role that may call is still denied."""

import uuid
from collections.abc import Iterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from hosting import INPUT, WEIGHTS, check_product, header, product_model, shares, some_input
from spu import api, libspu

from cipherdm import CipherDMError
from cipherdm.engine import EngineConfig
from cipherdm.engine import party_pb2 as engine_pb
from cipherdm.engine.rpc import Stub
from cipherdm.engine.wire import pieces
from cipherdm.hosts import RemoteCluster, load_caller, load_host
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.channels import connect
from cipherdm.hosts.roles import ALLOWED, Role, roles_of

pytestmark = pytest.mark.attack

DENIED = grpc.StatusCode.PERMISSION_DENIED
REQUESTS = {
    "Describe": pb.DescribeRequest(),
    "Status": pb.StatusRequest(),
    "Register": [pb.RegisterPiece()],
    "Publish": pb.ModelVersion(name="nothing", registration="0" * 32),
    "Remove": pb.ModelVersion(name="nothing"),
    "Request": [pb.RequestPiece(header=pb.RequestHeader(run="0" * 32, model="nothing"))],
    "Slot": pb.SlotRequest(slot=9),
    "Start": pb.StartRequest(slot=9),
}
ROLES = {
    "party0": {Role.PARTY, Role.SCHEDULER},
    "party2": {Role.PARTY},
    "owner": {Role.OWNER},
    "alice": {Role.CLIENT},
    "operator": {Role.OPERATOR},
    "stranger": set(),
}


@pytest.fixture
def stub(hosts):
    """stub(name, rank): one party, called with somebody's certificate."""
    channels = []

    def open_stub(name: str, rank: int = 1):
        channel, made = connect(load_caller(hosts[name]), rank)
        channels.append(channel)
        return made

    yield open_stub
    for channel in channels:
        channel.close()


def code_of(stub, method: str, request) -> grpc.StatusCode:
    """How a call ends."""
    try:
        answer = getattr(stub, method)(iter(request) if isinstance(request, list) else request, timeout=20)
        if isinstance(answer, Iterator):
            list(answer)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_the_table_has_every_method_of_the_service():
    service = pb.DESCRIPTOR.services_by_name["Host"]
    assert set(ALLOWED) == {f"/{service.full_name}/{method.name}" for method in service.methods}
    assert {method.name for method in service.methods} == set(REQUESTS)


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("name", ROLES)
def test_every_call_by_every_role(hosts, stub, name, method):
    assert roles_of(name, load_host(hosts["party1"]).roles) == ROLES[name]
    code = code_of(stub(name), method, REQUESTS[method])
    allowed = bool(ROLES[name] & ALLOWED[f"/cipherdm.hosts.Host/{method}"])
    assert (code != DENIED) == allowed, (code, allowed)


def test_a_client_may_call_two_methods_and_a_stranger_none():
    """The table itself, against what the roles are for."""
    methods = {role: {m.rpartition("/")[2] for m, roles in ALLOWED.items() if role in roles} for role in Role}
    assert methods[Role.CLIENT] == {"Describe", "Request"}
    assert methods[Role.OWNER] == {"Describe", "Register", "Publish", "Remove"}
    assert methods[Role.OPERATOR] == methods[Role.PARTY] == {"Describe", "Status"}
    assert methods[Role.SCHEDULER] == {"Describe", "Slot", "Start"}


@pytest.mark.parametrize("method", ["Open", "Store", "Fetch", "Delete", "AddProgram", "Run", "Close", "Describe"])
@pytest.mark.parametrize("name", ["alice", "owner", "party0"])
def test_the_calls_of_a_local_party_are_denied_to_all(hosts, name, method):
    """Nobody brings programs for a run, writes or reads variables, or opens sessions of its own."""
    channel, _ = connect(load_caller(hosts[name]), 1)
    request = {"Store": engine_pb.SharePiece, "AddProgram": engine_pb.Program, "Run": engine_pb.Plan}
    kind = request.get(method) or getattr(engine_pb, f"{method}Request")
    message = [kind()] if method == "Store" else kind()
    assert code_of(Stub(channel, engine_pb.DESCRIPTOR), method, message) == DENIED
    channel.close()


def test_nobody_comes_in_without_a_certificate(hosts):
    caller = load_caller(hosts["alice"])
    credentials = grpc.ssl_channel_credentials(caller.identity.authority.read_bytes())
    options = (("grpc.ssl_target_name_override", "party1"),)
    with grpc.secure_channel(caller.parties[1], credentials, options) as channel:
        describe = channel.unary_unary("/cipherdm.hosts.Host/Describe")
        with pytest.raises(grpc.RpcError) as refused:
            describe(b"", timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_party_cannot_take_anothers_place(hosts):
    """Callers look at the name in the certificate, not at the address."""
    caller = load_caller(hosts["alice"])
    swapped = replace(caller, parties=(caller.parties[0], caller.parties[2], caller.parties[1]))
    swapped = replace(swapped, timeouts=replace(swapped.timeouts, connect=3.0))
    with RemoteCluster(swapped) as cluster, pytest.raises(CipherDMError, match="does not accept|does not answer"):
        cluster.descriptions()


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (lambda: shares("w", WEIGHTS), DENIED),  # the owner's weights
        (lambda: shares("y", some_input(0)), DENIED),  # an output
        (lambda: shares("x", some_input(0)) * 2, grpc.StatusCode.INVALID_ARGUMENT),  # the same twice
        (lambda: [], grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: shares("x", np.ones((9, 4), np.float32)), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: shares("x", np.ones(INPUT.shape, np.int32)), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: shares("x", some_input(0), libspu.Visibility.VIS_PUBLIC), grpc.StatusCode.INVALID_ARGUMENT),
        (
            lambda: [pb.RequestPiece(share=engine_pb.SharePiece(name="x", meta=b"\xff\xff", chunk_count=1))],
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
    ids=["weights", "output", "twice", "missing", "shape", "dtype", "public", "garbage"],
)
def test_a_client_shares_its_own_inputs_and_nothing_else(hosts, stub, messages, code):
    assert code_of(stub("alice"), "Request", [header(hosts), *messages()]) == code
    with RemoteCluster(hosts["alice"]) as alice:
        check_product(alice, 11)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "none"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"digest": "0" * 64}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"agreement": "0.0.1/0.9.5/0"}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"run": "../x"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_request_for_something_else_is_refused(hosts, stub, changes, code):
    assert code_of(stub("alice"), "Request", [header(hosts, **changes), *shares("x", some_input(0))]) == code


def test_a_program_that_reveals_is_refused_by_the_party_itself(hosts, stub):
    """Whatever the owner's own check says."""
    model = product_model("revealing")
    manifest = model.manifest(uuid.uuid4().hex)
    code = manifest.programs[0]
    secret = "tensor<6x4x!pphlo.secret<f32>>"
    call = f"%9 = pphlo.custom_call @spu.reveal(%0) : ({secret}) -> tensor<6x4xf32>\n    return".encode()
    code.text = code.text.replace(b"return", call, 1)
    share = api.Io(3, EngineConfig().runtime_config()).make_shares(WEIGHTS, libspu.Visibility.VIS_SECRET)[1]
    upload = [pb.RegisterPiece(manifest=manifest)] + [pb.RegisterPiece(share=p) for p in pieces("", "w", share)]
    with pytest.raises(grpc.RpcError, match="reveals a secret to the parties") as refused:
        stub("owner").Register(iter(upload))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
