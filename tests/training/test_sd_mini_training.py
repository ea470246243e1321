"""sd-mini's training: batches, resuming, and the folder that diffusers and this package load."""

import json
import os
import shutil
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from typer.testing import CliRunner

import cipherdm as cdm
from cipherdm.cli import build
from cipherdm.datasets import load_mnist
from cipherdm.errors import CipherDMError
from cipherdm_experiments.training.export import write_grid
from cipherdm_experiments.training.glyphs import glyph_digits
from cipherdm_experiments.training.run import Run, go_on
from cipherdm_experiments.training.sd_mini.captions import Caption, all_captions, balanced_captions
from cipherdm_experiments.training.sd_mini.networks import (
    autoencoder_objective,
    denoiser_objective,
    scaling_factor,
    scheduler,
)
from cipherdm_experiments.training.sd_mini.pictures import Source, captioned, rgb
from cipherdm_experiments.training.sd_mini.recipe import Optimisation, SDMiniConfig
from cipherdm_experiments.training.sd_mini.score import draw, load_pipeline, read_back
from cipherdm_experiments.training.sd_mini.train import train_sd_mini

_SHORT = Optimisation(steps=3, batch=4, learning_rate=1e-3, warmup=1, cooldown=2)
_DEFAULT = SDMiniConfig(name="short")
SHORT = replace(
    _DEFAULT,
    autoencoder=replace(_DEFAULT.autoencoder, optimisation=_SHORT, block_out_channels=(4, 8, 8)),
    text=replace(_DEFAULT.text, optimisation=_SHORT, width=8, layers=1, heads=2),
    denoiser=replace(_DEFAULT.denoiser, optimisation=_SHORT, block_out_channels=(8, 16)),
    reader=replace(_DEFAULT.reader, optimisation=_SHORT),
)
PARTS = ["reader", "autoencoder", "text", "denoiser"]


