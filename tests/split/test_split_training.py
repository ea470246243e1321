"""Split training against central training, what is on the wire, and what goes wrong on it."""

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch
from diffusers import ControlNetModel
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from safetensors.torch import load_file
from scipy.stats import chisquare
from splitting import NAMES, SOON, Sides, base_folder, examples, small_trial
from torch.nn import functional

from cipherdm import CipherDMError
from cipherdm.files import checkout
from cipherdm.hosts import make_certificates
from cipherdm.split import (
    STRUCTURES,
    Client,
    Defences,
    Examples,
    Features,
    Head,
    Optimisation,
    SplitControlNetModel,
    SplitTrial,
    Trainer,
    load_base,
    load_side,
    load_split_pipeline,
    published_level,
)
from cipherdm.split import split_pb2 as pb
from cipherdm.split.call import take_part
from cipherdm.split.features import tensor_message

SHOWN = Defences(hide_prompts=False)


def test_splitting_a_training_changes_nothing(base, tmp_path):
    files = small_trial(tmp_path, base, defences=SHOWN)
    with Sides(files) as sides:
        clients = [sides.client(name) for name in NAMES]
        sides.server.result(SOON)
        wires = [client.result(SOON) for client in clients]
    assert all(len(wire.losses) == 3 and wire.losses == sides.trainer.losses for wire in wires)
    kept = sides.configs["server"].folder.glob("*.safetensors")
    assert sorted(path.stem for path in kept) == [f"{name}-00{step}" for name in NAMES for step in range(2)]

    pipeline, rate = load_base(base), Optimisation(3, 1e-3, 1).rate
    rounded, exact = (central(pipeline, rate, half=half) for half in (True, False))
    start = dict(SplitControlNetModel.of(pipeline.unet).named_parameters())
    learned = dict(sides.trainer.controlnet.named_parameters())

    def off(other: dict) -> float:
        """Distance of the split network's weights from others', in lengths of the way from the first weights."""
        way = sum((learned[name] - start[name]).square().sum() for name in learned)
        return float((sum((learned[name] - other[name]).square().sum() for name in learned) / way).sqrt().detach())

    assert off(rounded) < 1e-4  # sums in another order
    assert off(exact) < 5e-3  # float16 of h: AdamW's first steps have the gradients' signs, and those next to 0 turn


