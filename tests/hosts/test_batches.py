"""Requests of several clients in one run: each gets its own row, whatever the others bring and whenever they leave."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hosting import small_trial
from skimage.metrics import peak_signal_noise_ratio
from small import ONE_LEVEL, SCHEDULER
from spu import api, libspu

from cipherdm import CipherDMError, calibrate, sample
from cipherdm.engine import EngineConfig, Node, Spec, compile_plan
from cipherdm.engine.wire import pieces, reconstruct, share_of
from cipherdm.hosts import LoopbackHosts, Model, RemoteCluster, Together, images_of, load_caller, sampling_model
from cipherdm.hosts import host_pb2 as pb
from cipherdm.hosts.batches import Batch, begun
from cipherdm.hosts.channels import connect
from cipherdm.hosts.config import Limits
from cipherdm.hosts.manifest import check_manifest
from cipherdm.hosts.refusals import Cancelled
from cipherdm.hosts.remote import _shared
from cipherdm.hosts.request_queue import Queue
from cipherdm.hosts.rows import apart, joined
from cipherdm.hosts.runs import Run, Runs
from cipherdm.hosts.sampling import parts_of
from cipherdm.hosts.store import StoredModel
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.protocols import named
from cipherdm.sampling import make_task
from cipherdm.sampling.pipeline import load_pipeline
from cipherdm.sampling.roles import client_values
from cipherdm.sampling.steps import MEMORY
from cipherdm.sampling.text_to_image import text_to_image_task

WEIGHTS = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
ROWS = 3
LONG = 400  # calls of a run during which a client leaves


def affine(w, x, z):
    return jnp.matmul(x, w) + z[0] - z[1]


def opposite(y):
    return -y


def rows_model(name: str = "rows", turns: int = 1, **changes) -> Model:
    """y = +-(x w + z[0] - z[1]) of x [1, 4] and z [2, 1, 6], whose labels say whether a request was alone."""

    def plan(rows: int, label: str):
        nodes = [Node(label, affine, ("w", "x", "z"), ("y",))] + [Node(label, opposite, ("y",), ("y",))] * turns
        return compile_plan(nodes, {"w": Spec.of(WEIGHTS)} | inputs(rows), ("y",))

    def inputs(rows: int):
        return {"x": Spec((rows, 4)), "z": Spec((2, rows, 6))}

    together = {"requests": ROWS, "plan": plan(ROWS, "together"), "inputs": inputs(ROWS), "parts": {"x": 1, "z": 2}}
    return Model(name, plan(1, "alone"), {"w": WEIGHTS}, inputs(1), ("y",), together=Together(**together | changes))


def inputs_of(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).uniform
    return {"x": draw(-4, 4, (1, 4)).astype(np.float32), "z": draw(-4, 4, (2, 1, 6)).astype(np.float32)}


def expected(seed: int, turns: int = 1) -> np.ndarray:
    x, z = inputs_of(seed).values()
    return (-1) ** turns * (x @ WEIGHTS + z[0] - z[1])


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """Three hosts that wait five seconds for further requests: TOML files by role."""
    files = small_trial(tmp_path_factory.mktemp("patient") / "trial")
    for path in files.values():
        path.write_text(path.read_text().replace("batch_wait = 0", "batch_wait = 5"))
    with LoopbackHosts(files):
        with RemoteCluster(files["owner"]) as owner:
            owner.register(rows_model())
            owner.register(rows_model("long", LONG))
        yield files


def ask(files, client: str, seed: int, name: str = "rows", progress=None) -> tuple[np.ndarray, set[str]]:
    """A request's answer, and the labels of the calls that computed it."""
    with RemoteCluster(files[client]) as cluster:
        answer = cluster.request(name, inputs_of(seed), progress)
    return answer.outputs["y"], set(answer.cost.by_program().index)


def outgoing(files, client: str, name: str, inputs) -> tuple[list[pb.RequestPiece], ...]:
    """A client's messages to the three parties."""
    with RemoteCluster(files[client]) as cluster:
        agreement, model = cluster._agreed_model(name)
    header = pb.RequestHeader(run=np.random.bytes(16).hex(), model=name, digest=model.digest, agreement=agreement)
    engine = EngineConfig(fraction_bits=model.fraction_bits, exp=model.exp)
    return _shared(model, inputs, engine, header)


def garbage(messages: list[pb.RequestPiece], seed: int) -> None:
    """Replace the words of a party's shares by others, of all sizes, that fit no other party's."""
    chunk = libspu.ValueChunk()
    for message in messages[1:]:
        chunk.ParseFromString(message.share.chunk)
        chunk.content = np.random.default_rng(seed).bytes(len(chunk.content))
        message.share.chunk = chunk.SerializeToString()


