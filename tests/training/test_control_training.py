"""Trainings of ControlNets of sd-mini, a few steps long: what they leave, and who can load it."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file

from cipherdm import CipherDMError, load_pipeline, text_to_image
from cipherdm.datasets import load_mnist
from cipherdm.files import checkout
from cipherdm.records import read_record
from cipherdm.sampling.pipeline import known_captions, known_hints
from cipherdm.split import Defences, load_base, load_split_pipeline
from cipherdm_experiments.training.control.plain import as_plain, told_by_autoencoder, train_plain_control
from cipherdm_experiments.training.control.recipe import SD_MINI_CONTROL, SD_MINI_CONTROL_SPLIT, PlainControlConfig
from cipherdm_experiments.training.control.score import held_out_digits
from cipherdm_experiments.training.control.split import client_digits, train_split_control
from cipherdm_experiments.training.control.train import train_control, without_prompt

OPTIMISATION = replace(SD_MINI_CONTROL.controlnet.optimisation, steps=3, batch=4, cooldown=2, warmup=1)
SHORT = replace(SD_MINI_CONTROL, judged=4, controlnet=replace(SD_MINI_CONTROL.controlnet, optimisation=OPTIMISATION))
TRAINING = replace(SD_MINI_CONTROL_SPLIT.training, steps=3, batch=2)
SPLIT = replace(SD_MINI_CONTROL_SPLIT, judged=4, pictures=20, training=TRAINING)
BASE = checkout() / "data" / "models" / "sd-mini"

ALONE = """
import sys
sys.modules["cipherdm"] = None  # as where it is not installed
import torch
from diffusers import StableDiffusionControlNetPipeline as Pipeline
pipeline = Pipeline.from_pretrained(sys.argv[1], local_files_only=True)
generator = torch.Generator().manual_seed(0)
hints = torch.load(sys.argv[2])
latents = torch.load(sys.argv[3])
made = pipeline(["a large red seven on a blue background"], hints, latents=latents, num_inference_steps=2,
                guidance_scale=4.0, output_type="latent").images
torch.save(made, sys.argv[4])
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder of the pipeline after a short training, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("plain")
    return train_control(folder / "out", config=SHORT, runs=folder / "runs", progress=False), folder / "runs"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    return train_split_control(folder / "out", config=SPLIT, runs=folder / "runs"), folder / "runs"


