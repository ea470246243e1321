"""Three hosts for real: an owner registers and leaves, clients come and go, several at once, and answers are right."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hosting import WEIGHTS, check_product, product_model, some_input
from PIL import Image
from small import ONE_LEVEL, SCHEDULER

from cipherdm import CipherDMError, sample
from cipherdm.engine import Node, Spec, compile_plan
from cipherdm.hosts import Model, RemoteCluster, images_of, sampling_model
from cipherdm.hosts.status import report
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.protocols import DIRECT, FAST, FAST_64


@pytest.fixture
def alice(hosts):
    with RemoteCluster(hosts["alice"]) as cluster:
        yield cluster


def in_hand(hosts) -> list[int]:
    """Requests that each party has in hand."""
    with RemoteCluster(hosts["operator"]) as operator:
        return [status.requests for _, status in operator.states()]


def wait_until_idle(hosts) -> None:
    deadline = time.monotonic() + 30
    while any(in_hand(hosts)):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_answer_is_that_of_plaintext_and_says_what_it_cost(alice):
    x, seen = some_input(1), []
    answer = alice.request("product", {"x": x}, progress=lambda *event: seen.append(event))
    np.testing.assert_allclose(answer.outputs["y"], WEIGHTS @ x, atol=1e-3)
    assert (1, 1, "product") in seen
    # A product of [6, 8] and [8, 4] sends 24 ring elements a party, and their truncation twice as many.
    assert answer.cost.bytes == pytest.approx(3 * 24 * 8 * 3, rel=0.35)


def test_clients_at_once_get_their_own_answers(hosts):
    def requests(client: str, first: int) -> None:
        with RemoteCluster(hosts[client]) as cluster:
            for seed in range(first, first + 4):
                check_product(cluster, seed)

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(requests, "alice", 100), pool.submit(requests, "bob", 200)]:
            done.result()
    wait_until_idle(hosts)


def test_no_proxy_comes_between(hosts, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with RemoteCluster(hosts["alice"]) as alice:
        check_product(alice, 6)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("none", {"x": np.ones((8, 4), np.float32)}, "no model 'none' at all three parties; there is: product, slow"),
        ("product", {}, "lacks the input 'x'"),
        ("product", {"x": np.ones((8, 4), np.float32), "w": WEIGHTS}, "has no input 'w'"),
        ("product", {"x": np.ones((8, 5), np.float32)}, r"x is float32\[8, 5\]; product takes float32\[8, 4\]"),
        ("product", {"x": np.ones((8, 4), np.int32)}, r"x is int32\[8, 4\]"),
        ("product", {"x": np.full((8, 4), np.nan, np.float32)}, "x has values that are not finite"),
    ],
)
def test_wrong_inputs_are_named(alice, name, inputs, message):
    with pytest.raises(CipherDMError, match=message):
        alice.request(name, inputs)


def test_a_client_that_goes_away_frees_what_it_held(hosts, alice):
    begun, ended = threading.Event(), []

    def slow_request() -> None:
        with RemoteCluster(hosts["bob"]) as bob:

            def leave(done: int, *_) -> None:
                begun.set()
                if done > 2:
                    raise KeyboardInterrupt

            try:
                bob.request("slow", {"x": some_input(0)}, leave)
            except KeyboardInterrupt:
                ended.append(True)

    thread = threading.Thread(target=slow_request)
    thread.start()
    assert begun.wait(60)
    assert max(in_hand(hosts)) == 1
    check_product(alice, 2)  # meanwhile, in the other slot
    thread.join(60)
    assert ended
    wait_until_idle(hosts)
    check_product(alice, 3)


def test_there_is_a_limit_to_what_a_client_has_in_hand(hosts, alice):
    """One client has one run in hand, another is served meanwhile, and waits only when two others compute."""
    stop, running, waited = threading.Event(), threading.Semaphore(0), []

    def occupy(name: str) -> None:
        def hold(done: int, *_) -> None:
            if done == 1:
                running.release()
            if stop.is_set():
                raise KeyboardInterrupt

        with RemoteCluster(hosts[name]) as client, pytest.raises(KeyboardInterrupt):
            client.request("slow", {"x": some_input(0)}, hold)

    with ThreadPoolExecutor() as pool:
        held = [pool.submit(occupy, "bob")]
        try:
            assert running.acquire(timeout=60)
            with RemoteCluster(hosts["bob"]) as bob, pytest.raises(CipherDMError, match="bob has 1 runs in hand"):
                bob.request("product", {"x": some_input(0)})
            check_product(alice, 3)
            held.append(pool.submit(occupy, "carol"))
            assert running.acquire(timeout=60)
            waiting = pool.submit(
                lambda: alice.request("product", {"x": some_input(4)}, lambda *event: waited.append(event))
            )
            while not waited:
                time.sleep(0.05)
            assert waited[0] == (0, 0, "waiting, 0 before this one")
        finally:
            stop.set()
        np.testing.assert_allclose(waiting.result().outputs["y"], WEIGHTS @ some_input(4), atol=1e-3)
        for one in held:
            one.result()
    wait_until_idle(hosts)


def test_inputs_and_models_have_limits(hosts):
    large = Spec((1 << 16, 2))  # 2 MB of shares
    plan = compile_plan([Node("sum", _total, ("x",), ("y",))], {"x": large}, ("y",))
    with RemoteCluster(hosts["rival"]) as owner, RemoteCluster(hosts["alice"]) as client:
        owner.register(Model("large-input", plan, {}, {"x": large}, ("y",)))
        with pytest.raises(CipherDMError, match="inputs are larger than 1048576 bytes"):
            client.request("large-input", {"x": np.zeros(large.shape, np.float32)})
        owner.remove("large-input")
        values = {"w": np.zeros((1 << 16, 8), np.float32)}  # 8 MB of shares
        with pytest.raises(CipherDMError, match="larger than 4194304 bytes"):
            owner.register(Model("large-model", plan, values, {"x": large}, ("y",)))
        assert "large-model" not in owner.models()
    wait_until_idle(hosts)


def test_a_model_can_be_replaced_and_removed_by_its_owner_alone(hosts, alice):
    with RemoteCluster(hosts["rival"]) as rival, RemoteCluster(hosts["owner"]) as owner:
        with pytest.raises(CipherDMError, match="permission.*'product' belongs to another owner"):
            rival.register(product_model())
        with pytest.raises(CipherDMError, match="permission.*'product' belongs to another owner"):
            rival.remove("product")
        before = owner.models()["product"].registration
        owner.register(product_model())
        assert owner.models()["product"].registration != before
        check_product(alice, 5)
        rival.register(product_model("another"))
        rival.remove("another")
        with pytest.raises(CipherDMError, match="no model 'another'"):
            rival.remove("another")


def test_steps_are_walked_on_three_hosts_too(hosts):
    """Two clients, one after the other, and programs that SPU never sees."""
    unet = load_unet("data/models/mnist01-tiny")
    model = sampling_model("walked", unet, steps=4, protocols=FAST_64)
    assert all(code.walk for code in model.manifest("0" * 32).programs)
    with RemoteCluster(hosts["owner"]) as owner:
        owner.register(model)
        for name, seed in (("alice", 7), ("bob", 8)):
            with RemoteCluster(hosts[name]) as client:
                drawn = images_of(client, "walked", labels=[1], seed=seed)
            expected = sample(unet, None, labels=[1], steps=4, protocols=FAST, seed=seed)
            assert np.sqrt(np.mean((drawn.images - expected.images) ** 2)) < 0.02
            assert set(drawn.cost.by_operator().index) == {"walk"}
        owner.remove("walked")


def test_status_is_a_table_for_operators(hosts):
    with RemoteCluster(hosts["operator"]) as operator:
        states = operator.states()
        text, well = report(states)
    assert well
    assert [line.split()[0] for line in text.splitlines()[:4]] == ["party", "0", "1", "2"]
    assert "Model product, of owner" in text
    for _, status in states:
        assert 50e6 < status.memory_bytes < 2e9 and status.uptime_seconds > 0
    text, well = report([*states[:2], CipherDMError("party 2 is gone")])
    assert not well and "party 2 does not answer" in text


def test_images_by_command_are_those_of_plaintext(hosts, run, tmp_path, capsys, quick_compilation):
    """The owner registers a folder, a client asks for images: equal to sampling in plaintext from the same noise."""
    unet = replace(init_unet(replace(ONE_LEVEL, add_attention=False)), scheduler_config=SCHEDULER)
    save_unet(unet, tmp_path / "digits")

    registration = ("--steps", 2, "--protocols", "direct", "--config", hosts["owner"])
    assert run("register", tmp_path / "digits", *registration) == 0
    out = tmp_path / "drawn.png"
    assert run("request", "digits", "--labels", "2", "--config", hosts["alice"], "--out", out) == 0
    assert Image.open(out).width > 50 and out.with_suffix(".json").exists()
    assert run("request", "digits", "--labels", "9", "--config", hosts["alice"], "--out", out) == 1
    assert "label 9 does not exist" in capsys.readouterr().err
    assert run("status", "--config", hosts["operator"]) == 0
    assert "Model digits, of owner" in capsys.readouterr().out
    with RemoteCluster(hosts["alice"]) as alice:
        drawn = images_of(alice, "digits", labels=[1], seed=7).images
    expected = sample(unet, None, labels=[1], steps=2, protocols=DIRECT, seed=7).images
    np.testing.assert_allclose(drawn, expected, atol=0.02)
    assert run("unregister", "digits", "--config", hosts["owner"]) == 0
    assert run("request", "digits", "--labels", "1", "--config", hosts["alice"], "--out", out) == 1
    assert "no model 'digits'" in capsys.readouterr().err


def _total(x):
    return x.sum().reshape(1)