def send(files, client: str, messages) -> list:
    """Begin a client's calls of the parties, as many as there are messages for."""
    stubs = [connect(load_caller(files[client]), rank)[1] for rank in range(len(messages))]
    return [stub.Request(iter(of_party)) for stub, of_party in zip(stubs, messages, strict=True)]


def wait_until_idle(files) -> None:
    """Wait until no party has a request in hand, nor a process that computes."""
    deadline = time.monotonic() + 30
    with RemoteCluster(files["operator"]) as operator:
        while any(
            status.requests or any(process.busy for process in status.processes) for _, status in operator.states()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_shares_are_joined_and_taken_apart_by_rows():
    """Three parties join the shares of two requests and of nobody, and an output's: numbers stay where they belong."""
    manifest, io = rows_model().manifest("0" * 32), api.Io(3, EngineConfig().runtime_config())

    def shares(arrays, rank: int) -> list:
        return [piece for name, of in arrays.items() for piece in pieces("", name, of[rank])]

    requests = [
        {name: io.make_shares(array, libspu.Visibility.VIS_SECRET) for name, array in inputs_of(seed).items()}
        for seed in (1, 2)
    ]
    found = [list(joined(manifest, [shares(request, rank) for request in requests])) for rank in range(3)]
    for place, name in enumerate(("x", "z")):
        together = reconstruct(io, name, [share_of([of[place]]) for of in found])
        axis = place
        nobody = np.zeros_like(inputs_of(1)[name])
        wanted = np.concatenate([inputs_of(1)[name], inputs_of(2)[name], nobody], axis)
        np.testing.assert_allclose(together, wanted, atol=2**-17)
    output = io.make_shares(np.arange(12, dtype=np.float32).reshape(3, 4), libspu.Visibility.VIS_SECRET)
    of_parties = [apart(list(pieces("", "y", share)), 3) for share in output]
    for row in range(3):
        one = reconstruct(io, "y", [share_of(of[row]) for of in of_parties])
        np.testing.assert_array_equal(one, np.arange(4, dtype=np.float32)[None] + 4 * row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requests": 1}, "2 to 64 requests are computed together, not 1"),
        ({"requests": 2}, "'x' of requests together is not made of 'x' of each"),
        ({"parts": {"x": 1, "z": 5}}, "'z' of requests together is not made of 'z' of each"),
        ({"parts": {"x": 0, "z": 2}}, "'x' of requests together is not made of 'x' of each"),
        ({"inputs": {"x": Spec((3, 4))}}, "declare all of them"),
        ({"inputs": {"x": Spec((4, 3)), "z": Spec((2, 3, 6))}}, "reads 'x', whose shape or secrecy is not what"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(CipherDMError, match=message):
        rows_model(**changes).manifest("0" * 32)


def test_outputs_have_the_requests_one_after_the_other():
    good = rows_model()
    plan = compile_plan(
        [Node("sum", _sum_of_rows, ("x", "z", "w"), ("y",))],
        {"w": Spec.of(WEIGHTS)} | dict(good.together.inputs),
        ("y",),
    )
    with pytest.raises(CipherDMError, match="the output 'y' of requests together does not have them one after"):
        replace(good, together=replace(good.together, plan=plan)).manifest("0" * 32)
    check_manifest(good.manifest("0" * 32))


def _sum_of_rows(x, z, w):
    return jnp.matmul(x, w).sum(0, keepdims=True) + z[0, :1]


def test_rows_stay_where_they_are_once_the_parties_count_them(tmp_path):
    """A row that moved at one party would be another client's there; before party 0 counts, a row is free for others."""
    model = StoredModel("owner", rows_model().manifest("0" * 32), tmp_path)
    alice, bob, *others = (Run(name, name) for name in ("alice", "bob", "carol", "dave", "erin"))
    scheduled = Batch("alice", model, [alice], wait=60.0)
    assert scheduled.add(bob)
    leave(scheduled, alice)
    assert [scheduled.add(run) for run in others] == [True, True, False]
    scheduled.close()  # at once, as it is full
    leave(scheduled, bob)
    assert scheduled.members == [bob, *others[:2]]

    runs = Runs(Limits())
    with runs.admitted("alice", "a") as one, runs.admitted("bob", "b") as other:
        for run in (one, other):
            run.upload(model, [])
        one.cancel()  # when party 0 had counted it already
        members = [pb.Member(client=run.client, run=run.name) for run in (one, other)]
        told = begun(pb.StartRequest(members=members, digest=model.digest), runs, timeout=1.0)
        leave(told, one)
        assert told.members == [one, other]
        told.check()  # that raises nothing: one is still there
        leave(told, other)
        with pytest.raises(Cancelled):
            told.check()


def test_a_run_counts_as_that_of_the_client_who_computes_the_fewest(tmp_path):
    """Alice has all that she may have; bob, who joins her next run, does not wait for her last one."""
    model, queue = StoredModel("owner", rows_model().manifest("0" * 32), tmp_path), Queue(2)
    alice, bob = Run("alice", "1"), Run("bob", "2")
    batch = Batch("alice", model, [alice], wait=60.0)
    with queue.place(Run("alice", "0")) as first, queue.place(batch) as second:
        assert first.done() and not second.done()
        assert batch.add(bob) and queue.ahead(second) == 0
        assert second.done()
        with queue.place(Run("bob", "3")) as third:
            assert not third.done()
    with queue.place(Run("bob", "4")) as fourth, queue.place(Run("alice", "5")) as fifth:
        assert fourth.done() and fifth.done(), "what either had has been given back"


def leave(batch: Batch, run: Run) -> None:
    run.cancel()
    with pytest.raises(Cancelled):
        next(batch.events(run))


def test_clients_together_get_their_own_answers_and_one_alone_its_own_run(patient):
    with ThreadPoolExecutor() as pool:
        asked = {seed: pool.submit(ask, patient, name, seed) for seed, name in enumerate(("alice", "bob", "carol"), 1)}
        for seed, one in asked.items():
            answer, labels = one.result()
            np.testing.assert_allclose(answer, expected(seed), atol=1e-3)
            assert labels == {"together"}
        two = {seed: pool.submit(ask, patient, name, seed) for seed, name in enumerate(("alice", "bob"), 4)}
        for seed, one in two.items():
            answer, labels = one.result()
            np.testing.assert_allclose(answer, expected(seed), atol=1e-3)
            assert labels == {"together"}
    answer, labels = ask(patient, "alice", 6)
    np.testing.assert_allclose(answer, expected(6), atol=1e-3)
    assert labels == {"alone"}
    with RemoteCluster(patient["alice"]) as alice:
        assert alice.models()["rows"].together == ROWS


def test_models_and_hosts_that_do_not_say_so_compute_each_request_alone(patient, hosts):
    with RemoteCluster(hosts["owner"]) as owner:
        owner.register(rows_model())
    with ThreadPoolExecutor() as pool:
        for one in [pool.submit(ask, hosts, name, seed) for seed, name in enumerate(("alice", "bob"))]:
            assert one.result()[1] == {"alone"}
    with RemoteCluster(hosts["owner"]) as owner:
        owner.remove("rows")
    with RemoteCluster(patient["owner"]) as owner:
        owner.register(replace(rows_model("single"), together=None))
        assert owner.models()["single"].together == 0
    with ThreadPoolExecutor() as pool:
        for one in [pool.submit(ask, patient, name, seed, "single") for seed, name in enumerate(("alice", "bob"))]:
            assert one.result()[1] == {"alone"}
    with RemoteCluster(patient["owner"]) as owner:
        owner.remove("single")


def test_who_leaves_before_the_start_leaves_no_row(patient):
    """Bob begins, alice joins, bob leaves: alice is computed alone, though bob's place in the queue was the batch's."""
    calls = send(patient, "bob", outgoing(patient, "bob", "rows", inputs_of(1)))
    time.sleep(1)
    with ThreadPoolExecutor() as pool:
        alice = pool.submit(ask, patient, "alice", 2)
        time.sleep(1)
        for call in calls:
            call.cancel()
        answer, labels = alice.result()
    np.testing.assert_allclose(answer, expected(2), atol=1e-3)
    assert labels == {"alone"}
    wait_until_idle(patient)


def test_who_leaves_during_a_run_keeps_nobody_from_its_answer(patient):
    begun = threading.Event()

    def leave(done: int, *_) -> None:
        if done > 2:
            raise KeyboardInterrupt

    def note(done: int, *_) -> None:
        if done > LONG // 2:
            begun.set()

    with ThreadPoolExecutor() as pool:
        bob = pool.submit(ask, patient, "bob", 1, "long", leave)
        alice = pool.submit(ask, patient, "alice", 2, "long", note)
        with pytest.raises(KeyboardInterrupt):
            bob.result()
        assert not begun.is_set(), "bob left when the run was over, or nearly so"
        answer, labels = alice.result()
    np.testing.assert_allclose(answer, expected(2, LONG), atol=1e-3)
    assert labels == {"together"}
    wait_until_idle(patient)


def test_a_run_whose_clients_have_all_left_is_ended(patient):
    def leave(done: int, *_) -> None:
        if done > 2:
            raise KeyboardInterrupt

    with ThreadPoolExecutor() as pool:
        for one in [pool.submit(ask, patient, name, 1, "long", leave) for name in ("alice", "bob")]:
            with pytest.raises(KeyboardInterrupt):
                one.result()
    wait_until_idle(patient)
    answer, _ = ask(patient, "alice", 3)
    np.testing.assert_allclose(answer, expected(3), atol=1e-3)


def test_who_leaves_a_party_out_fails_alone(patient):
    calls = send(patient, "bob", outgoing(patient, "bob", "rows", inputs_of(1))[:2])
    answer, labels = ask(patient, "alice", 2)
    np.testing.assert_allclose(answer, expected(2), atol=1e-3)
    assert labels == {"together"}
    with pytest.raises(Exception, match="party 2 did not have this client's inputs in time"):
        list(calls[0])
    for call in calls:
        call.cancel()
    wait_until_idle(patient)


@pytest.fixture(scope="module")
def small_unet(tmp_path_factory):
    """A very small network with classes, calibrated."""
    folder = tmp_path_factory.mktemp("unet")
    config = replace(ONE_LEVEL, add_attention=False)
    save_unet(replace(init_unet(config), scheduler_config=SCHEDULER), folder)
    calibrate(load_unet(folder), timesteps=2)
    return load_unet(folder)


@pytest.mark.parametrize("protocols", ["fast", "fast-rings"])
def test_pictures_are_those_drawn_alone_beside_garbage(patient, small_unet, quick_compilation, protocols):
    """Alice, bob, and carol, whose words fit neither each other nor any range; and in as many rounds as one alone."""
    with RemoteCluster(patient["owner"]) as owner:
        owner.register(sampling_model("drawn", small_unet, steps=2, protocols=protocols, together=ROWS))

    def draw(name: str, label: int, seed: int):
        with RemoteCluster(patient[name]) as client:
            return images_of(client, "drawn", labels=[label], seed=seed)

    asked = (("alice", 1, 7), ("bob", 0, 8))
    alone = [draw(*who) for who in asked]
    task = make_task(small_unet, labels=[1], steps=2, protocols=named(protocols))
    messages = outgoing(patient, "carol", "drawn", client_values([1], task.shape, 9))
    for rank, of_party in enumerate(messages):
        garbage(of_party, rank)
    with ThreadPoolExecutor() as pool:
        nonsense = [pool.submit(list, call) for call in send(patient, "carol", messages)]
        together = [pool.submit(draw, *who) for who in asked]
        for one, before, (_, label, seed) in zip(together, alone, asked, strict=True):
            found = one.result()
            plain = sample(small_unet, None, labels=[label], steps=2, protocols="fast", seed=seed).images
            other = sample(small_unet, None, labels=[label], steps=2, protocols="fast", seed=seed + 10).images
            # Truncation alone makes a difference, and another picture is far away.
            assert psnr(before.images, found.images) > 60
            assert psnr(plain, found.images) > 50
            assert psnr(plain, other) < 30
            # Rings are planned for each number of pictures from other ones of the owner's, and cuts differ a little.
            slack = 0.03 if protocols == "fast-rings" else 0.0
            assert found.cost.rounds == pytest.approx(before.cost.rounds, rel=slack)
            assert found.cost.bytes > 2 * before.cost.bytes, "it was drawn alone"
        assert all(any(event.HasField("output") for event in of.result()) for of in nonsense), (
            "carol's row is there too"
        )
    with RemoteCluster(patient["owner"]) as owner:
        owner.remove("drawn")


def psnr(expected: np.ndarray, found: np.ndarray) -> float:
    return peak_signal_noise_ratio(expected, found, data_range=float(np.ptp(expected)))


def test_inputs_together_are_those_of_as_many_pictures(pipeline_folder, quick_compilation):
    """Prompts of two branches and the memory of a multistep schedule: each where the programs expect it."""
    pipeline = load_pipeline(pipeline_folder)
    settings = {"steps": 2, "guidance_scale": 3.0, "scheduler": "dpmsolver++"}
    shapes = [text_to_image_task(pipeline, [""] * count, **settings).shape for count in (1, 2)]
    draw = np.random.default_rng(1).standard_normal
    prompts = draw((2, 2, 10, 12), np.float32)  # [branches, pictures, tokens, width]
    latents = draw(shapes[1].image_shape, np.float32)
    alone = [
        client_values(None, shapes[0], 0, latents=latents[one : one + 1], prompts=prompts[:, one]) for one in (0, 1)
    ]
    whole = client_values(None, shapes[1], 0, latents=latents, prompts=prompts.reshape(4, 10, 12))
    assert set(whole) == {"sample", "encoder_hidden_states", *MEMORY}
    for name, parts in parts_of(shapes[1], whole).items():
        rows = np.concatenate([one[name].reshape(parts, -1) for one in alone], 1)
        np.testing.assert_array_equal(rows.reshape(whole[name].shape), whole[name])
    settings |= {"protocols": "direct", "granularity": "step"}
    together = sampling_model("drawn", pipeline, **settings, together=2).manifest("0" * 32).together
    shapes_of = {item.name: tuple(item.shape) for item in together.inputs}
    assert shapes_of == {name: array.shape for name, array in whole.items()}
