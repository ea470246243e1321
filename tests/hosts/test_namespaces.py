"""Three hosts with addresses, cables and bandwidths of their own, where the machine permits network namespaces."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from hosting import LIMITS, TIMEOUTS, check_product, register_models, some_input
from namespaces import SUBNET, cut, limit_bandwidth, mend, permitted, three_hosts

from cipherdm import CipherDMError
from cipherdm.engine import Node, Spec, compile_plan
from cipherdm.hosts import LoopbackHosts, Model, RemoteCluster, make_trial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """(files by role, what comes before a command on each host)"""
    if not permitted():
        pytest.skip("network namespaces are not permitted here; test_faults.py says much the same on loopback")
    addresses = [SUBNET.format(rank + 1) for rank in range(3)]
    folder = tmp_path_factory.mktemp("namespaces") / "trial"
    files = make_trial(folder, hosts=addresses, clients=("alice",), timeouts=TIMEOUTS, limits=LIMITS)
    with three_hosts() as launchers, LoopbackHosts(files, launchers):
        register_models(files)
        yield files, launchers


@pytest.fixture
def alice(network):
    with RemoteCluster(network[0]["alice"]) as cluster:
        yield cluster


def test_requests_are_answered_across_hosts(alice):
    for seed in range(3):
        check_product(alice, seed)


def test_a_narrow_link_carries_what_a_run_sends(network, alice):
    """With 8 Mbit/s out of party 1, a run takes at least as long as its bytes, and its answer is as right."""
    (files, launchers), wide = network, Spec((128, 256))
    plan = compile_plan([Node("square", jnp.square, ("x",), ("x",))] * 5, {"x": wide}, ("x",))
    with RemoteCluster(files["owner"]) as owner:
        owner.register(Model("wide", plan, {}, {"x": wide}, ("x",)))
    x = np.random.default_rng(0).uniform(0.8, 1.1, wide.shape).astype(np.float32)
    limit_bandwidth(launchers[1], 8)
    try:
        answer = alice.request("wide", {"x": x})
    finally:
        limit_bandwidth(launchers[1], 10_000)
    sent = answer.cost.programs.query("party == 1")["sent_bytes"].sum()
    assert sent > 5 * x.size * 8  # a product sends a ring element for each, at least
    assert answer.cost.seconds > 0.9 * sent * 8 / 8e6
    np.testing.assert_allclose(answer.outputs["x"], x.astype(np.float64) ** 32, rtol=0.01, atol=0.01)


def test_a_pulled_cable_is_noticed_and_mended(network, alice):
    launcher, pulled = network[1][2], []

    def pull(done: int, *_) -> None:
        if done >= 3 and not pulled:
            cut(launcher)
            pulled.append(time.monotonic())

    try:
        with pytest.raises(CipherDMError, match="party 2"):
            alice.request("slow", {"x": some_input(0)}, pull)
        assert time.monotonic() - pulled[0] < 2 * TIMEOUTS.keepalive + 20
    finally:
        mend(launcher)
    check_product(alice, 20)
