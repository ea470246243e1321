"""DiTs: equal to diffusers' own module, read from and written to its folders, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch_models import check_distribution, torch_params, with_random_vectors

from cipherdm import CipherDMError, load_unet, save_unet
from cipherdm.models import DiTConfig, apply_unet, init_unet

CONFIG = DiTConfig(
    num_attention_heads=2,
    attention_head_dim=8,
    in_channels=2,
    out_channels=3,
    num_layers=2,
    sample_size=12,
    patch_size=3,
    num_embeds_ada_norm=5,
    norm_eps=1e-3,
)


def diffusers_dit(seed=0, **changes):
    torch.manual_seed(seed)
    given = {name: value for name, value in CONFIG.to_diffusers().items() if not name.startswith("_")}
    return with_random_vectors(DiTTransformer2DModel(**given | changes)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("dit")
    diffusers_dit().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "changes", [{}, {"activation_fn": "gelu", "out_channels": None}, {"patch_size": 4, "num_layers": 1}]
)
def test_a_dit_is_that_of_diffusers(tmp_path, changes):
    theirs = diffusers_dit(**changes)
    theirs.save_pretrained(tmp_path)
    ours = load_unet(tmp_path)
    generator = torch.Generator().manual_seed(1)
    sample, labels = torch.randn((4, 2, 12, 12), generator=generator), torch.tensor([0, 3, 4, 3])
    for timestep in (0, 321, 999):
        with torch.no_grad():
            expected = theirs(sample, torch.full((4,), timestep), class_labels=labels).sample.numpy()
        found = apply_unet(ours.config, ours.params, sample.numpy(), timestep, np.eye(5)[labels.numpy()])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert expected.std() > 0.1


def test_what_is_saved_diffusers_loads_as_it_was(folder, tmp_path):
    theirs = diffusers_dit()
    save_unet(load_unet(folder), tmp_path)
    again = DiTTransformer2DModel.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    for name, value in torch_params(theirs).items():
        np.testing.assert_array_equal(torch_params(again)[name], value, err_msg=name)
    assert load_unet(tmp_path).config == CONFIG


def test_random_weights_are_distributed_as_diffusers():
    torch.manual_seed(0)
    wide = replace(CONFIG, attention_head_dim=32)
    theirs = DiTTransformer2DModel(**{k: v for k, v in wide.to_diffusers().items() if not k.startswith("_")})
    ours = dict(init_unet(wide).params)
    table = ours.pop("pos_embed.pos_embed")
    np.testing.assert_allclose(table, theirs.pos_embed.pos_embed.numpy(), atol=1e-6)
    check_distribution(ours, torch_params(theirs))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_bias": False}, "attention_bias"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"activation_fn": "geglu"}, "activation_fn"),
        ({"patch_size": 5}, "a divisor of sample_size, 12"),
        ({"num_layers": 0}, "num_layers"),
        ({"attention_head_dim": 3}, "of a product that 4 divides"),
        ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(folder, tmp_path, changes, message):
    values = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CipherDMError, match=message):
        load_unet(tmp_path)


@pytest.mark.parametrize(
    "shape, labels, message",
    [
        ((1, 2, 24, 24), 5, r"\(1, 2, 24, 24\)"),
        ((1, 3, 12, 12), 5, r"\(1, 3, 12, 12\)"),
        ((1, 2, 12, 12), 6, r"must have shape \(1, 5\)"),
        ((1, 2, 12, 12), None, "class_onehot is missing"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(folder, shape, labels, message):
    dit = load_unet(folder)
    onehot = None if labels is None else np.eye(labels)[:1]
    with pytest.raises(CipherDMError, match=message):
        apply_unet(dit.config, dit.params, np.zeros(shape), 0, onehot)
