"""Private training: what leaves it, what it keeps from the private images, and going on where it stopped."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cipherdm.datasets import Digits
from cipherdm.errors import CipherDMError
from cipherdm.private import ClippedSums, privacy_of, train_only
from cipherdm_experiments.training.glyphs import glyph_digits
from cipherdm_experiments.training.private_digits.draw import draw, load_model, prompts
from cipherdm_experiments.training.private_digits.recipe import PRIVATE_DIGITS
from cipherdm_experiments.training.private_digits.train import train_private_digits
from cipherdm_experiments.training.private_run import noise_losses
from cipherdm_experiments.training.sd_mini.captions import balanced_captions
from cipherdm_experiments.training.sd_mini.networks import scheduler
from cipherdm_experiments.training.sd_mini.pictures import Source
from cipherdm_experiments.training.sd_mini.private import SD_MINI_DP10, train_private_sd_mini
from cipherdm_experiments.training.sd_mini.recipe import Optimisation, SDMiniConfig
from cipherdm_experiments.training.sd_mini.score import draw as draw_captions
from cipherdm_experiments.training.sd_mini.score import load_pipeline

_SHORT = Optimisation(steps=3, batch=4, learning_rate=1e-3, warmup=1, cooldown=2)
_RECIPE = PRIVATE_DIGITS["letters-dp10"]
SHORT = replace(
    _RECIPE,
    name="short",
    private=replace(_RECIPE.private, optimisation=_SHORT, sample_rate=0.5, microbatch=3),
    autoencoder=replace(_RECIPE.autoencoder, optimisation=_SHORT, block_out_channels=(4, 4, 8, 8)),
    denoiser=replace(_RECIPE.denoiser, optimisation=_SHORT, block_out_channels=(8, 16)),
    width=8,
)


@pytest.fixture(scope="module")
def private():
    return glyph_digits(8, part="held-out")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(private, runs):
    return train_private_digits(SHORT, runs / "short-out", private=private, runs=runs, progress=False)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder):
    return dict(load_model(folder)[0].named_parameters())


def test_what_leaves_the_training(trained, private):
    statement = privacy_of(trained)
    assert statement.private and statement.budget == SHORT.private.budget
    assert "transformers of the U-Net and the embedding of classes" in statement.text
    assert statement.text in (trained / "README.md").read_text()
    record = json.loads((trained / "training.json").read_text())
    assert record["stages"]["private"].keys() == {"steps_done"} and record["environment"]["process_seconds"] is None
    assert "loss_by_100_steps" in record["stages"]["denoiser"]
    drawn = draw(*load_model(trained), np.arange(6), steps=3, guidance=2.0)
    assert drawn.shape == (6, 1, 28, 28) and np.isfinite(drawn).all() and np.abs(drawn).max() <= 1


def train(name, runs, private, **settings):
    out = runs / f"{name}-out"
    return train_private_digits(replace(SHORT, name=name), out, private=private, runs=runs, progress=False, **settings)


def test_only_what_the_statement_names_depends_on_the_private_images(trained, private, runs):
    again = train("others", runs, Digits(-private.images, (private.labels + 1) % 10))
    one, two = weights(trained), weights(again)
    changed = {name for name in one if not torch.equal(one[name], two[name])}
    assert changed and all(".attentions." in name or name.startswith("encoder_hid_proj") for name in changed)
    unequal = {name for name, value in files(trained).items() if value != files(again)[name]}
    assert unequal == {"unet/diffusion_pytorch_model.safetensors", "training.json", "README.md"}


def test_noise_is_fresh_unless_a_test_asks_for_a_seed(trained, private, runs):
    """Losses are of made-up examples that are the same in all runs, so what differs is the noise, and who is chosen."""
    fresh = train("fresh", runs, private)
    seeded = [train(name, runs, private, noise_seed=7) for name in ("seeded", "again")]
    first, *others = (weights(folder)["encoder_hid_proj.weight"] for folder in (trained, fresh, *seeded))
    assert not torch.equal(first, others[0])
    torch.testing.assert_close(others[1], others[2])
    for folder in seeded:
        assert not privacy_of(folder).private and "NOT PRIVATE" in (folder / "README.md").read_text()


def test_stopping_and_resuming(private, runs):
    seen = []

    def stop_in_the_middle(*step):
        seen.append(step)
        if step[:2] == ("private", 2) and len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="step 2 of 3 of private"):
        train("stopped", runs, private, on_step=stop_in_the_middle)
    assert not (runs / "stopped-out").exists()
    checkpoint = torch.load(runs / "stopped" / "private.pt", weights_only=True)
    assert checkpoint["losses"] == checkpoint["scores"] == [] and checkpoint["optimizer"]["taken"] == 2
    train("stopped", runs, private, on_step=stop_in_the_middle)
    assert seen == [("private", step, None) for step in (1, 2, 3)]
    other = replace(SHORT, name="stopped", private=replace(SHORT.private, epsilon=1))
    with pytest.raises(CipherDMError, match="epsilon is 10 there and 1 now"):
        train_private_digits(other, runs / "stopped-out", private=private, runs=runs, progress=False)


def test_what_private_models_are_compared_with(private, runs):
    """Public data alone leave no private stage, and without a promise there is no statement, and a loss that is noted."""
    open_stage = replace(SHORT.private, epsilon=None)
    folders = {name: train_as(name, runs, private, stage) for name, stage in (("public", None), ("open", open_stage))}
    record = {name: json.loads((folder / "training.json").read_text())["stages"] for name, folder in folders.items()}
    assert record["public"].keys() == {"autoencoder", "denoiser"}
    assert record["open"]["private"]["steps_done"] == 3 and "loss_by_100_steps" in record["open"]["private"]
    for folder in folders.values():
        assert "Nothing is promised" in (folder / "README.md").read_text()
        with pytest.raises(CipherDMError, match=r"privacy\.json"):
            privacy_of(folder)
    one, two = map(weights, folders.values())
    assert {name for name in one if not torch.equal(one[name], two[name])}


def train_as(name, runs, private, stage):
    config = replace(SHORT, name=name, private=stage)
    return train_private_digits(config, runs / f"{name}-out", private=private, runs=runs, progress=False)


def test_losses_are_the_mean_square_errors_of_each_draw(trained):
    """With a network that returns what it is shown, the loss follows from the timestep: E (x_t - noise)^2."""
    kept = scheduler().alphas_cumprod
    latents = (
        torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 3.0])[:, None, None, None]
    )
    shown = []

    def visit(chosen, _):
        return latents[chosen].repeat_interleave(50, 0), chosen.repeat_interleave(50)

    def identity(noisy, timesteps, told):
        shown.append((timesteps, told))
        return SimpleNamespace(sample=noisy)

    size, losses = noise_losses(2, 50, visit, prompts(), kept, 0.2)(identity)
    found = losses(torch.tensor([1, 0]))
    ((timesteps, told),) = shown
    assert size == 2 and found.shape == (100,)
    left = kept[timesteps]
    squares = latents.square().mean((1, 2, 3))[[1, 0]].repeat_interleave(50)
    expected = left * squares + ((1 - left).sqrt() - 1).square()
    assert (found / expected).mean() == pytest.approx(1, abs=0.1)
    for part in timesteps.view(2, 50):  # one from each slice
        assert torch.equal(part // 20, torch.arange(50))
    classes = told[:, 0].argmax(1).view(2, 50)
    assert set(classes[0].tolist()) == {1, 36} and set(classes[1].tolist()) == {0, 36}


def test_gradients_of_both_denoisers_are_told_apart(trained, captions_trained):
    """`check` compares with one backward pass for each example; losses must be the same each time."""
    generator = torch.Generator().manual_seed(1)

    def check(unet, told, also=()):
        config = unet.config
        noisy = torch.randn((3, config.in_channels, config.sample_size, config.sample_size), generator=generator)
        # PyTorch 2.13 crashes in a backward pass of a GroupNorm on channels_last whose input has no gradient.
        unet = unet.to(memory_format=torch.contiguous_format)
        train_only(unet, "attention", also)
        sums = ClippedSums(unet.train(), 0.01)
        sums.check(3, lambda rows: unet(noisy[rows], 100 * rows, told[rows]).sample.square().mean((1, 2, 3)))

    check(load_model(trained)[0], prompts()[:3], ["encoder_hid_proj"])
    check(load_pipeline(captions_trained).unet, torch.randn((3, 16, 8), generator=generator))


@pytest.fixture(scope="module")
def captions_trained(private, runs):
    part = {"optimisation": _SHORT}
    public = SDMiniConfig(name="public", source="glyphs")
    public = replace(
        public,
        autoencoder=replace(public.autoencoder, **part, block_out_channels=(4, 8, 8)),
        text=replace(public.text, **part, width=8, layers=1, heads=2),
        denoiser=replace(public.denoiser, **part, block_out_channels=(8, 16)),
        reader=replace(public.reader, **part),
    )
    config = replace(SD_MINI_DP10, public=public, private=replace(SHORT.private, draws=2))
    return train_private_sd_mini(runs / "captions", config=config, source=Source.of(private), runs=runs, progress=False)


def test_a_private_pipeline_loads_and_has_no_reader(captions_trained, runs):
    assert privacy_of(captions_trained).private and not (captions_trained / "reader").exists()
    pipeline = load_pipeline(captions_trained)
    drawn = draw_captions(pipeline, balanced_captions(2), steps=2)
    assert drawn.shape == (2, 3, 32, 32)
    public = load_pipeline(runs / "public" / "model")
    for name in ("vae", "text_encoder"):
        for one, two in zip(getattr(public, name).parameters(), getattr(pipeline, name).parameters(), strict=True):
            assert torch.equal(one, two)
    changed = [
        name
        for (name, one), two in zip(public.unet.named_parameters(), pipeline.unet.parameters(), strict=True)
        if not torch.equal(one, two)
    ]
    assert changed and all(".attentions." in name for name in changed)


def test_bad_configurations_are_refused():
    with pytest.raises(CipherDMError, match="no public data 'digits'"):
        replace(SHORT, source="digits")
    with pytest.raises(CipherDMError, match="does not load"):
        load_model("nowhere")
    with pytest.raises(CipherDMError, match=r"shape \(2, 1, 32, 32\)"):
        train_private_digits(SHORT, private=Digits(np.zeros((2, 1, 32, 32), np.float32), np.zeros(2, np.int64)))
