"""The named parts of a denoiser are trained, and nothing else is."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from cipherdm import CipherDMError, PrivacyBudget
from cipherdm.private import PARTS, PrivateStep, share, train_only


@pytest.fixture
def unet():
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(
        in_channels=2, out_channels=2, cross_attention_dim=6, attention_head_dim=2, **sizes, **kinds
    )


def trained(module):
    return {name for name, each in module.named_parameters() if each.requires_grad}


def test_each_part_is_what_its_name_says(unet):
    names = {}
    for part in PARTS:
        found = train_only(unet, part)
        names[part] = trained(unet)
        sizes = {name: each.numel() for name, each in unet.named_parameters()}
        assert found == share(unet) == sum(sizes[name] for name in names[part]) / sum(sizes.values())
    everything = {name for name, _ in unet.named_parameters()}
    assert names["all"] == everything
    assert names["attention"] == {name for name in everything if ".attentions." in name}
    assert names["late-attention"] == {name for name in names["attention"] if name.startswith("up_blocks.")}
    assert names["attn-only"] == {name for name in everything if ".attn1." in name or ".attn2." in name}
    assert all("proj_in" not in name for name in names["attn-only"])
    assert len(names["attn-only"]) < len(names["attention"]) < len(everything)


def test_only_the_part_moves_in_a_step(unet):
    module = nn.ModuleDict({"unet": unet, "classes": nn.Embedding(10, 6)})
    train_only(module, "late-attention", also=["classes"])
    before = {name: each.clone() for name, each in module.state_dict().items()}
    parameters = [each for each in module.parameters() if each.requires_grad]
    budget = PrivacyBudget.of(epsilon=1, delta=1e-5, sample_rate=1.0, steps=1)
    step = PrivateStep(module, torch.optim.AdamW(parameters, lr=1e-3), budget, clip=0.1, public_size=2)
    samples, labels = torch.randn(2, 2, 8, 8), torch.tensor([3, 4])

    def losses(rows):
        contexts = module["classes"](labels[rows])[:, None]
        return unet(samples[rows], torch.tensor(7), contexts).sample.square().mean((1, 2, 3))

    step.sums.check(2, losses)
    step.take(2, losses)
    moved = {name for name, each in module.state_dict().items() if not torch.equal(each, before[name])}
    assert moved == trained(module) and "classes.weight" in moved


def test_what_is_not_there_is_refused(unet):
    for module, part, also, message in (
        (unet, "attentions", (), "There is no part 'attentions' to train: take one of attention,"),
        (unet, "attention", ("classes",), "no submodule classes"),
        (nn.Linear(2, 2), "attention", (), "The module has nothing of 'attention'"),
    ):
        before = trained(module)
        with pytest.raises(CipherDMError, match=message):
            train_only(module, part, also)
        assert trained(module) == before
