"""The split network against diffusers' parts assembled by hand, in diffusers' pipeline, and in files."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from prompted_models import edit
from splitting import examples

from cipherdm import CipherDMError, load_pipeline, load_unet
from cipherdm.split import SplitControlNetModel, encoded, load_base, load_split_pipeline, phi


@pytest.fixture(scope="module")
def network(pipeline):
    """A split network whose last convolutions are no longer zero."""
    made = SplitControlNetModel.of(pipeline.unet)
    torch.manual_seed(3)
    for convolution in (*made.controlnet_down_blocks, made.controlnet_mid_block):
        torch.nn.init.normal_(convolution.weight, std=0.1)
    made.use_autoencoder(pipeline.vae)
    return made.eval()


def by_hand(network, h: torch.Tensor, timesteps: torch.Tensor) -> list[torch.Tensor]:
    """Residuals of a ControlNet fed with h in place of the noisy latents, with four tokens of zeros as its prompt."""
    emb = network.time_embedding(network.time_proj(timesteps))
    context = torch.zeros(len(h), 4, network.config.cross_attention_dim)
    sample = network.conv_in(h)
    passed = [sample]
    for block in network.down_blocks:
        more = {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
        sample, skips = block(sample, emb, **more)
        passed += skips
    sample = network.mid_block(sample, emb, encoder_hidden_states=context)
    down = [layer(each) for layer, each in zip(network.controlnet_down_blocks, passed, strict=True)]
    return [*down, network.controlnet_mid_block(sample)]


@torch.no_grad()
def test_forward_is_that_of_diffusers_parts(network, pipeline):
    _, hints, captions = examples(5).batch(3, np.random.default_rng(0))
    noisy, timesteps = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 500, 999])
    latents = pipeline.vae.config.scaling_factor * pipeline.vae.encode(2 * hints - 1).latent_dist.mean
    h = ((latents + noisy).abs() * torch.tanh((latents + noisy) / 2)).half().float()
    wanted = by_hand(network, h, timesteps)
    prompts = torch.randn(3, 10, network.config.cross_attention_dim)  # which it must not read
    down, middle = network(noisy, timesteps, prompts, hints, conditioning_scale=0.5, return_dict=False)
    for ours, theirs in zip([*down, middle], wanted, strict=True):
        assert theirs.abs().max() > 1e-2
        torch.testing.assert_close(ours, 0.5 * theirs, rtol=1e-5, atol=1e-6)


def test_diffusers_pipeline_runs_it_and_files_keep_it(network, pipeline, tmp_path):
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    made = StableDiffusionControlNetPipeline(**parts, controlnet=network, **without)
    made.set_progress_bar_config(disable=True)
    _, hints, captions = examples(5).batch(2, np.random.default_rng(0))

    def drawn(pipe, hints):
        generator = torch.Generator().manual_seed(0)
        return pipe(captions, hints, num_inference_steps=2, output_type="np", generator=generator).images

    images = drawn(made, hints)
    assert images.shape == (2, 16, 16, 3) and not np.allclose(images, drawn(made, 1 - hints))
    made.save_pretrained(tmp_path)
    loaded = load_split_pipeline(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(drawn(loaded, hints), images, atol=1e-5)  # another layout in memory
    config = json.loads((tmp_path / "controlnet" / "config.json").read_text())
    assert config["_class_name"] == "SplitControlNetModel" and config["split_activation"] is True


@pytest.mark.parametrize("activation", [True, False])
def test_loaders_of_plain_control_nets_refuse_it(pipeline, tmp_path, activation):
    made = SplitControlNetModel.of(pipeline.unet, activation=activation)
    StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=made).save_pretrained(tmp_path)
    for load in (load_pipeline, load_unet):
        with pytest.raises(CipherDMError, match="trained by split learning.*load_split_pipeline"):
            load(tmp_path)
    index = tmp_path / "model_index.json"  # as if it were plain: the weights have the names and shapes of one
    edit(index, controlnet=["diffusers", "ControlNetModel"])
    with pytest.raises(CipherDMError, match="trained by split learning"):
        load_pipeline(tmp_path)


def test_the_activation_is_kept_in_files(pipeline, tmp_path):
    SplitControlNetModel.of(pipeline.unet, activation=False).save_pretrained(tmp_path)
    loaded = SplitControlNetModel.from_pretrained(tmp_path)
    assert loaded.config.split_activation is False
    assert loaded.config.block_out_channels == pipeline.unet.config.block_out_channels


def test_what_cannot_be_loaded_is_refused(base, pipeline, network, tmp_path):
    with pytest.raises(CipherDMError, match="does not load as a StableDiffusionControlNetPipeline"):
        load_split_pipeline(base)
    with pytest.raises(CipherDMError, match="does not load as a StableDiffusionPipeline"):
        load_base(tmp_path)
    with pytest.raises(CipherDMError, match="load_split_pipeline"):
        SplitControlNetModel.of(pipeline.unet)(
            torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 1, 12), torch.zeros(1, 3, 16, 16)
        )
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    plain = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(16, 32))
    StableDiffusionControlNetPipeline(**parts, controlnet=plain, **without).save_pretrained(tmp_path)
    with pytest.raises(CipherDMError, match="plain one"):
        load_split_pipeline(tmp_path)


def test_an_untrained_one_changes_nothing(pipeline):
    h = phi(encoded(pipeline.vae, torch.zeros(1, 3, 16, 16)))
    down, middle = SplitControlNetModel.of(pipeline.unet).residuals(h, torch.tensor([7]), return_dict=False)
    assert all(not each.any() for each in (*down, middle))