def central(pipeline, rate, *, half: bool) -> dict[str, torch.Tensor]:
    """Weights after three steps of a training in one place: whole U-Net, latents that never left, and torch's AdamW."""
    network = SplitControlNetModel.of(pipeline.unet).train()
    adam = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    scheduler = pipeline.scheduler
    for step in range(3):
        parts = []
        for seed in range(2):
            generator = np.random.default_rng((seed, step))
            pictures, hints, captions = examples(seed).batch(2, generator)
            with torch.no_grad():
                clean, hint = (
                    pipeline.vae.encode(each).latent_dist.mean * pipeline.vae.config.scaling_factor
                    for each in (pictures, 2 * hints - 1)
                )
            timesteps = torch.from_numpy(generator.integers(0, 1000, 2))
            noise = torch.from_numpy(generator.standard_normal(tuple(clean.shape), dtype=np.float32))
            parts.append((clean, hint, timesteps, noise, pipeline.encode_prompt(captions, "cpu", 1, False)[0]))
        clean, hint, timesteps, noise, prompts = (torch.cat(each) for each in zip(*parts, strict=True))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        h = (noisy + hint).abs() * torch.tanh((noisy + hint) / 2)
        h = h.half().float() if half else h
        down, middle = network.residuals(h, timesteps, return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        loss = functional.mse_loss(pipeline.unet(noisy, timesteps, prompts, **more).sample, noise)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.param_groups[0]["lr"] = rate(step)
        adam.step()
    return dict(network.named_parameters())


def test_conventional_split_training_is_a_plain_controlnets(base, pipeline, tmp_path):
    files = small_trial(tmp_path, base, structure="conventional", clients=NAMES[:1], defences=SHOWN)
    with Sides(files) as sides:
        wire = sides.client(NAMES[0]).result(SOON)
        sides.server.result(SOON)
    assert wire.down > 3 * 2 * 8 * 64 * 4  # three gradients of [2, 8, 8, 8]
    torch.manual_seed(0)
    head = Head(pipeline)
    first = {name: value.clone() for name, value in head.state_dict().items()}
    learned = load_file(sides.configs[NAMES[0]].folder / "head.safetensors")
    assert learned.keys() == first.keys()
    # diffusers' own network, whose first layers are the client's: its loss is the one that was noted.
    plain = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32))
    plain.load_state_dict(first, strict=False)
    generator = np.random.default_rng((0, 0))
    batch = examples(0).batch(2, generator)
    features = Client(pipeline, SHOWN, "lean").features(*batch, generator)
    with torch.no_grad():
        down, middle = plain(features.noisy, features.timesteps, torch.zeros(2, 1, 12), batch[1], return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = pipeline.unet(features.noisy, features.timesteps, features.prompts, **more).sample
    assert abs(float(functional.mse_loss(predicted, features.noise)) - wire.losses[0]) < 1e-5
    assert not torch.equal(learned["conv_in.weight"], first["conv_in.weight"])


def test_answers_have_no_tensor():
    train = pb.DESCRIPTOR.services_by_name["Split"].methods_by_name["Train"]
    fields = train.output_type.fields
    assert {field.name: field.type for field in fields} == {"step": field_type("UINT64"), "loss": field_type("DOUBLE")}
    assert not any(field.is_repeated for field in fields)


def field_type(name: str) -> int:
    return getattr(FieldDescriptorProto, f"TYPE_{name}")


def test_hidden_prompts_leave_no_trace(pipeline):
    pictures, hints, _ = examples(1).batch(2, np.random.default_rng(0))

    def sent(caption: str, defences: Defences) -> bytes:
        generator = np.random.default_rng(5)
        return (
            Client(pipeline, defences).features(pictures, hints, [caption] * 2, generator).message().SerializeToString()
        )

    assert sent("a red seven", Defences()) == sent("two blue", Defences())
    assert sent("a red seven", SHOWN) != sent("two blue", SHOWN)


def test_bytes_of_a_picture_of_sd_mini():
    pipeline = load_base(checkout() / "data" / "models" / "sd-mini")
    blank, generator = torch.zeros(1, 3, 32, 32), np.random.default_rng(0)
    sizes = {}
    for name in STRUCTURES:
        client = Client(pipeline, Defences(hide_prompts=name != "conventional"), name)
        sizes[name] = client.features(blank, blank, ["a"], generator).bytes
    assert sizes["published"] == {"h": 512, "noisy": 12288, "noise": 1024, "timesteps": 8}
    assert sum(sizes["published"].values()) == 13832
    assert sum(sizes["lean"].values()) == 2568
    assert sizes["conventional"] == {"h": 12288, "noisy": 12288, "noise": 1024, "timesteps": 8, "prompts": 4096}


def test_timesteps_are_uniform_from_the_first_one_on():
    drawn = Defences(timesteps_from=900).timesteps(np.random.default_rng(0), 20000, 1000).numpy()
    assert drawn.min() == 900 and drawn.max() == 999
    assert chisquare(np.bincount(drawn - 900)).pvalue > 1e-3
    for wrong in (-1, 1000, 2.5):
        with pytest.raises(CipherDMError, match="timesteps_from must be"):
            Defences(timesteps_from=wrong).timesteps(np.random.default_rng(0), 1, 1000)


def test_what_the_policy_is_said_to_be_worth():
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's
    assert published_level(betas, 999) == pytest.approx(6.1, abs=0.05)
    assert published_level(betas, 0) == pytest.approx(23.0, abs=0.1)


def changed(batch: "pb.Batch", **tensors) -> "pb.Batch":
    """A message with other tensors, or without those that are None."""
    kept = [each for each in batch.tensors if each.name not in tensors]
    return pb.Batch(
        tensors=[*kept, *(tensor_message(name, each) for name, each in tensors.items() if each is not None)]
    )


NAN = torch.full((2, 4, 8, 8), torch.nan)
WRONG = {
    "NaN": ({"noise": NAN}, "noise has values that are not finite"),
    "another shape": (
        {"noise": torch.zeros(2, 4, 8, 4)},
        r"noise is float32 \[2, 4, 8, 4\].*must be float32 \[2, 4, 8, 8\]",
    ),
    "another type": ({"h": torch.zeros(2, 4, 8, 8)}, "h is float32.*must be float16"),
    "more pictures": ({"timesteps": torch.zeros(3, dtype=torch.int64)}, r"timesteps is int64 \[3\]"),
    "a tensor less": ({"noise": None}, "has h, noisy, timesteps, and must have h, noise, noisy, timesteps"),
    "a tensor more": ({"prompts": torch.zeros(2, 10, 12)}, "has h, noise, noisy, prompts"),
    "a timestep before the first": ({"timesteps": torch.tensor([617, 900])}, "timesteps outside 618 to 999"),
}


@pytest.mark.parametrize("tensors, problem", WRONG.values(), ids=WRONG)
def test_messages_that_do_not_fit_are_refused(pipeline, tensors, problem):
    client = Client(pipeline, Defences(timesteps_from=618))
    batch = client.features(*examples(1).batch(2, np.random.default_rng(0)), np.random.default_rng(0)).message()
    Features.read(batch, client.layout(), 2, range(618, 1000))
    with pytest.raises(CipherDMError, match=problem):
        Features.read(changed(batch, **tensors), client.layout(), 2, range(618, 1000))


def test_one_that_sends_nonsense_ends_the_training_and_all_are_told(base, tmp_path):
    with Sides(small_trial(tmp_path, base)) as sides:
        client = Client(sides.pipeline)
        batch = client.features(*examples(1).batch(2, np.random.default_rng(0)), np.random.default_rng(0)).message()
        other = sides.client(NAMES[0])
        error = sides.sends(NAMES[1], [changed(batch, noise=NAN)])
        assert error.code() == grpc.StatusCode.ABORTED and "not finite" in error.details()
        for side in (sides.server, other):
            with pytest.raises(CipherDMError, match="client1 sent what cannot be used: the tensor noise has values"):
                side.result(SOON)
    left = {path.name for path in sides.configs["server"].folder.glob("*")}
    assert left <= {"client0-000.safetensors"}, "what was captured before is all that may be left"


def test_who_may_not_take_part(base, tmp_path):
    """Strangers, another model, other settings and a second client of one name are told so, and the training goes on."""
    files = small_trial(tmp_path, base)
    elsewhere = make_certificates(tmp_path / "elsewhere", ("client0",))["client0"]
    with Sides(files) as sides:
        other = load_base(base_folder(tmp_path / "other", seed=2))
        own, server = sides.configs[NAMES[0]], sides.configs["server"]
        wrong = {
            "is no client of this training": replace(own, identity=server.identity),
            "must have one model": own,
            "must have one section .training.": replace(own, training=replace(own.training, batch=3, defences=SHOWN)),
            "no server that takes this certificate|does not take this certificate": replace(
                own, identity=elsewhere, timeouts=replace(own.timeouts, start=2.0)
            ),
        }
        for problem, config in wrong.items():
            with pytest.raises(CipherDMError, match=problem):
                take_part(config, other if config is own else sides.pipeline)
        twins = [sides.client(NAMES[0]) for _ in range(2)]
        while not any(twin.done() for twin in twins):
            time.sleep(0.05)
        (refused,) = [twin for twin in twins if twin.done()]
        with pytest.raises(CipherDMError, match="client0 is in this training already"):
            refused.result()
        sides.client(NAMES[1]).result(SOON)
        sides.server.result(SOON)
    assert sides.trainer.finished


def test_clients_that_do_not_come_or_say_nothing(base, tmp_path):
    with Sides(small_trial(tmp_path, base, limit=1.0)) as sides:
        with pytest.raises(CipherDMError, match="client1 did not come within 2 s"):
            sides.client(NAMES[0]).result(SOON)
    quiet = threading.Event()
    with Sides(small_trial(tmp_path / "again", base, limit=1.0)) as sides:
        other = sides.client(NAMES[1])
        sides.sends(NAMES[0], (batch for batch in [pb.Batch()] if quiet.wait(SOON)))
        for side in (sides.server, other):
            with pytest.raises(CipherDMError, match="client0 has gone, or sent nothing for 1 s"):
                side.result(SOON)


def test_a_checkpoint_goes_on_exactly(pipeline, tmp_path):
    client, plan = Client(pipeline, SHOWN), Optimisation(4, 1e-3, 1)
    batches = [
        client.features(*examples(1).batch(2, np.random.default_rng(step)), np.random.default_rng(step))
        for step in range(4)
    ]
    whole, first, second = (Trainer(client, plan) for _ in range(3))
    for batch in batches:
        whole.take_step(batch)
    for batch in batches[:2]:
        first.take_step(batch)
    first.save(tmp_path / "checkpoint.pt", "this training")
    second.restore(tmp_path / "nothing.pt", "this training")
    second.restore(tmp_path / "checkpoint.pt", "this training")
    for batch in batches[2:]:
        second.take_step(batch)
    assert second.losses == whole.losses and second.finished
    for ours, theirs in zip(second.averaged.parameters(), whole.averaged.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CipherDMError, match="other settings"):
        second.restore(tmp_path / "checkpoint.pt", "another one")
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(CipherDMError, match="cannot be read"):
        second.restore(tmp_path / "checkpoint.pt", "this training")


def test_bad_pictures_are_refused(pipeline, tmp_path):
    pictures, hints, captions = examples(1).batch(2, np.random.default_rng(0))
    client, generator = Client(pipeline), np.random.default_rng(0)
    for problem, batch in {
        "pictures have values outside -1 to 1": (2 * pictures, hints, captions),
        "hints have values outside 0 to 1": (pictures, 2 * hints - 1, captions),
        "hints are ": (pictures, hints[:, :1], captions),
        "not one caption": (pictures, hints, captions[:1]),
        "pictures have values": (pictures * torch.nan, hints, captions),
    }.items():
        with pytest.raises(CipherDMError, match=problem):
            client.features(*batch, generator)
    with pytest.raises(CipherDMError, match="cannot be read"):
        Examples.load(tmp_path / "none.npz")
    with pytest.raises(CipherDMError, match="do not fit"):
        Examples(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.uint8), np.array(["a", "b"]))