@pytest.fixture(scope="module")
def source():
    return Source.of(load_mnist("test"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder, the runs folder, and (part, step, loss) of each step of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("trained")
    steps = []
    settings = {"runs": folder / "runs", "progress": False, "on_step": lambda *step: steps.append(step)}
    return train_sd_mini(folder / "out", config=SHORT, **settings), folder / "runs" / "short", steps


def tensors(folder):
    pipeline = load_pipeline(folder)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    return {f"{type(part).__name__}.{key}": value for part in parts for key, value in part.state_dict().items()}


def averaged_weights(path):
    """The averaged weights in a checkpoint, under the network's own names."""
    stored = torch.load(path, weights_only=True)["averaged"]
    return {name.removeprefix("module."): value for name, value in stored.items() if name != "n_averaged"}


def test_stopping_and_resuming(trained, tmp_path):
    straight, _, steps = trained
    assert [(part, step) for part, step, _ in steps] == [(part, step) for part in PARTS for step in (1, 2, 3)]
    seen = []

    def stop_in_the_middle(*step):
        seen.append(step)
        if step[:2] == ("autoencoder", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="step 2 of 3 of autoencoder"):
        train_sd_mini(tmp_path / "out", config=SHORT, runs=tmp_path, progress=False, on_step=stop_in_the_middle)
    assert not (tmp_path / "out").exists()
    train_sd_mini(tmp_path / "out", config=SHORT, runs=tmp_path, progress=False, on_step=stop_in_the_middle)
    assert [step[:2] for step in seen] == [step[:2] for step in steps]
    # AdamW's first steps are as large where a gradient is nothing but rounding, which is not the same in every run.
    np.testing.assert_allclose([step[2] for step in seen], [step[2] for step in steps], rtol=5e-3)
    assert tensors(tmp_path / "out").keys() == tensors(straight).keys()


def start_line(steps=8, rate=1e-3):
    torch.manual_seed(7)
    plan = SimpleNamespace(rate=lambda step: rate / (step + 1), steps=steps, ema_decay=0.9, clip_norm=1.0)
    return Run("line", {}, nn.Linear(3, 1), torch.optim.AdamW, plan)


def on_a_line(model, step):
    inputs = torch.from_numpy(np.random.default_rng(step).standard_normal((16, 3), np.float32))
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    return loss, loss


def test_averaged_weights_follow_the_formula():
    """w' = d w' + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after the n-th step, from the initial weights on."""
    run = start_line()
    expected = run.model.weight.detach().clone()
    for step in range(1, 9):
        run.take_step(on_a_line)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * run.model.weight.detach()
    torch.testing.assert_close(run.averaged.module.weight, expected, rtol=1e-6, atol=1e-7)


def test_a_resumed_run_goes_on_exactly(tmp_path):
    """A network so small that every run of it rounds alike."""
    start, objective = start_line, on_a_line

    straight, stopped = start(), threading.Event()
    go_on(straight, objective, tmp_path / "straight", stopped, progress=False)

    def stop(name, step, loss):
        return stopped.set() if step == 5 else None

    with pytest.raises(KeyboardInterrupt, match="step 5 of 8 of line"):
        go_on(start(), objective, tmp_path / "resumed", stopped, progress=False, on_step=stop)
    resumed = start()
    resumed.restore(tmp_path / "resumed")
    assert resumed.step == 5 and resumed.losses == straight.losses[:5]
    looked = []
    go_on(
        resumed, objective, tmp_path / "resumed", threading.Event(), progress=False, every=3,
        visit=lambda run: looked.append(run.step),
    )  # fmt: skip
    assert resumed.losses == straight.losses and looked == [6, 8]
    for kind in ("model", "averaged"):
        pairs = zip(getattr(resumed, kind).parameters(), getattr(straight, kind).parameters(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


def test_the_folder_is_a_pipeline_that_draws_with_guidance(trained):
    out, _, _ = trained
    pipeline = StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pictures = [
        pipeline(
            "a small red seven on a blue background", num_inference_steps=2, guidance_scale=scale, output_type="np",
            generator=torch.Generator().manual_seed(0),
        ).images
        for scale in (1.0, 4.0)
    ]  # fmt: skip
    assert pictures[0].shape == (1, 32, 32, 3) and not np.array_equal(*pictures)
    assert isinstance(pipeline.scheduler, DDIMScheduler) and pipeline.scheduler.config.steps_offset == 1
    by_us = draw(load_pipeline(out), balanced_captions(3), steps=2, seed=5)
    assert by_us.shape == (3, 3, 32, 32) and by_us.abs().max() <= 1
    torch.testing.assert_close(draw(load_pipeline(out), balanced_captions(3), steps=2, seed=5), by_us)


def test_what_is_exported_is_what_was_averaged(trained):
    out, runs, _ = trained
    unet = cdm.load_unet(out)
    averaged = averaged_weights(runs / "denoiser.pt")
    assert unet.params.keys() == averaged.keys()
    for name, value in averaged.items():
        assert unet.params[name].dtype == np.float32
        np.testing.assert_allclose(
            unet.params[name], value.numpy(), rtol=2**-10, atol=2**-24
        )  # stored in half precision
    assert unet.scheduler_config["beta_schedule"] == "linear"
    vae = load_pipeline(out).vae
    for name, value in averaged_weights(runs / "autoencoder.pt").items():
        torch.testing.assert_close(vae.state_dict()[name], value, rtol=0, atol=0)

    record = json.loads((out / "training.json").read_text())
    assert list(record["stages"]) == PARTS
    assert record["stages"]["denoiser"]["parameters"] == sum(value.numel() for value in averaged.values())
    assert record["stages"]["denoiser"]["scores"][0]["step"] == 3
    assert f"{record['stages']['denoiser']['parameters']:,}" in (out / "README.md").read_text()
    known = {caption.text for caption in all_captions()}
    assert known.issuperset((out / "captions.txt").read_text().splitlines())


def test_the_scaling_factor_makes_latents_of_unit_size(trained, source):
    vae = load_pipeline(trained[0]).vae
    latents = []
    objective = denoiser_objective(
        replace(SHORT.denoiser, optimisation=replace(_SHORT, batch=500)), captioned(source, all_captions()),
        torch.zeros(3601, 16, 8), vae, vae.config.scaling_factor,
    )  # fmt: skip
    kept = scheduler().alphas_cumprod

    def record(noisy, timesteps, prompts):
        latents.append(noisy[timesteps < 100].square().mean().item())
        return SimpleNamespace(sample=noisy)

    objective(record, np.random.default_rng(0))
    assert kept[100] > 0.89
    assert latents[0] == pytest.approx(1, abs=0.1)
    assert scaling_factor(vae, captioned(source, all_captions())) == pytest.approx(vae.config.scaling_factor, rel=0.05)


def test_a_batch_for_the_denoiser(trained, source):
    """Every timestep slice once, every tenth prompt empty, and the noise of the schedule, which can be solved for."""
    vae = load_pipeline(trained[0]).vae
    prompts = torch.arange(3601.0)[:, None, None].expand(-1, 16, 8)
    config = replace(SHORT.denoiser, optimisation=replace(_SHORT, batch=500))
    objective = denoiser_objective(config, captioned(source, all_captions()), prompts, vae, 0.0)
    seen = []

    def solve(noisy, timesteps, shown):
        """With latents scaled to nothing, what is noisy is noise times its level."""
        seen.append((timesteps, shown))
        return SimpleNamespace(sample=noisy / (1 - scheduler().alphas_cumprod[timesteps]).sqrt()[:, None, None, None])

    assert objective(solve, np.random.default_rng(0)).item() < 1e-6
    ((timesteps, shown),) = seen
    assert sorted((timesteps // 2).tolist()) == list(range(500))
    assert 25 <= (shown[:, 0, 0] == 3600).sum() <= 80


def test_what_the_autoencoder_is_taught(source):
    """The error of what is decoded, and the divergence by its formula, of a model that answers with constants."""
    mean, deviation, grey = 1.5, 0.5, 0.25
    decoded = []

    class Constant:
        def encode(self, pictures):
            logarithm = torch.full((len(pictures), 4, 8, 8), 2 * np.log(deviation))
            parameters = torch.cat([torch.full_like(logarithm, mean), logarithm], dim=1)
            return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(parameters))

        def decode(self, latents):
            decoded.append(latents)
            return SimpleNamespace(sample=torch.full((len(latents), 3, 32, 32), grey))

    config = replace(SHORT.autoencoder, optimisation=replace(_SHORT, batch=64), kl_weight=0.1)
    blue = [Caption("large", "black", 1, "blue")]
    loss = autoencoder_objective(config, captioned(source, blue))(Constant(), np.random.default_rng(0)).item()
    divergence = (mean**2 + deviation**2 - 1 - np.log(deviation**2)) / 2
    colours = [rgb(colour).numpy() for colour in ("blue", "black")]
    on_blue, on_black = (np.square(colour - grey).mean() for colour in colours)
    error = loss - 0.1 * divergence
    # A large one covers less than a fifth of the picture.
    assert on_blue + 0.2 * (on_black - on_blue) < error < on_blue or on_blue < error < on_blue + 0.2 * (
        on_black - on_blue
    )
    assert decoded[0].mean().item() == pytest.approx(mean, abs=0.02)
    assert decoded[0].std().item() == pytest.approx(deviation, abs=0.02)


def test_learning_rate_rises_stays_and_falls():
    optimisation = Optimisation(steps=100, batch=1, learning_rate=2.0, warmup=10, cooldown=40)
    rates = [optimisation.rate(step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 0.2 * np.arange(1, 11))
    np.testing.assert_allclose(rates[10:60], 2.0)
    assert rates[80] == pytest.approx(1.0) and 0 < rates[99] < 0.01
    assert all(later < earlier for earlier, later in zip(rates[60:], rates[61:], strict=False))


def test_more_steps_continue_a_finished_training(trained, tmp_path):
    _, runs, _ = trained
    (tmp_path / "short").mkdir()
    for part in PARTS:
        (tmp_path / "short" / f"{part}.pt").write_bytes((runs / f"{part}.pt").read_bytes())
    seen = []
    settings = {"config": SHORT, "runs": tmp_path, "progress": False, "on_step": lambda *step: seen.append(step[:2])}
    train_sd_mini(tmp_path / "out", steps=5, **settings)
    assert seen == [("denoiser", 4), ("denoiser", 5)]


def test_checkpoints_that_do_not_fit(trained, tmp_path):
    _, runs, _ = trained
    (tmp_path / "short").mkdir()
    path = tmp_path / "short" / "reader.pt"
    path.write_bytes((runs / "reader.pt").read_bytes())
    other = replace(SHORT, reader=replace(SHORT.reader, noise=0.5))
    with pytest.raises(CipherDMError, match="(?s)another training: noise is 0.15 there and 0.5 now.*resume=False"):
        train_sd_mini(tmp_path / "out", config=other, runs=tmp_path, progress=False)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CipherDMError, match="(?s)reader.pt cannot be read.*resume=False"):
        train_sd_mini(tmp_path / "out", config=SHORT, runs=tmp_path, progress=False)


def test_a_training_on_glyphs_sees_nothing_of_mnist(trained, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("MNIST, or what was taught it, was asked for")

    few = {
        "glyph_digits": lambda *_, **seed: glyph_digits(100, **seed),
        "load_mnist": refuse,
        "load_classifier": refuse,
    }
    for name, value in few.items():
        monkeypatch.setattr(f"cipherdm_experiments.training.sd_mini.train.{name}", value)
    config = replace(SHORT, source="glyphs")
    _, runs, _ = trained
    with pytest.raises(CipherDMError, match="another training: source is mnist there and glyphs now"):
        train_sd_mini(tmp_path / "out", config=config, runs=runs.parent, progress=False)
    out = train_sd_mini(tmp_path / "out", config=config, runs=tmp_path, progress=False)
    assert json.loads((out / "training.json").read_text())["config"]["source"] == "glyphs"
    assert "fonts" in (card := (out / "README.md").read_text()) and "MNIST" not in card


def test_a_loss_that_is_not_finite(tmp_path):
    broken = replace(_SHORT, learning_rate=1e30, clip_norm=1e30, steps=50, cooldown=1)
    config = replace(SHORT, reader=replace(SHORT.reader, optimisation=broken))
    with pytest.raises(CipherDMError, match="(?s)loss of reader is nan.*Lower learning_rate"):
        train_sd_mini(tmp_path / "out", config=config, runs=tmp_path, progress=False)
    assert not (tmp_path / "out").exists()


def test_read_back_counts_what_is_drawn(trained):
    """Three steps of training draw nothing that can be read, while composed pictures are read."""
    found = read_back(trained[0], count=20, steps=1)
    assert found["drawn"]["digit"] < 0.5 and found["drawn"]["all"] < 0.2
    assert found["real"]["colour"] == found["real"]["background"] == 1 and found["real"]["digit"] > 0.7
    assert found["count"] == 20 and found["decoded"].keys() == found["real"].keys()


def test_a_pipeline_without_its_reader(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "other", ignore=shutil.ignore_patterns("reader"))
    with pytest.raises(CipherDMError, match="There is no .*reader, the LeNet"):
        read_back(tmp_path / "other", count=1, steps=1)


def test_command_line(trained, tmp_path):
    out, _, _ = trained
    record = tmp_path / "record.json"
    result = CliRunner().invoke(
        build(),
        ["read-back", str(out), "--count", "4", "--steps", "1", "--record", str(record)],
        catch_exceptions=False,
    )
    assert "4 pictures read as their captions say" in result.output and "drawn: digit" in result.output
    assert json.loads(record.read_text())["drawn"].keys() >= {"digit", "colour", "background", "all"}
    for arguments, words in (
        (["read-back", str(tmp_path)], "does not load as a StableDiffusionPipeline"),
        (["read-back", "mnist10", "--count", "0"], "whole number from 1 on"),
        (["train", "sd-mini", "--steps", "0"], "steps is 0"),
        (["train", "sd-maxi"], "sd-mini"),
    ):
        error = CliRunner().invoke(build(), arguments).exception
        assert isinstance(error, CipherDMError) and words in str(error)


def test_a_grid_has_its_pictures_in_rows(tmp_path):
    pictures = torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 3, 4, 4)
    write_grid(pictures.numpy(), tmp_path / "grid.png", columns=2)
    from matplotlib.image import imread

    image = imread(tmp_path / "grid.png")[..., :3]
    assert image.shape == (8, 8, 3)
    np.testing.assert_allclose(
        [image[0, 0, 0], image[0, 4, 0], image[4, 0, 0], image[4, 4, 0]], [0, 0.5, 1, 1], atol=0.01
    )
