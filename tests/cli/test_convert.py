"""`cipherdm convert`: what it writes is what diffusers reads, and what it refuses leaves nothing behind."""

import re
import shutil

import diffusers
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.cli import build
from cipherdm.models import find_model, load_unet
from cipherdm.sampling.pipeline import load_pipeline

SD_MINI = find_model("sd-mini")


def convert(*arguments) -> str:
    result = CliRunner().invoke(build(), ["convert", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def assert_equal(params, expected):
    assert set(params) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(params[name], array, rtol=1e-6, atol=1e-7)


@pytest.fixture
def pickled(tmp_path):
    """A U-Net's folder with weights as older versions of diffusers wrote them."""
    folder = shutil.copytree(find_model("mnist01-tiny"), tmp_path / "pickled")
    weights = folder / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "diffusion_pytorch_model.bin")
    weights.unlink()
    return folder


def test_pickled_weights_become_safetensors(pickled, tmp_path):
    assert "cipherdm inspect" in convert(pickled, tmp_path / "out")
    found, expected = load_unet(tmp_path / "out"), load_unet(find_model("mnist01-tiny"))
    assert_equal(found.params, expected.params)
    assert found.scheduler_config["_class_name"] == expected.scheduler_config["_class_name"]


def test_what_this_package_keeps_beside_the_weights_comes_too(tmp_path):
    student = find_model("sd-mini-turbo-1")  # of half precision
    convert(student, tmp_path / "out")
    for name in ("sampling.json", "captions.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (student / name).read_bytes()
    half, weights = tmp_path / "half", "diffusion_pytorch_model"
    shutil.copytree(find_model("mnist01-tiny"), half)
    (half / f"{weights}.safetensors").rename(half / f"{weights}.fp16.safetensors")
    convert(tmp_path / "half", tmp_path / "whole")
    assert_equal(load_unet(tmp_path / "whole").params, load_unet(find_model("mnist01-tiny")).params)


def test_nothing_but_tensors_is_unpickled(pickled, tmp_path):
    class Planted:
        def __reduce__(self):
            return open, (str(tmp_path / "planted"), "w")

    torch.save({"conv_in.weight": Planted()}, pickled / "diffusion_pytorch_model.bin")
    before = set(tmp_path.iterdir())
    with pytest.raises(CipherDMError, match="does not read .*pickled"):
        convert(pickled, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_becomes_a_folder(tmp_path, suffix):
    """Written here in the layout of the latent diffusion code, which single files have."""
    file, tensors = tmp_path / f"single{suffix}", single_file()
    save_file(tensors, file) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, file)
    convert(file, tmp_path / "out", "--config", SD_MINI)
    found, expected = load_pipeline(tmp_path / "out"), load_pipeline(SD_MINI)
    assert_equal(found.unet.params, expected.unet.params)
    for part in ("text_encoder", "vae"):
        ours, theirs = getattr(found, part).state_dict(), getattr(expected, part).state_dict()
        assert_equal({k: v.numpy() for k, v in ours.items()}, {k: v.numpy() for k, v in theirs.items()})
    assert found.unet.scheduler_config["beta_end"] == expected.unet.scheduler_config["beta_end"]


def test_lora_is_fused(tmp_path):
    """W + scale * (alpha / rank) up @ down, for a projection of the U-Net."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    before = load_pipeline(SD_MINI).unet.params
    width = before[f"{layer}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, width[1], generator=generator), torch.randn(width[0], 2, generator=generator)
    names = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    save_file(names, tmp_path / "pytorch_lora_weights.safetensors")
    for index, lora in enumerate((tmp_path, tmp_path / "pytorch_lora_weights.safetensors")):
        convert(SD_MINI, tmp_path / f"out{index}", "--lora", lora, "--lora-scale", 0.5)
        after = load_pipeline(tmp_path / f"out{index}").unet.params
        expected = dict(before) | {f"{layer}.weight": before[f"{layer}.weight"] + 0.5 * (up @ down).numpy()}
        assert set(after) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(after[name], array, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "out"), "There is no nowhere"),
        ((SD_MINI, "here"), "here exists"),
        ((SD_MINI, "out", "--lora", "nowhere"), "There is no nowhere: give files or folders with LoRA"),
        ((find_model("mnist01-tiny"), "out", "--lora", "."), "fused into a Stable Diffusion pipeline"),
        ((SD_MINI, "out", "--lora", "here"), "does not read"),
        ((SD_MINI, "out", "--lora", "other.safetensors"), "other.safetensors has no LoRA weights for this model"),
        ((SD_MINI, "missing/out"), "There is no folder missing to write out into"),
        (("broken.safetensors", "out"), "does not read broken.safetensors"),
        ((SD_MINI / "vae", "out"), "holds a AutoencoderKL"),
    ],
    ids=str,
)
def test_mistakes_leave_nothing_behind(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    save_file(
        {f"transformer.block.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, tmp_path / "other.safetensors"
    )
    with pytest.raises(CipherDMError, match=message):
        convert(*arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.safetensors", "here", "other.safetensors"]


def test_a_model_that_is_not_computed_is_refused(tmp_path):
    other = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, downsample_type="resnet",
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CipherDMError, match="downsample_type"):
        convert(tmp_path / "other", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
_RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def single_file() -> dict[str, torch.Tensor]:
    """sd-mini under the names of the latent diffusion code. Its U-Net has one layer a block, its autoencoder three levels."""
    unet, vae, text = (
        load_file(SD_MINI / part / name)
        for part, name in [
            ("unet", "diffusion_pytorch_model.safetensors"),
            ("vae", "diffusion_pytorch_model.safetensors"),
            ("text_encoder", "model.safetensors"),
        ]
    )
    found = {f"model.diffusion_model.{_ldm_unet(name)}": value for name, value in unet.items()}
    found |= {f"first_stage_model.{_ldm_vae(name)}": value for name, value in vae.items()}
    return found | {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}


def _ldm_unet(name: str) -> str:
    if name in DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]:
        return DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"][name]
    side, block, kind, index, rest = re.fullmatch(r"(\w+?)_blocks?(?:\.(\d))?\.(\w+)\.(\d)\.(.*)", name).groups()
    block, index = int(block or 0), int(index)
    if kind == "resnets":
        part, _, ending = rest.partition(".")
        rest = f"{_RESNET[part]}.{ending}"
    if side == "mid":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{2 * (block + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{2 * block + 1}.{2 if block == 0 else 1}.{rest}"
    place = 2 * block + index + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{0 if kind == 'resnets' else 1}.{rest}"


def _ldm_vae(name: str) -> str:
    if name in DIFFUSERS_TO_LDM_MAPPING["vae"]:
        return DIFFUSERS_TO_LDM_MAPPING["vae"][name]
    name = name.replace("conv_shortcut", "nin_shortcut").replace("samplers.0.conv", "sample.conv")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{2 - int(match[1])}", name)
    return name.replace("down_blocks", "down").replace("resnets", "block")
