"""A trial with a second owner and a stranger, and two small models, for tests of three hosts."""

import uuid
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from spu import api, libspu

from cipherdm.engine import EngineConfig, Node, Spec, compile_plan
from cipherdm.engine.wire import pieces
from cipherdm.hosts import PARTY_NAMES, Limits, Model, RemoteCluster, Timeouts, make_trial
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.config import agreement_of
from cipherdm.hosts.loopback import free_ports

LIMITS = Limits(runs=2, queue=2, runs_per_client=1, input_bytes=1 << 20, model_bytes=4 << 20, models=3)
TIMEOUTS = Timeouts(upload=60.0, run=300.0)

WEIGHTS = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
INPUT = Spec((8, 4))
SLOW_CALLS = 2000


def small_trial(folder: Path) -> dict[str, Path]:
    """Make files for parties on free ports, by role. "rival" is an owner too, and "stranger" has no role at all."""
    files = make_trial(
        folder,
        port=free_ports(3 + 3 * LIMITS.runs),
        clients=("alice", "bob", "carol", "rival", "stranger"),
        timeouts=TIMEOUTS,
        limits=LIMITS,
    )
    for name in PARTY_NAMES:
        text = files[name].read_text()
        text = text.replace(
            'clients = ["alice", "bob", "carol", "rival", "stranger"]', 'clients = ["alice", "bob", "carol"]'
        )
        files[name].write_text(text.replace('owners = ["owner"]', 'owners = ["owner", "rival"]'))
    return files


def product_model(name: str = "product") -> Model:
    """Return a model of y = W x."""
    plan = compile_plan([Node("product", jnp.matmul, ("w", "x"), ("y",))], {"w": Spec.of(WEIGHTS), "x": INPUT}, ("y",))
    return Model(name, plan, {"w": WEIGHTS}, {"x": INPUT}, ("y",))


def slow_model() -> Model:
    """Return a model of many squares of [8, 4], one after the other: a run that lasts until somebody ends it."""
    nodes = [Node("square", jnp.square, ("x",), ("x",))] * SLOW_CALLS
    return Model("slow", compile_plan(nodes, {"x": INPUT}, ("x",)), {}, {"x": INPUT}, ("x",))


def register_models(files: dict[str, Path]) -> None:
    """Register both models as their owner, who then leaves."""
    with RemoteCluster(files["owner"]) as owner:
        owner.register(product_model())
        owner.register(slow_model())


def some_input(seed: int) -> np.ndarray:
    """Return float32 [8, 4], a different one for each seed."""
    return np.random.default_rng(seed).uniform(-4, 4, INPUT.shape).astype(np.float32)


def check_product(cluster: RemoteCluster, seed: int) -> None:
    """Make one request of the product, and compare its answer with plaintext."""
    x = some_input(seed)
    answer = cluster.request("product", {"x": x})
    np.testing.assert_allclose(answer.outputs["y"], WEIGHTS @ x, atol=1e-3)


def shares(name: str, array: np.ndarray, visibility=libspu.Visibility.VIS_SECRET) -> list[pb.RequestPiece]:
    """Return party 1's messages for a value, as a client sends them."""
    share = api.Io(3, EngineConfig().runtime_config()).make_shares(array, visibility)[1]
    return [pb.RequestPiece(share=piece) for piece in pieces("", name, share)]


def header(hosts, **changes) -> pb.RequestPiece:
    """Return a good header for the product, but for the changes."""
    with RemoteCluster(hosts["alice"]) as alice:
        description = alice.descriptions()[1]
        digest = alice.models()["product"].digest
    agreement = agreement_of(description.cipherdm_version, description.spu_version, description.configuration)
    good = {"run": uuid.uuid4().hex, "model": "product", "digest": digest, "agreement": agreement}
    return pb.RequestPiece(header=pb.RequestHeader(**good | changes))