@pytest.mark.slow
def test_processes_train_and_leave_a_pipeline(base, tmp_path):
    files = small_trial(tmp_path, base)
    with SplitTrial(files) as trial:
        records = trial.records(300)
    assert records[NAMES[0]]["wire"]["fields"] == {"h": 3072, "noisy": 12288, "noise": 6144, "timesteps": 48}
    assert len(records["server"]["losses"]) == 3
    assert "learns every picture" in files[NAMES[0]].with_suffix(".log").read_text()
    folder = load_side(files["server"], "server").folder
    made = load_split_pipeline(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    assert made("a", torch.zeros(1, 3, 16, 16), num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    assert len(Features.load(folder / "client1-001.safetensors").timesteps) == 2


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "client1"])
def test_a_killed_side_ends_all(base, tmp_path, victim):
    files = small_trial(tmp_path, base, steps=10**6)
    with SplitTrial(files) as trial:
        wait_for(files["server"].with_suffix(".log"), "all clients are here")
        trial.processes[victim].send_signal(signal.SIGKILL)
        failed = trial.ends(SOON)
    assert failed.keys() == files.keys()
    said = "server has gone away" if victim == "server" else "client1 has gone"
    assert all(said in words for role, words in failed.items() if role != victim), failed
    assert not list((tmp_path / "trial" / "server-state").glob(".*")), "half a file was left"


