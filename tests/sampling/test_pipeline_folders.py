"""Folders of pipelines that are refused, each with what is missing or does not fit."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from prompted_models import ONE_LEVEL, edit, save_pipeline
from safetensors.numpy import load_file, save_file

from cipherdm import CipherDMError, load_pipeline
from cipherdm.sampling.pipeline import embed_prompts

pytestmark = pytest.mark.usefixtures("quick_compilation")
PROMPTS = ["a small red seven", "blue two"]


@pytest.mark.parametrize("component", ["unet", "scheduler", "tokenizer", "text_encoder", "vae"])
def test_a_missing_component_is_named(broken, component):
    shutil.rmtree(broken / component)
    with pytest.raises(CipherDMError, match=f"lacks {component}/.*json"):
        load_pipeline(broken)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "is of a StableDiffusionXLPipeline"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch.*PNDM"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 2}, "AttnDownBlock2D.*CrossAttnDownBlock2D"),
        ("vae/config.json", {"latent_channels": 6}, "vae.* cannot be read"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae is of AutoencoderTiny, and only AutoencoderKL"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "is of .*T5EncoderModel"),
        ("text_encoder/config.json", {"num_hidden_layers": 0}, r"text_encoder .*layers\.0.* is not expected; and"),
        ("text_encoder/config.json", {"vocab_size": 9}, "text_encoder cannot be read"),
    ],
)
def test_unsupported_folders_are_named(broken, file, changes, message):
    edit(broken / file, **changes)
    with pytest.raises(CipherDMError, match=message):
        load_pipeline(broken)


def test_components_that_do_not_fit_are_named(tmp_path):
    save_pipeline(tmp_path, replace(ONE_LEVEL, cross_attention_dim=8))
    (tmp_path / "other").mkdir()
    save_pipeline(tmp_path / "other", ONE_LEVEL)
    shutil.rmtree(tmp_path / "unet")
    shutil.copytree(tmp_path / "other" / "unet", tmp_path / "unet")
    with pytest.raises(CipherDMError, match="text encoder's width is 8, and the U-Net attends to 12"):
        load_pipeline(tmp_path)


def test_other_folders_are_no_pipelines(tmp_path):
    with pytest.raises(CipherDMError, match=r"no model_index\.json"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("text_encoder/model.safetensors", "layers.0.mlp.fc1.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.weight"),
        ("unet/diffusion_pytorch_model.safetensors", "conv_out.bias"),
    ],
)
def test_a_missing_weight_is_named_in_every_component(broken, file, tensor):
    """The libraries' loaders would fill the gap with random numbers and say so on standard error only."""
    weights = load_file(broken / file)
    kept = {name: value for name, value in weights.items() if not name.endswith(tensor)}
    assert len(kept) == len(weights) - 1
    save_file(kept, broken / file, metadata={"format": "pt"})
    with pytest.raises(CipherDMError, match=f"{file.partition('/')[0]}.*{re.escape(tensor)} is missing"):
        load_pipeline(broken)


@pytest.mark.parametrize("kept", [[], ["vocab.json"], ["merges.txt"]])
def test_a_tokenizer_without_its_vocabulary_is_named(broken, kept):
    for file in (broken / "tokenizer").iterdir():
        if file.name not in ("tokenizer_config.json", *kept):
            file.unlink()
    lacking = "|".join(f"lacks .*{file}" for file in ("vocab.json", "merges.txt") if file not in kept)
    with pytest.raises(CipherDMError, match=lacking):
        load_pipeline(broken)


def test_a_tokenizer_of_another_model_is_named(broken):
    file = broken / "tokenizer" / "tokenizer.json"
    words = json.loads(file.read_text())
    words["model"]["merges"].pop()
    words["model"]["vocab"].pop(next(reversed(words["model"]["vocab"])))
    file.write_text(json.dumps(words))
    for name in ("vocab.json", "merges.txt"):
        (broken / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(CipherDMError, match="tokenizer has .* tokens, and the text encoder"):
        load_pipeline(broken)


@pytest.mark.parametrize("length", [None, 99])
def test_prompts_are_as_long_as_the_text_encoder_has_positions(broken, pipeline, length):
    edit(broken / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    np.testing.assert_array_equal(embed_prompts(load_pipeline(broken), PROMPTS), embed_prompts(pipeline, PROMPTS))


def test_a_variant_of_half_precision_is_read(folder, pipeline, tmp_path):
    theirs, _ = folder
    theirs.save_pretrained(tmp_path / "half", variant="fp16")
    loaded = load_pipeline(tmp_path / "half")
    np.testing.assert_array_equal(embed_prompts(loaded, PROMPTS), embed_prompts(pipeline, PROMPTS))
    for name, array in pipeline.unet.params.items():
        np.testing.assert_array_equal(loaded.unet.params[name], array)
    for name, tensor in pipeline.vae.state_dict().items():
        assert torch.equal(loaded.vae.state_dict()[name], tensor)


def test_weights_that_are_cut_off_are_named(broken):
    file = broken / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CipherDMError, match="text_encoder cannot be read"):
        load_pipeline(broken)