def test_diffusers_alone_draws_what_three_parties_would(plain, tmp_path):
    """In a process without this package, which gives the ControlNet the prompt that ours does not read."""
    ours = load_pipeline(plain[0])
    control = ours.unet.config.control
    assert control.hide_prompt and control.hint_factor == 4
    hints = known_hints(ours, 1)
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    names = [tmp_path / name for name in ("hints", "latents", "made")]
    for path, array in zip(names, (hints, latents), strict=False):
        torch.save(torch.tensor(array), path)
    done = subprocess.run([sys.executable, "-c", ALONE, plain[0], *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    asked = {"control": hints, "latents": latents, "steps": 2, "guidance_scale": 4.0}
    found = text_to_image(ours, None, ["a large red seven on a blue background"], scheduler="ddim", **asked).latents
    expected = torch.load(names[2]).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_only_the_control_net_has_changed_and_has_learned_from_the_hint(plain):
    folder, _ = plain
    base, trained = load_base(BASE), ControlNetModel.from_pretrained(folder / "controlnet")
    start = dict(without_prompt(base, SHORT.controlnet.hint_channels).named_parameters())
    moved = {name for name, value in trained.named_parameters() if not torch.equal(value, start[name].half().float())}
    assert any(name.startswith("controlnet_down_blocks") for name in moved)
    assert any(name.startswith("controlnet_cond_embedding") for name in moved)
    assert not any(name.endswith("attn2.to_v.weight") for name in moved)
    unets = [load_file(place / "unet" / "diffusion_pytorch_model.safetensors") for place in (folder, BASE)]
    assert unets[0].keys() == unets[1].keys() and all(torch.equal(unets[0][name], unets[1][name]) for name in unets[0])


def test_what_a_folder_has(plain):
    folder, runs = plain
    record = read_record(folder / "training.json")
    assert record["controlnet"]["steps_done"] == 3 and record["config"]["base"] == "sd-mini"
    for scores in (record["controlnet"]["scores"][-1], record["bounds"]):
        assert {"iou", "ssim", "digit", "colour", "background", "all"} <= set(scores)
    assert record["bounds"]["iou"] > record["controlnet"]["scores"][-1]["iou"]
    ours = load_pipeline(folder)
    assert len(known_captions(ours, 64)) == len(known_hints(ours, 64)) == len(list((folder / "hints").iterdir()))
    assert (runs / "sd-mini-control" / "drawn-000003.png").exists()


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(plain, tmp_path):
    def stop(name, step, loss):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    settings = {"config": SHORT, "runs": tmp_path / "runs", "progress": False}
    with pytest.raises(KeyboardInterrupt, match="Stopped at step 2"):
        train_control(tmp_path / "out", on_step=stop, **settings)
    train_control(tmp_path / "out", **settings)
    again, first = (
        ControlNetModel.from_pretrained(folder / "controlnet").state_dict() for folder in (tmp_path / "out", plain[0])
    )
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_processes_train_the_split_one_which_says_what_it_is(split):
    folder, runs = split
    loaded = load_split_pipeline(folder)
    assert any(layer.weight.abs().max() > 0 for layer in loaded.controlnet.controlnet_down_blocks)
    with pytest.raises(CipherDMError, match="trained by split learning"):
        load_pipeline(folder)
    assert "learns every picture" in (folder / "README.md").read_text()
    record = read_record(folder / "training.json")
    assert record["steps_done"] == 3 and set(record["wires"]) == {"client0", "client1"}
    # h in float16, the first convolution, the noise, and a timestep of each picture; no prompt
    wanted = {"h": 512, "noisy": 12288, "noise": 1024, "timesteps": 8}
    assert record["wires"]["client0"]["fields"] == {name: 3 * 2 * size for name, size in wanted.items()}
    assert record["config"]["training"]["defences"] == {
        "activation": True,
        "timesteps_from": 0,
        "hide_prompts": True,
    }


def test_a_finished_split_training_is_exported_again_without_processes(split, tmp_path):
    folder, runs = split
    (record,) = runs.glob("*/*/server-state/record.json")
    before = record.stat().st_mtime_ns
    train_split_control(tmp_path / "out", config=SPLIT, runs=runs)
    assert record.stat().st_mtime_ns == before
    scores = [json.loads((path / "training.json").read_text())["scores"][-1] for path in (folder, tmp_path / "out")]
    assert scores[0] == scores[1]
    with pytest.raises(CipherDMError, match="move it away to begin anew"):
        train_split_control(tmp_path / "out", config=SPLIT, runs=runs, resume=False)


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """Folder of runs: a short training without the activation, and the plain network that comes of it."""
    runs = tmp_path_factory.mktemp("lean")
    training = replace(TRAINING, structure="lean", defences=Defences(activation=False))
    config = PlainControlConfig("plain", replace(SPLIT, name="lean", digits="test", training=training))
    train_split_control(runs / "lean" / "model", config=config.split, runs=runs)
    train_plain_control(runs / "plain" / "model", config=config, steps=2, runs=runs, progress=False)
    return runs


def test_a_plain_network_gives_what_the_split_one_gives(lean):
    """Once its encoder tells what the autoencoder tells; h has been rounded to 16 bits on the way."""
    base, split = load_base(BASE), load_split_pipeline(lean / "lean" / "model").controlnet
    plain = as_plain(split, without_prompt(base, SHORT.controlnet.hint_channels))

    class Told(torch.nn.Module):
        def forward(self, hints):
            return told_by_autoencoder(split, base.vae, hints)

    plain.controlnet_cond_embedding = Told()
    generator = torch.Generator().manual_seed(0)
    sample, prompts = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 16, 64, generator=generator)
    hints = torch.tensor(known_hints(load_pipeline(lean / "plain" / "model"), 2))
    with torch.no_grad():
        both = [model(sample, 500, prompts, hints, return_dict=False) for model in (split, plain)]
    for expected, found in zip(*([*down, middle] for down, middle in both), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-3 * scale)
        assert scale > 0


def test_only_a_network_without_the_activation_becomes_a_plain_one(split, tmp_path):
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "model").symlink_to(split[0])
    config = PlainControlConfig("plain", replace(SPLIT, name="with"))
    with pytest.raises(CipherDMError, match="has the activation of split learning"):
        train_plain_control(tmp_path / "out", config=config, runs=tmp_path, progress=False)


def test_held_out_digits_are_no_clients(lean):
    """Of the test set's digits, whose inks differ: clients have one half, and pictures are judged by the other."""
    digits = load_mnist("test")
    halves = [{digits.images[row].tobytes() for row in range(first, len(digits), 2)} for first in (0, 1)]
    for number in range(2):
        own = client_digits(replace(SPLIT, digits="test"), number)
        assert len(own) == len(digits) // 4 and {image.tobytes() for image in own.images} <= halves[0] - halves[1]
    judged = held_out_digits(every=2)
    assert {image.tobytes() for image in judged.images} == halves[1]