@pytest.mark.slow
def test_processes_end_whose_parent_ended_while_they_began(base, tmp_path):
    files = small_trial(tmp_path, base, steps=10**6)
    begin = f"""
import os
from pathlib import Path
from cipherdm.split import SplitTrial
trial = SplitTrial({{"server": Path({str(files["server"])!r})}})
trial.__enter__()
print(trial.processes["server"].pid, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", begin], stdout=subprocess.PIPE, check=True)
    deadline = time.monotonic() + 300
    while psutil.pid_exists(int(done.stdout)) and psutil.Process(int(done.stdout)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for(log: Path, words: str) -> None:
    deadline = time.monotonic() + 300
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("activation = true", "activation = 1", r"\[training\]: activation is 1, and must be true or false"),
        (
            'structure = "published"',
            'structure = "other"',
            r"structure is 'other'; there are published, lean, conventional",
        ),
        ('clients = ["client0", "client1"]', "clients = []", r"clients must name one client or more"),
        ("batch = 2", "batch = 0", r"batch is 0, and must be at least 1"),
        ('address = "127.0.0.1:', 'address = "127.0.0.1-', r"\[server\]: address is .*must be host:port or unix:PATH"),
        ("captured = 2", "captures = 2", r"\[server\]: captures is unknown"),
        ("server.pem", "client0.pem", r"server.key is not the key of .*client0.pem"),
    ],
)
def test_wrong_fields_are_named(base, tmp_path, old, new, problem):
    file = small_trial(tmp_path, base)["server"]
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(CipherDMError, match=problem):
        load_side(file, "server")


@pytest.mark.parametrize("command", ["split-server", "split-client"])
def test_commands_name_a_file_that_is_not_there(tmp_path, run, capsys, command):
    assert run(command, tmp_path / "none.toml") == 1
    assert "cannot read" in capsys.readouterr().err
